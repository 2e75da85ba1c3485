"""A cache as training data: every embedding once, equal to the file's as pyarrow reads them."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, random_split

from ebm_encode import EmbeddingCache, EmbeddingDataset, MappedCache
from ebm_encode.errors import ArgumentError, UnknownStateError

STATES = [f"n : ℕ\n⊢ n + {i} = {i} + n" for i in range(10)]


@pytest.fixture
def path(tmp_path, write_cache, rows):
    return write_cache(tmp_path / "cache.parquet", STATES, rows(len(STATES)))


@pytest.fixture
def truth(path):
    table = pq.read_table(path)
    return dict(zip(table["state_pp"].to_pylist(), table["embedding"].to_pylist(), strict=True))


def test_items_are_the_embeddings_of_the_states_in_their_order(path, truth):
    chosen = STATES[::-1][:5]
    dataset = EmbeddingDataset(EmbeddingCache.open(path), chosen)
    assert len(dataset) == 5
    for state, row in zip(chosen, dataset, strict=True):
        assert row.dtype == torch.float32
        assert row.tolist() == truth[state]


def test_a_dataset_is_of_all_states_unless_told_otherwise(path, truth):
    cache = EmbeddingCache.open(path)
    dataset = EmbeddingDataset(cache)
    assert [row.tolist() for row in dataset] == [truth[state] for state in cache.states()]


@pytest.mark.parametrize("batch_size", [1, 3, 1000])
def test_each_epoch_has_every_embedding_once_in_another_order(path, batch_size):
    cache = EmbeddingCache.open(path)
    dataset = EmbeddingDataset(cache)
    orders = []
    for epoch in (0, 1, 0):
        batches = list(dataset.shuffled_batches(batch_size, seed=7, epoch=epoch))
        assert all(len(batch.rows) == batch_size for batch in batches[:-1])
        order = torch.cat([batch.indices for batch in batches])
        rows = torch.cat([batch.rows for batch in batches])
        assert sorted(order.tolist()) == list(range(len(cache)))
        assert (rows.numpy() == cache.matrix()[order]).all()
        orders.append(order.tolist())
    assert orders[0] == orders[2] != orders[1]


def test_a_last_batch_that_is_not_full_may_be_dropped(path):
    dataset = EmbeddingDataset(EmbeddingCache.open(path))
    size = len(dataset) - 1
    batches = list(dataset.shuffled_batches(size, seed=0, drop_last=True))
    assert [len(batch.rows) for batch in batches] == [size]


def test_a_data_loader_gets_its_batches_in_one_copy(path):
    cache = EmbeddingCache.open(path)
    dataset = EmbeddingDataset(cache)
    loader = DataLoader(dataset, batch_size=4, shuffle=True, collate_fn=dataset.collate)
    seen = []
    for batch in loader:
        assert (batch.rows.numpy() == cache.matrix()[batch.indices]).all()
        seen.extend(batch.indices.tolist())
    assert sorted(seen) == list(range(len(cache)))


def test_what_cannot_be_is_refused(path):
    cache = EmbeddingCache.open(path)
    with pytest.raises(UnknownStateError, match="nowhere"):
        EmbeddingDataset(cache, ["nowhere"])
    with pytest.raises(ArgumentError, match="one string"):
        EmbeddingDataset(cache, STATES[0])
    dataset = EmbeddingDataset(cache)
    with pytest.raises(IndexError):
        dataset[len(dataset)]
    with pytest.raises(ArgumentError, match="batch_size 0"):
        dataset.shuffled_batches(0, seed=0)
    with pytest.raises(ArgumentError, match="row 99"):
        cache.gather_rows(np.array([0, 99]))
    with pytest.raises(ArgumentError, match="negative"):
        cache.gather_rows(np.array([-1]))


@pytest.mark.parametrize("opener", [EmbeddingCache, MappedCache])
def test_forked_workers_have_threads_of_their_own(path, truth, opener):
    dataset = EmbeddingDataset(opener.open(path))

    def opens_it_too(_: int) -> None:
        assert (opener.open(path).gather(STATES) == [truth[state] for state in STATES]).all()

    loader = DataLoader(
        dataset, batch_size=4, num_workers=2, collate_fn=dataset.collate,
        multiprocessing_context="fork", worker_init_fn=opens_it_too, timeout=120,
    )  # fmt: skip
    rows = torch.cat([batch.rows for batch in loader])
    assert rows.tolist() == [row.tolist() for row in dataset]


@pytest.mark.parametrize("opener", [EmbeddingCache, MappedCache])
def test_torch_s_own_collation_makes_tensors(path, truth, opener):
    dataset = EmbeddingDataset(opener.open(path))
    batches = list(DataLoader(dataset, batch_size=4))
    assert [tuple(batch.shape) for batch in batches] == [(4, 16), (4, 16), (2, 16)]
    assert torch.cat(batches).tolist() == [truth[state] for state in STATES]


def test_a_dataset_can_be_split(path, truth):
    parts = random_split(EmbeddingDataset(EmbeddingCache.open(path)), [7, 3])
    seen = [row for part in parts for batch in DataLoader(part, batch_size=2) for row in batch]
    assert sorted(row.tolist() for row in seen) == sorted(truth.values())
    collated = DataLoader(parts[0], batch_size=2, collate_fn=EmbeddingDataset.collate)
    assert sum(len(batch.rows) for batch in collated) == 7


def test_a_sampler_may_give_whole_batches(path):
    dataset = EmbeddingDataset(EmbeddingCache.open(path))
    sampler = BatchSampler(RandomSampler(dataset), batch_size=4, drop_last=False)
    rows = torch.cat(list(DataLoader(dataset, sampler=sampler, batch_size=None)))
    assert sorted(rows.tolist()) == sorted(row.tolist() for row in dataset)


@pytest.mark.parametrize("opener", [EmbeddingCache, MappedCache])
def test_spawned_workers_open_the_cache_by_its_path(path, truth, opener):
    dataset = EmbeddingDataset(opener.open(path))
    loader = DataLoader(
        dataset, batch_size=4, num_workers=2, multiprocessing_context="spawn", timeout=240
    )
    assert torch.cat(list(loader)).tolist() == [truth[state] for state in STATES]


def test_a_mask_selects_and_what_is_no_number_is_refused(path):
    dataset = EmbeddingDataset(EmbeddingCache.open(path))
    mask = np.zeros(len(dataset), dtype=bool)
    mask[[4, 9]] = True
    for given in (
        mask,
        torch.from_numpy(mask),
        mask.tolist(),
        [4, 9],
        torch.tensor([4, 9]),
        [4, -1],
    ):
        assert torch.equal(dataset.batch(given).rows, torch.stack([dataset[4], dataset[9]]))
    assert dataset.batch(mask).indices.tolist() == [4, 9]
    assert torch.equal(dataset[mask], dataset.batch(mask).rows)
    assert dataset.batch([]).rows.shape == (0, 16)
    for wrong, why in [
        (mask[:-1], "a mask of 9"), ([0.7, 1.9], "float64"), (torch.tensor([1.0]), "float32"),
        (["0"], "expected integers"), ([[1, 2]], "shape"), (3, "shape"),
    ]:  # fmt: skip
        with pytest.raises(ArgumentError, match=why):
            dataset.batch(wrong)
    for wrong in ([10], [-11]):
        with pytest.raises(IndexError, match="of 10"):
            dataset.batch(wrong)
    with pytest.raises(TypeError):
        dataset[1.5]
