"""Engines: ways to run token sequences through a model, one pooled row per sequence.

Each plans batches and runs one batch at a time; what to do about a lack of memory or a bad row is
the caller's concern. None is trusted before `choose_engine` has compared it with each sequence
alone.
"""

from ebm_encode.engines.budget import Budget
from ebm_encode.engines.calibration import Calibration, Memory, calibrate, rate_of
from ebm_encode.engines.choice import EngineChoice, choose_engine
from ebm_encode.engines.compared import Compared
from ebm_encode.engines.engine import Engine, Pooling
from ebm_encode.engines.padded import AloneEngine, PaddedEngine
from ebm_encode.engines.selection import Compile, EngineName, Selection
from ebm_encode.engines.tolerance import all_agree, compare
from ebm_encode.engines.windows import MaskedWindowEngine, WindowEngine

__all__ = [
    "AloneEngine",
    "Budget",
    "Calibration",
    "Compared",
    "Compile",
    "Engine",
    "EngineChoice",
    "EngineName",
    "MaskedWindowEngine",
    "Memory",
    "PaddedEngine",
    "Pooling",
    "Selection",
    "WindowEngine",
    "all_agree",
    "calibrate",
    "choose_engine",
    "compare",
    "rate_of",
]
