"""What is measured to be fastest on a device: the size of a pass, and whether to compile layers."""

import logging
from dataclasses import replace
from typing import Any

from ebm_encode.engines.budget import Budget
from ebm_encode.engines.calibration import Calibration, Memory, calibrate, rate_of
from ebm_encode.engines.memory import free_memory
from ebm_encode.engines.selection import Selection
from ebm_encode.errors import one_line
from ebm_encode.loading.model import Model
from ebm_encode.prompts.tokens import Tokens

log = logging.getLogger(__name__)

_WORTH_COMPILING = 300.0
"""Seconds of work below which compiling a model's layers cannot pay."""
_PAYS = 1.03
"""Compiled layers are used if they are faster by this."""


class Tuning:
    """Measures, and takes the settings of an earlier run.

    Args:
        model: The model.
        selection: The engine in use.
        budget: The most that one forward pass may hold, as the selection's engines have it.
        wanted: Whether there is anything to measure.

    Attributes:
        wanted: As given.
        calibration: What was measured, if it was.
    """

    def __init__(self, model: Model, selection: Selection, budget: Budget, *, wanted: bool) -> None:
        self.wanted = wanted
        self.calibration: Calibration | None = None
        self._model, self._selection, self._budget = model, selection, budget

    def calibrate(self, tokens: Tokens, *, times: float = 1.0) -> Calibration:
        """Sets the budget to what the device is fastest with, tried on sequences like those to be.

        No embedding is made of it. Later calls of `Runner.run` divide sequences by the new budget.

        Args:
            tokens: Some of the sequences, at least one.
            times: How many times as much as these is to come.
        """
        selection, memory = self._selection, Memory(self._model.device)
        engine, dim = selection.choice.engine, selection.choice.dim
        stretched = set(self._model.stretching(tokens.lengths))
        usable = tokens.select([i for i in range(len(tokens)) if i not in stretched])
        with selection.lock:
            try:
                found = calibrate(engine, self._budget, usable, dim=dim, memory=memory)
            except Exception as error:  # noqa: BLE001  (a run meets it, too, and handles it)
                log.warning("sizes are not calibrated: %s", one_line(error))
                found = Calibration(self._budget.tokens, {})
            if found.rate is not None and selection.tries_compiling:
                through = sum(engine.size([usable[i] for i in b]) for b in engine.plan(usable))
                if times * through / found.rate >= _WORTH_COMPILING:
                    found = replace(found, compiled=self._try_compiled(usable, found.rate, memory))
        self.calibration = found
        return found

    def settings(self) -> dict[str, Any]:
        """What was measured to be best; JSON values only."""
        return {"max_batch_tokens": self._budget.tokens, "compiled": self._selection.compiled}

    def resume(self, settings: dict[str, Any]) -> None:
        """Takes the settings of an earlier run, so that embeddings are the same to the bit."""
        self._budget.tokens = settings["max_batch_tokens"]
        selection = self._selection
        if settings["compiled"] and selection.may_compile and not selection.compiled:
            with selection.lock:
                candidate = selection.compiled_candidate()
                if candidate is not None:
                    selection.use(candidate)

    def _try_compiled(self, tokens: Tokens, rate: float, memory: Memory) -> float | None:
        """Compiles the layers if that is faster than `rate`; returns what was measured."""
        candidate = self._selection.compiled_candidate()
        if candidate is None:
            return None
        compiled = None
        try:
            compiled = rate_of(candidate.engine, tokens, dim=candidate.dim, memory=memory)
        except Exception as error:  # noqa: BLE001  (a compiler may raise anything)
            log.info("layers are not compiled: %s", one_line(error))
        if compiled is not None and compiled >= _PAYS * rate:
            self._selection.use(candidate)
            return compiled
        del candidate
        free_memory()
        return compiled
