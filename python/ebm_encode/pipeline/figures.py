"""Key figures of what steps report."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_TAIL = 1 << 24
_OF_SEARCHES = ("solved", "attempted")


def figures_of(own: str | None, result: Path | None, log: Path) -> dict[str, float]:
    """The figures of a step that was done; those that are not there are left out.

    Args:
        own: The command of `ebm-encode` that it is, if it is one.
        result: Its JSON report, if it is.
        log: What another command printed; if its last line is a JSON object, that counts.
    """
    found = _last_object(log) if result is None else json.loads(result.read_text(encoding="utf-8"))
    take: Callable[[Any], Mapping[str, float | None]] = _TAKE.get(own or "", _search)
    return {name: value for name, value in take(found).items() if value is not None}


def _encode(found: Mapping[str, Any]) -> dict[str, float | None]:
    seconds, encoded = _number(found, "seconds"), _number(found, "encoded")
    return {
        "embeddings": _number(found, "rows"),
        "encoded": encoded,
        "embeddings/s": encoded / seconds if encoded and seconds else None,
        "quarantined": float(len(found.get("quarantined") or [])),
    }


def _train_head(found: Mapping[str, Any]) -> dict[str, float | None]:
    best, architecture = found.get("best"), str(found.get("architecture"))
    trained = best.items() if isinstance(best, dict) else ()
    chosen: dict[str, Any] = next(
        (figures for name, figures in trained if name.startswith(architecture)), {}
    )
    return {
        "validation rank-1": _number(chosen, "provable"),
        "energy gap": _number(chosen, "energy_gap"),
    }


def _evaluate(found: Mapping[str, Any]) -> dict[str, float | None]:
    return {
        "energy gap": _number(found, "trees", "head", "energy_gap"),
        "sibling rank-1": _number(found, "siblings", "provable", "head", "rank1"),
    }


def _audit(found: Any) -> dict[str, float | None]:
    caches = [cache for cache in found if isinstance(cache, dict)]
    bad = [count for cache in caches for count in cache.get("bad", {}).values()]
    return {
        "rows": sum(_number(cache, "rows") or 0 for cache in caches),
        "bad rows": float(sum(bad)),
    }


def _search(found: Mapping[str, Any]) -> dict[str, float | None]:
    return {name: _number(found, name) for name in _OF_SEARCHES}


_TAKE: dict[str, Callable[[Any], Mapping[str, float | None]]] = {
    "encode": _encode,
    "train-head": _train_head,
    "evaluate-head": _evaluate,
    "audit": _audit,
}


def _number(found: Any, *path: str) -> float | None:
    for name in path:
        found = found.get(name) if isinstance(found, dict) else None
    if not isinstance(found, int | float) or isinstance(found, bool):
        return None
    try:
        return float(found) if math.isfinite(found) else None
    except OverflowError:
        return None


def _last_object(log: Path) -> dict[str, Any]:
    with log.open("rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - _TAIL))
        lines = file.read().decode(errors="replace").splitlines()
    return next((found for line in reversed(lines) if (found := _object(line))), {})


def _object(text: str) -> dict[str, Any]:
    if not text.lstrip().startswith("{"):
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
