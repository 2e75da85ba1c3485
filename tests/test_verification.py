"""What the verification at the end of a run finds, and what it claims."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebm_encode import EmbeddingCache, Encoder
from ebm_encode._core import CacheWriter
from ebm_encode.bulk.progress import EncodingProgress
from ebm_encode.bulk.run import BulkRun
from ebm_encode.bulk.verification import sample_size, wrong_at_most
from ebm_encode.cli.console import stderr_console
from ebm_encode.engines.output import Pass
from ebm_encode.engines.selection import default_engines
from ebm_encode.errors import RejectedRowsError, TextFailedError, VerificationError
from matrix import pairs, thorough
from plain_trie import Scaled
from support import FILES

TEMPLATE = "deepseek-prover-v2"


class SwapsNeighbours(Scaled):
    """Lets the embeddings of neighbours change places, where nothing looks while it runs.

    Attributes:
        cosines: Of each pair that changed places.
    """

    def __init__(self, engine):
        super().__init__(engine, 1.0)
        self.cosines = []

    def forward(self, sequences, slots):
        super().forward(sequences, slots)
        lengths = [len(sequence) for sequence in sequences]
        extremes = (min(lengths), max(lengths))
        watched = {k for k, length in enumerate(lengths) if length in extremes}
        watched.add(self.last_packed_index(sequences))
        for k in range(0, len(sequences) - 1, 2):
            if not {k, k + 1} & watched:
                left, right = slots.slot(k).copy(), slots.slot(k + 1).copy()
                slots.slot(k)[:], slots.slot(k + 1)[:] = right, left
                norms = np.linalg.norm(left) * np.linalg.norm(right)
                self.cosines.append(float(left @ right / norms))
        return Pass(slots)


def bulk_run(encoder, states, output, *, sample=None, stop_after=None):
    """A bulk run as the command line makes one; ends early after so many batches."""
    writer = CacheWriter(output)
    try:
        writer.open(encoder.identity, encoder.dim, checkpoint_rows=50)
        run = BulkRun(encoder, writer, str(output))
        todo = run.adopt([], states)
        progress = EncodingProgress(len(todo), 1, quiet=True, console=stderr_console())
        with progress:
            if stop_after is not None:
                stop(encoder, stop_after)
            run.encode(todo, progress)
        return run.finish({}, sample=sample)
    finally:
        writer.close()


def stop(encoder, batches):
    """Interrupts the encoder after so many batches."""
    original = encoder.runner.run_all

    def stopped(*arguments, **options):
        for k, batch in enumerate(original(*arguments, **options)):
            if k == batches:
                raise KeyboardInterrupt
            yield batch

    encoder.runner.run_all = stopped


@pytest.fixture(scope="module")
def children(states):
    """The children of some states, as a search asks for them."""
    parents = sorted(states, key=len)[-40:-24]
    return [f"{parent}\nh{i} : x{i} = {i}" for parent in parents for i in range(12)]


def swapping(made):
    def engines(model, pooling, layer, budget):
        made.append(SwapsNeighbours(default_engines(model, pooling, layer, budget)[0]))
        return [*made]

    return engines


@pytest.mark.parametrize("dtype", ["bfloat16", *thorough("float32", "float16")])
def test_neighbours_that_changed_places_are_found(llama, children, tmp_path, dtype):
    """In 16 bits each is as similar to its neighbour as to itself, by any bound on the cosine."""
    made, output = [], tmp_path / "out.parquet"
    encoder = Encoder.load(
        llama, dtype=dtype, template=TEMPLATE, batch_size=48, engines=swapping(made)
    )
    with pytest.raises(VerificationError, match="sampled embeddings are not those of their states"):
        bulk_run(encoder, children, output)
    assert len(made[0].cosines) > 50
    assert np.mean(np.array(made[0].cosines) >= 0.9995) > 0.9
    assert not output.exists()
    right = Encoder.load(llama, dtype=dtype, template=TEMPLATE)
    with pytest.raises(RejectedRowsError):  # what was saved is not resumed
        bulk_run(right, children, output)


@pytest.mark.parametrize(
    ("dtype", "architecture"), pairs(["float32", "bfloat16", "float16"], ["llama", "mixtral"])
)
def test_right_embeddings_pass_and_are_far_from_others(
    make_model, children, tmp_path, architecture, dtype
):
    encoder = Encoder.load(make_model(architecture), dtype=dtype, template=TEMPLATE)
    found = bulk_run(encoder, children, tmp_path / "out.parquet").verification
    assert found.rows >= 60
    assert found.drawn == 32
    assert found.indistinct == 0
    assert found.nearest_other < 0.25
    assert found.wrong_at_most == pytest.approx(wrong_at_most(32))


def test_a_resumed_run_verifies_what_was_saved_before(llama, children, tmp_path):
    made, output = [], tmp_path / "out.parquet"
    options = {"dtype": "bfloat16", "template": TEMPLATE, "batch_size": 48}
    encoder = Encoder.load(llama, engines=swapping(made), **options)
    with pytest.raises(KeyboardInterrupt):
        bulk_run(encoder, children, output, stop_after=3)
    assert made[0].cosines
    assert not output.exists()
    with pytest.raises(VerificationError):
        bulk_run(Encoder.load(llama, **options), children, output, sample=40)


def test_all_embeddings_of_a_small_run_are_compared(llama, states, tmp_path):
    found = bulk_run(Encoder.load(llama), states[:20], tmp_path / "out.parquet").verification
    assert (found.rows, found.wrong_at_most) == (20, 0.0)


def test_the_sample_grows_with_the_run():
    assert [sample_size(n) for n in (1, 32_000, 32_001, 217_499)] == [32, 32, 33, 218]


@given(n=st.integers(1, 400), share=st.floats(0.001, 0.999))
def test_the_bound_is_what_a_sample_does_not_rule_out(n, share):
    """A sample of `n` misses a share with probability (1 - share)^n, by strata at most that."""
    missed = (1 - share) ** n
    if share > wrong_at_most(n) + 1e-9:
        assert missed < 0.05
    if share < wrong_at_most(n) - 1e-9:
        assert missed > 0.05


@given(
    wrong=st.sets(st.integers(0, 23), min_size=1),
    strata=st.sampled_from([2, 3, 4, 6, 8, 12, 24]),
)
def test_strata_of_equal_size_miss_no_more_than_a_simple_sample(wrong, strata):
    parts = np.array_split(np.arange(24), strata)
    missed = np.prod([np.mean([k not in wrong for k in part]) for part in parts])
    assert missed <= (1 - len(wrong) / 24) ** strata + 1e-12


def test_the_summary_and_the_file_say_what_is_proved(run_cli, llama, tmp_path):
    output = tmp_path / "out.parquet"
    arguments = [
        *("encode", "--model-path", llama, "--trajectories", *map(str, FILES)),
        *("--output", output, "--verify-sample", 40),
    ]
    code, out, _ = run_cli(*arguments)
    assert code == 0
    assert "at most 7.2 % of all are wrong (95 % confidence)" in " ".join(out.split())
    recorded = EmbeddingCache.open(output).provenance[0]["verification"]
    assert recorded["wrong_at_most"] == pytest.approx(1 - 0.05 ** (1 / 40))
    assert recorded["drawn"] == 40
    assert json.dumps(recorded)


def test_a_run_of_which_the_model_makes_nothing_unbatched_is_rejected(llama, tmp_path, monkeypatch):
    output = tmp_path / "out.parquet"
    encoder = Encoder.load(llama)

    def failing(_):
        raise TextFailedError("the model fails on it")

    writer = CacheWriter(output)
    writer.open(encoder.identity, encoder.dim)
    run = BulkRun(encoder, writer, str(output))
    with EncodingProgress(1, 1, quiet=True, console=stderr_console()) as progress:
        run.encode(run.adopt([], ["⊢ True"]), progress)
    monkeypatch.setattr(encoder, "run_unbatched", failing)
    with pytest.raises(VerificationError, match="1 of 1 sampled embeddings"):
        run.finish({})
    writer.close()
    assert not output.exists()
