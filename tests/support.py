"""Where things are, and the faults of real servers."""

from pathlib import Path

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
