"""Recorded passes: the numbers of other requests, from memory that stays where it is.

No GPU is here to record anything. The stand-in runs the recorded function again, which reads and
writes the same memory as a CUDA graph would; what a graph records is for a GPU to show.
"""

import pytest

from ebm_encode import Encoder
from ebm_encode.engines.block_masks import BLOCK
from ebm_encode.engines.flex_engine import FlexEngine
from ebm_encode.engines.recordings import REPEATED, InPlaceLayout, Recordings
from ebm_encode.engines.reference import compare
from matrix import thorough
from support import compare_nothing
from test_parity import unbatched


class _Clock:
    """A device on which the second of two passes, that without a recording, takes longer."""

    def __init__(self, *seconds):
        self.told = list(seconds)

    def seconds(self, work):
        work()
        return self.told.pop(0)


@pytest.fixture
def recorded(make_model):
    """An encoder whose engine records, and the replays; a fault may be put into them."""

    def make(architecture="llama", seconds=(1.0, 2.0), fault=None):
        replays = []

        def record(work):
            if fault == "waits":
                raise RuntimeError("operation not permitted when stream is capturing")
            hidden = work().clone()

            def replay():
                replays.append(1)
                hidden.copy_(work())
                if fault == "wrong":
                    hidden.mul_(1.0001)

            return hidden, replay

        def engines(model, pooling, layer, budget):
            def recordings(run):
                meter = _Clock(*seconds)
                return Recordings(model.device, run, record=record, meter=meter)

            return [FlexEngine(model, pooling, layer, budget, recordings=recordings)]

        folder = make_model(architecture)
        encoder = Encoder.load(folder, engine="shared-prefix-flex", engines=engines)
        compare_nothing(encoder)
        return encoder, folder, replays

    return make


def requests(states, count):
    """Different requests that are packed to the same length."""
    by_text = sorted(states)
    return [by_text[i : i + 4] for i in range(0, 4 * count, 4)]


def two_of_a_length(encoder, states):
    """Two requests whose nodes fill as many blocks."""
    by_length = {}
    for request in requests(states, 20):
        size = encoder.choice.engine.size([*encoder.prompts.tokenize(request)])
        before = by_length.setdefault(-(-size // BLOCK), request)
        if before != request and size > BLOCK:
            return before, request
    raise AssertionError


@pytest.mark.parametrize(
    "architecture", ["gemma2", "gpt_oss", *thorough("llama", "mistral", "llama4_text")]
)
def test_requests_after_a_recording_get_their_own_embeddings(recorded, states, architecture):
    """Each kind of layer has blocks of its own, which other requests have not."""
    encoder, folder, replays = recorded(architecture, seconds=(1.0, 2.0) * 4)
    some = [own[:3] for own in requests(states, 8)]
    for request in some:
        assert compare(encoder.encode(request), unbatched(folder, request))[0] <= 1e-5
    assert len(replays) > REPEATED


def test_a_length_is_recorded_once_it_has_occurred_some_times(recorded, states):
    encoder, _, replays = recorded()
    request = sorted(states)[:3]
    before = []
    for _ in range(REPEATED + 2):
        encoder.encode(request)
        before.append(len(replays))
    # The self-test's batch may have had that length.
    assert before[-1] > before[-2] > 0


@pytest.mark.parametrize("fault", ["wrong", "waits"])
def test_a_recording_that_is_wrong_or_cannot_be_made_is_not_used(recorded, states, fault):
    encoder, folder, replays = recorded(fault=fault)
    for request in [sorted(states)[:3]] * 6:
        assert compare(encoder.encode(request), unbatched(folder, request))[0] <= 1e-5
    assert len(replays) == (1 if fault == "wrong" else 0), "it was tried once"


def test_a_recording_that_is_no_faster_is_not_used(recorded, states):
    encoder, _, replays = recorded(seconds=(1.0, 1.01) * 4)
    tried = []
    for _ in range(8):
        encoder.encode(sorted(states)[:3])
        tried.append(len(replays))
    assert tried[-1] == tried[-2] == 2


def test_long_passes_are_not_recorded(recorded, states):
    encoder, _, replays = recorded()
    states, count = sorted(states), 1
    while encoder.choice.engine.size([*encoder.prompts.tokenize(states[:count])]) <= 1024:
        count += 1
    many = states[:count]
    for _ in range(REPEATED + 1):
        encoder.encode(many)
    assert not replays


def test_a_variant_that_writes_nothing_is_found(recorded, states, monkeypatch):
    """So that the tests above can fail: each request would get the embeddings of the first."""
    encoder, folder, replays = recorded()
    request, other = two_of_a_length(encoder, states)
    for _ in range(REPEATED + 1):
        encoder.encode(request)
    assert replays
    monkeypatch.setattr(InPlaceLayout, "write", lambda *_: None)
    assert compare(encoder.encode(request), unbatched(folder, request))[0] <= 1e-5
    assert compare(encoder.encode(other), unbatched(folder, other))[0] > 1e-3
