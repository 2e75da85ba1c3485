"""This package's engines on the large model."""

import time
from typing import Any

from corpus import STRETCH, blocks
from session import SkipError
from speed import Costs, Setting, in_bulk, measure

from ebm_encode import Encoder
from ebm_encode.errors import ModelError


class Ours:
    """Encoders of one loaded model: with the engine of choice, forced ones, and compiled layers.

    Args:
        setting: What all contenders have in common.

    Attributes:
        chosen: The encoder with the engine of choice.
        best: The fastest encoder so far.
        costs: What states cost.
        load_seconds: Time to load the model and choose the engine.
    """

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        start = time.perf_counter()
        self.chosen = Encoder.load(
            str(setting.folder), template=self._setting.template.name,
            device=setting.device, dtype=setting.dtype, overlong="truncate",
        )  # fmt: skip
        self.load_seconds = time.perf_counter() - start
        self.best, self._best_rate = self.chosen, 0.0
        self.costs = Costs(self.chosen, setting)

    def auto(self, count: int, seconds: float) -> dict[str, Any]:
        """The engine of choice, calibrated."""
        return self._measured("ebm-encode", self.chosen, count, seconds) | {
            "reason": self.chosen.choice.reason,
            "load_seconds": round(self.load_seconds, 2),
        }

    def forced(self, engine: str, count: int, seconds: float) -> dict[str, Any]:
        """One engine, whatever the choice; skipped if it is not exact for the model."""
        try:
            encoder = self._variant(engine=engine)
        except ModelError as refusal:
            raise SkipError(str(refusal)) from refusal
        return self._measured(f"ebm-encode, {engine}", encoder, count, seconds)

    def compiled(self, count: int, seconds: float) -> dict[str, Any]:
        """The engine of choice with compiled layers."""
        encoder = self._variant(compile_layers="on")
        return self._measured("ebm-encode, compiled layers", encoder, count, seconds)

    def many(self, count: int, seconds: float) -> dict[str, Any]:
        """The fastest encoder, over more states."""
        return self._measured("ebm-encode", self.best, count, seconds)

    def _variant(self, **options: Any) -> Encoder:
        """An encoder of the same weights in memory."""
        first = self.chosen
        return Encoder(
            first.model, first.prompts.template, pooling="mean", layer=-1, max_length=None,
            overlong="truncate", max_batch_tokens=None, batch_size=None, **options,
        )  # fmt: skip

    def _measured(self, name: str, encoder: Encoder, count: int, seconds: float) -> dict[str, Any]:
        end = time.monotonic() + seconds
        first = encoder.prompts.tokenize(self._setting.states[:4096])
        if encoder.tuning.calibration is None:
            encoder.calibrate(first)  # nothing on a CPU
        shares = encoder.choice.engine.name.startswith("shared-prefix")
        choose = _neighbours if shares else blocks
        found = measure(
            name, in_bulk(encoder), self._setting, self.costs, count, end=end, choose=choose
        )
        if found["states_per_second"] > self._best_rate:
            self.best, self._best_rate = encoder, found["states_per_second"]
        calibration = encoder.tuning.calibration
        return found | {
            "engine": encoder.choice.engine.name,
            "compiled": encoder.selection.compiled,
            "max_batch_tokens": encoder.budget.tokens,
            "calibration": None if calibration is None else calibration.to_json(),
        }


def _neighbours(states: list[str], count: int) -> list[str]:
    """About `count` of the states, in whole stretches, so that they share what all share."""
    return states[: max(count // STRETCH, 1) * STRETCH]
