"""`ebm-encode audit`: the row checks over any cache, of any writer."""

import json
import logging
from typing import Annotated, Any

from ebm_encode import _core
from ebm_encode.cli.parameters import JSON, require_names, whole
from ebm_encode.errors import ArgumentError, EbmEncodeError

log = logging.getLogger(__name__)


def audit(
    *caches: str,
    examples: Annotated[int, whole(at_least=0)] = 5,
    json_output: Annotated[bool, JSON] = False,
) -> int:
    """Validate every row of one or more caches; exit with 1 if any row is bad.

    A bad row holds NaN or infinity, a zero vector, a norm outlier, a copy of another state's
    embedding, or an embedding that differs from another row of the same state; a malformed one has
    a null, no values, or another length than the others. Works on any Parquet file whose first
    column is text and whose second is a list of numbers. Files that are no cache are
    reported, the others are audited, and the exit code is 2.

    Args:
        caches: Parquet files, or folders of them; also as URLs (s3://, gs://, file://).
        examples: Bad rows of each kind to show.
        json_output: Print JSON.
    """
    if not caches:
        raise ArgumentError("audit: name at least one cache")
    require_names(CACHES=caches)
    reports: list[dict[str, Any]] = []
    for cache in caches:
        try:
            report = _core.audit(cache, examples=examples)
        except EbmEncodeError as error:
            report = {"path": cache, "error": str(error)}
        reports.append(report)
        if "error" in report:
            log.error("%s", report["error"])
        elif not json_output:
            _print(report)
    if json_output:
        print(json.dumps(reports, ensure_ascii=False))  # noqa: T201
    if any("error" in report for report in reports):
        return 2
    return 1 if any(report["bad"] for report in reports) else 0


def _print(report: dict[str, Any]) -> None:
    bad = sum(report["bad"].values())
    verdict = f"{bad:,} BAD ROWS" if bad else "all good" if report["rows"] else "nothing to check"
    print(f"{report['path']}: {report['rows']:,} rows of {report['dim']} values: {verdict}")  # noqa: T201
    for kind, count in report["bad"].items():
        print(f"  {kind}: {count:,}")  # noqa: T201
        for example in report["examples"]:
            if example["kind"] == kind:
                print(f"    row {example['row']}, {example['state']}: {example['reason']}")  # noqa: T201
