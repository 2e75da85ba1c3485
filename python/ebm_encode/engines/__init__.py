"""Engines: ways to run token sequences through a model, one pooled row per sequence.

Each plans batches and runs one batch at a time; what to do about a lack of memory or a bad row is
the caller's concern. None is used before `SelfTest.choose` has compared its hidden states with the
unbatched reference.
"""

from ebm_encode.engines.budget import Budget
from ebm_encode.engines.calibration import Calibration, Memory, calibrate, rate_of
from ebm_encode.engines.compared import Compared
from ebm_encode.engines.engine import Engine, Pooling
from ebm_encode.engines.noise import NoiseFloor
from ebm_encode.engines.padded import AloneEngine, PaddedEngine
from ebm_encode.engines.reference import Deviation, Reference, compare, deviation, embeddings_agree
from ebm_encode.engines.rows import Arrival, Rows
from ebm_encode.engines.selection import (
    Compile,
    EngineFactory,
    EngineName,
    Selection,
    default_engines,
)
from ebm_encode.engines.selftest import EngineChoice, SelfTest
from ebm_encode.engines.windows import MaskedWindowEngine, WindowEngine

__all__ = [
    "AloneEngine",
    "Arrival",
    "Budget",
    "Calibration",
    "Compared",
    "Compile",
    "Deviation",
    "Engine",
    "EngineChoice",
    "EngineFactory",
    "EngineName",
    "MaskedWindowEngine",
    "Memory",
    "NoiseFloor",
    "PaddedEngine",
    "Pooling",
    "Reference",
    "Rows",
    "Selection",
    "SelfTest",
    "WindowEngine",
    "calibrate",
    "compare",
    "default_engines",
    "deviation",
    "embeddings_agree",
    "rate_of",
]
