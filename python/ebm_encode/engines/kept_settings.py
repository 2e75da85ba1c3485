"""What was measured to be fastest, kept for processes with the same model, device and software.

One small JSON file for each, in the user's cache folder (`XDG_CACHE_HOME`, or the system's own). To
lose it costs a measurement.
"""

import json
import logging
from pathlib import Path
from typing import Any

import platformdirs

from ebm_encode import _core
from ebm_encode.digests import digest_json
from ebm_encode.errors import EbmEncodeError, one_line

log = logging.getLogger(__name__)


def keep(applies_to: dict[str, str], settings: dict[str, Any]) -> None:
    """Keeps settings.

    Args:
        applies_to: Model, device and versions, by name.
        settings: JSON values by name.
    """
    path = _path(applies_to)
    content = json.dumps({"applies_to": applies_to, "settings": settings}, indent=1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _core.write_file(str(path), content.encode())
    except (OSError, EbmEncodeError) as error:
        log.info("measured settings are not kept: %s", one_line(error))


def kept(applies_to: dict[str, str]) -> dict[str, Any] | None:
    """The settings that were kept for these; `None` if there are none that can be read."""
    try:
        note = json.loads(_path(applies_to).read_bytes())
    except (OSError, ValueError):
        return None
    same = isinstance(note, dict) and note.get("applies_to") == applies_to
    settings = note.get("settings") if same else None
    return settings if isinstance(settings, dict) else None


def _path(applies_to: dict[str, str]) -> Path:
    name = digest_json(applies_to).partition(":")[2][:32]
    return platformdirs.user_cache_path("ebm-encode") / "settings" / f"{name}.json"
