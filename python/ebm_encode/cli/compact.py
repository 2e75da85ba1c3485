"""`ebm-encode compact`: merges the parts of a cache into one."""

import json
import logging
from typing import Annotated

from ebm_encode import _core
from ebm_encode.cli.parameters import JSON, require_names

log = logging.getLogger(__name__)


def compact(
    cache: str,
    *,
    json_output: Annotated[bool, JSON] = False,
) -> int:
    """Merge all parts of a cache's folder into one.

    Each run that adds embeddings to a folder writes a new part. Compacting reads and validates all
    of them and keeps the newest embedding of each state. Readers see the former parts or the new
    one, never a mixture. Bad embeddings are skipped and listed with their reasons: those that fail
    the row checks, and the older of two that differ for a state. The exit code is 1 then.

    Args:
        cache: Folder with the parts of a cache, or its URL (s3://, gs://, file://).
        json_output: Print JSON.
    """
    require_names(CACHE=cache)
    before = len(_core.describe(cache))
    rows, left_out, written = _core.compact(cache)
    for state, reason in left_out:
        log.warning("skipped: %s: %s", state.splitlines()[0][:60] if state else "''", reason.reason)
    if json_output:
        report = {
            "path": cache,
            "rows": rows,
            "parts_before": before,
            "written": written,
            "left_out": [{"state": state, "reason": bad.reason} for state, bad in left_out],
        }
        print(json.dumps(report, ensure_ascii=False))  # noqa: T201
    elif written:
        print(f"{cache}: {rows:,} rows, {before:,} parts made one")  # noqa: T201
    else:
        print(f"{cache}: {rows:,} rows in one part; nothing to do")  # noqa: T201
    return 1 if left_out else 0
