"""`ebm-encode audit`: the row checks over any cache, whoever wrote it."""

import json
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from ebm_encode import _core


def audit(
    *caches: Path,
    examples: int = 5,
    json_output: Annotated[bool, Parameter(name="--json", negative="", show_default=False)] = False,
) -> int:
    """Check every row of one or more caches; exit with 1 if any row is bad.

    A bad row is not finite, has a norm of zero or far outside the cache's own, equals the row of
    another state, or differs from another row of the same state. Works on any Parquet file whose
    first column is text and whose second is a list of numbers.

    Args:
        caches: Caches: Parquet files, or folders of them.
        examples: How many bad rows of each kind to show.
        json_output: Print JSON.
    """
    if not caches:
        from ebm_encode.errors import ArgumentError  # noqa: PLC0415

        raise ArgumentError("audit: name at least one cache")
    reports = [_core.audit(cache, examples=examples) for cache in caches]
    if json_output:
        print(json.dumps(reports, ensure_ascii=False))  # noqa: T201
    else:
        for report in reports:
            _print(report)
    return 1 if any(report["bad"] for report in reports) else 0


def _print(report: dict[str, Any]) -> None:
    bad = sum(report["bad"].values())
    verdict = f"{bad:,} BAD ROWS" if bad else "all good"
    print(f"{report['path']}: {report['rows']:,} rows of {report['dim']} values: {verdict}")  # noqa: T201
    for kind, count in report["bad"].items():
        print(f"  {kind}: {count:,}")  # noqa: T201
        for example in report["examples"]:
            if example["kind"] == kind:
                print(f"    row {example['row']}, {example['state']}: {example['reason']}")  # noqa: T201
