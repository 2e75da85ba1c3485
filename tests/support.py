"""Where things are, and the maker of small models."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
PROVER = ROOT / "target" / "release" / "ebm-prover"
SAMPLES = ROOT / "samples"
