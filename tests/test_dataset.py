"""A cache as training data: every row once, rows equal to the file's as pyarrow reads them."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader

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


def test_items_are_the_rows_of_the_states_in_their_order(path, truth):
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
def test_each_epoch_has_every_row_once_in_another_order(path, batch_size):
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


def test_a_last_batch_that_is_not_full_may_be_left_out(path):
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
