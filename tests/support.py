"""Where things are, and the faults of real servers."""

from dataclasses import replace
from pathlib import Path

from ebm_encode.engines.compared import Compared

ROOT = Path(__file__).parent.parent
PROVER = ROOT / "target" / "release" / "ebm-prover"
SAMPLES = ROOT / "samples"
FILES = sorted(SAMPLES.glob("*.parquet"))


def zero_tail(rows):
    """Only the first prompt of a batch was answered."""
    rows[1:] = 0
    return rows


def first_copied(rows):
    """The answer to the first prompt was given to all."""
    rows[:] = rows[0]
    return rows


def compared_up_to(encoder, length, tokens_per_forward):
    """Has an encoder believe that its engine was compared for such sizes, and for no others."""
    selection = encoder.selection
    compared = Compared(length, tokens_per_forward)
    selection.choice = replace(selection.choice, compared=compared)


def compare_nothing(encoder):
    """Has an encoder compare no pass with the reference any more."""
    compared_up_to(encoder, 10_000, 10_000)


def compare_everything(encoder):
    """Has an encoder compare the next pass with the reference."""
    compared_up_to(encoder, 0, 0)
