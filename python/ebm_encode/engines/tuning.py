"""What is measured to be fastest on a device: engine, size of a pass, compiled layers or not.

Measured once for long work and once for the requests of a search, which are a few states each.
"""

import logging
import math
from dataclasses import replace
from typing import Any

from ebm_encode.engines.budget import Budget
from ebm_encode.engines.calibration import SIZES, Calibration, calibrate, seconds_of
from ebm_encode.engines.engine import Engine
from ebm_encode.engines.kept_settings import keep, kept
from ebm_encode.engines.memory import free_memory
from ebm_encode.engines.meter import Meter
from ebm_encode.engines.selection import Selection
from ebm_encode.engines.selftest import EngineChoice
from ebm_encode.errors import one_line
from ebm_encode.loading.model import Model
from ebm_encode.prompts.tokens import Tokens

log = logging.getLogger(__name__)

REQUEST = 32
"""Sequences of a search's request, as it is timed."""

_WORTH_TRYING = 30.0
"""Seconds of work below which trying other engines, which may compile kernels, cannot pay."""
_WORTH_COMPILING = 300.0
"""Seconds of work below which compiling a model's layers cannot pay."""
_AS_MUCH_ROOM = 0.9
"""The share of the memory that was free then that must be free now."""
_PAYS = 1.03
"""Another engine, or compiled layers, are used if they are faster by this."""


class Tuning:
    """Measures, and takes the settings of an earlier run.

    Args:
        model: The model.
        selection: The engine in use.
        budget: The most that one forward pass may hold, as the selection's engines have it.
        wanted: Whether there is anything to measure.
        applies_to: What settings are for, model and device, by name.
        kept_for: The software and options that they are kept for, by name; `None`: nothing is kept.

    Attributes:
        wanted: As given.
        calibration: What was measured, if it was.
    """

    def __init__(
        self,
        model: Model,
        selection: Selection,
        budget: Budget,
        *,
        wanted: bool,
        applies_to: dict[str, str],
        kept_for: dict[str, str] | None,
    ) -> None:
        self.wanted = wanted
        self.calibration: Calibration | None = None
        self._model, self._selection, self._budget = model, selection, budget
        self._applies_to = applies_to
        self._key = None if kept_for is None else applies_to | kept_for

    def calibrate(self, tokens: Tokens, *, times: float = 1.0) -> Calibration:
        """Takes the engine and the budget that are fastest for sequences like those to come.

        No embedding is made of it. Later calls of `Runner.run` divide sequences by the new budget.

        Args:
            tokens: Some of the sequences, at least one.
            times: How many times as much as these is to come.
        """
        selection, meter = self._selection, Meter(self._model.device)
        stretched = set(self._model.stretching(tokens.lengths))
        usable = tokens.select([i for i in range(len(tokens)) if i not in stretched])
        free = meter.free()
        with selection.lock:
            try:
                found = self._fastest(usable, times, meter)
            except Exception as error:  # noqa: BLE001  (a run meets it, too, and handles it)
                log.warning("sizes are not calibrated: %s", one_line(error))
                found = Calibration(self._budget.tokens, {})
        self.calibration = found
        if found.rate is not None and self._key is not None:
            room = None if math.isinf(free) else free
            keep(self._key, self.settings() | {"free_bytes": room})
        return found

    def start(self) -> None:
        """Takes the engine that an earlier process found fastest here for a search's requests."""
        found = self._kept()
        if found is not None and found["request_engine"] is not None:
            with self._selection.lock:
                choice = self._selection.candidate(found["request_engine"])
                if choice is not None:
                    self._selection.use(choice)

    def resume_kept(self, tokens: Tokens, *, times: float = 1.0) -> bool:
        """Takes what an earlier process measured here for as much work; returns whether one did.

        Not where less memory is free by now: another program has it, and other sizes are best.

        Args:
            tokens: As of `calibrate`.
            times: As of `calibrate`.
        """
        found = self._kept()
        if found is None or not self._has_room(found.get("free_bytes")):
            return False
        return self._covers(found, tokens, times) and self._take(found)

    def _kept(self) -> dict[str, Any] | None:
        return settings_of(kept(self._key)) if self.wanted and self._key is not None else None

    def _has_room(self, free: Any) -> bool:
        """Whether about as many bytes are free as were when settings were measured."""
        if free is None:  # the device did not say
            return True
        now = Meter(self._model.device).free()
        return isinstance(free, float) and now >= _AS_MUCH_ROOM * free

    def note(self) -> dict[str, Any]:
        """The settings, and what they are for; JSON values only."""
        return self._applies_to | self.settings()

    def settings(self) -> dict[str, Any]:
        """What was measured to be best, and what was measured for that; JSON values only."""
        found, requests = self.calibration, {}
        if found is not None:
            requests = found.requests
        return {
            "engine": self._selection.choice.engine.name,
            "max_batch_tokens": self._budget.tokens,
            "compiled": self._selection.compiled,
            "request_engine": min(requests, key=requests.__getitem__) if requests else None,
            "rate": None if found is None else found.compiled or found.rate,
            "tried_compiled": found is not None and found.compiled is not None,
        }

    def resume(self, note: dict[str, Any]) -> bool:
        """Takes the settings of an earlier run, so that embeddings are the same to the bit.

        Returns whether it did: not those of another model or device, nor damaged ones, nor those
        of an engine that is none for this model now.
        """
        ours = all(note.get(name) == value for name, value in self._applies_to.items())
        settings = settings_of(note)
        return self.wanted and ours and settings is not None and self._take(settings)

    def _take(self, settings: dict[str, Any]) -> bool:
        """Uses settings, if their engine is exact."""
        selection = self._selection
        with selection.lock:
            choice = selection.candidate(settings["engine"])
            if choice is None:
                return False
            selection.use(choice)
            self._budget.tokens = settings["max_batch_tokens"]
            if settings["compiled"] and selection.may_compile and not selection.compiled:
                candidate = selection.compiled_candidate()
                if candidate is not None:
                    selection.use(candidate)
        return True

    def _covers(self, settings: dict[str, Any], tokens: Tokens, times: float) -> bool:
        """Whether for so much work nothing would be measured that was not for these settings."""
        rate = settings["rate"]
        if rate is None:
            return False
        seconds = times * _through(self._selection.choice.engine, tokens) / rate
        engines = seconds < _WORTH_TRYING or settings["request_engine"] is not None
        compiled = seconds < _WORTH_COMPILING or settings["tried_compiled"]
        return engines and (compiled or not self._selection.tries_compiling)

    def _fastest(self, tokens: Tokens, times: float, meter: Meter) -> Calibration:
        """Measures sizes, then engines, then compiled layers, as far as the work is worth it."""
        selection = self._selection
        engine, dim = selection.choice.engine, selection.choice.dim
        found = calibrate(engine, self._budget, tokens, dim=dim, meter=meter)
        if found.rate is None or found.sample is None:
            return found
        seconds = times * _through(engine, tokens) / found.rate
        if seconds >= _WORTH_TRYING:
            found = self._fastest_engine(tokens, found, meter)
        if seconds >= _WORTH_COMPILING and selection.tries_compiling and found.rate is not None:
            found = replace(found, compiled=self._try_compiled(found, meter))
        return found

    def _fastest_engine(self, tokens: Tokens, found: Calibration, meter: Meter) -> Calibration:
        """Times every exact engine on the same sequences, and uses the fastest at its best size."""
        selection, budget = self._selection, self._budget
        sample = found.sample
        assert sample is not None
        request = sample.select(range(min(REQUEST, len(sample))))
        engines: dict[str, float] = {}
        requests: dict[str, float] = {}
        best = selection.choice
        for choice in selection.candidates():
            name, failed = choice.engine.name, False
            try:
                engines[name] = seconds_of(choice.engine, sample, dim=choice.dim, meter=meter)
                requests[name] = seconds_of(choice.engine, request, dim=choice.dim, meter=meter)
            except Exception as error:  # noqa: BLE001  (a run meets it, too, and handles it)
                log.info("engine %s is not timed: %s", name, one_line(error))
                failed = True
            if failed:
                free_memory()  # not where the exception is handled, which holds the tensors
                continue
            if engines[name] * _PAYS < engines.get(best.engine.name, math.inf):
                best = choice
        if best is not selection.choice:
            selection.use(best)
            log.info("engine %s is faster here and used from now on", best.engine.name)
            own = calibrate(best.engine, budget, tokens, dim=best.dim, meter=meter)
            if own.rate is None:  # it fills no pass: what it took for the sample has to do
                rate = _through(best.engine, sample) / engines[best.engine.name]
                own = Calibration(budget.tokens, {budget.tokens: rate}, sample=sample)
            found = own
        return replace(found, engines=engines, requests=requests)

    def _try_compiled(self, found: Calibration, meter: Meter) -> float | None:
        """Compiles the layers if that is faster; returns tokens per second, if measured."""
        assert found.rate is not None
        assert found.sample is not None
        candidate = self._selection.compiled_candidate()
        if candidate is None:
            return None
        rate = self._rate(candidate, found.sample, meter)
        if rate is not None and rate >= _PAYS * found.rate:
            self._selection.use(candidate)
            return rate
        del candidate
        free_memory()
        return rate

    def _rate(self, candidate: EngineChoice, sample: Tokens, meter: Meter) -> float | None:
        """Tokens per second through compiled layers; `None` if they cannot be run."""
        engine = candidate.engine
        try:
            seconds = seconds_of(engine, sample, dim=candidate.dim, meter=meter)
        except Exception as error:  # noqa: BLE001  (a compiler may raise anything)
            log.info("layers are not compiled: %s", one_line(error))
            return None
        return engine.size([sample[i] for i in range(len(sample))]) / seconds


def _through(engine: Engine, tokens: Tokens) -> int:
    """How many tokens an engine puts through the model for some sequences."""
    return sum(engine.size([tokens[i] for i in batch]) for batch in engine.plan(tokens))


def settings_of(note: Any) -> dict[str, Any] | None:
    """The measured settings that a note of an earlier process has; `None` if it has none to use.

    Args:
        note: JSON values, with those of `Tuning.settings` by name.
    """
    if not isinstance(note, dict):
        return None
    kinds = {
        "engine": str,
        "max_batch_tokens": int,
        "compiled": bool,
        "request_engine": str | None,
        "rate": float | None,
        "tried_compiled": bool,
    }
    sound = all(name in note and isinstance(note[name], kind) for name, kind in kinds.items())
    if not sound or isinstance(note["max_batch_tokens"], bool):
        return None
    return note if 0 < note["max_batch_tokens"] <= SIZES[-1] else None
