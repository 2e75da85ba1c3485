"""Work beside the model grows with the number of states, not with its square."""

import numpy as np
import pytest

from ebm_encode import Encoder
from ebm_encode.engines.output import Pass
from support import compare_nothing


@pytest.fixture
def free(llama, monkeypatch):
    """An encoder whose model costs nothing: its embeddings are drawn."""
    encoder = Encoder.load(llama, max_batch_tokens=500, batch_size=16)
    draw = np.random.default_rng(0)

    def forward(sequences, slots):
        slots.array[slots.places] = draw.standard_normal((len(sequences), encoder.dim))
        return Pass(slots, lambda: None)

    monkeypatch.setattr(encoder.choice.engine, "forward", forward)
    compare_nothing(encoder)
    return encoder


@pytest.fixture
def differences(monkeypatch):
    """How many numbers went through `np.diff`, which makes lengths of offsets."""
    counted = []
    diff = np.diff

    def counting(values, *arguments, **options):
        counted.append(len(values))
        return diff(values, *arguments, **options)

    monkeypatch.setattr(np, "diff", counting)
    return counted


def test_lengths_of_many_states_are_computed_a_few_times(free, differences):
    work = []
    for count in (500, 1000, 2000):
        differences.clear()
        free.encode([f"n : ℕ ⊢ {i} = n" for i in range(count)])
        work.append(sum(differences))
    assert work[0] <= 10 * 500
    assert work[2] <= 2.2 * work[1] <= 2.2**2 * work[0]
