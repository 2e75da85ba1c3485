"""`ebm-encode inspect`: what a cache holds and what made it."""

import json
from typing import Annotated, Any

from ebm_encode import _core
from ebm_encode.cli.parameters import JSON, require_names


def inspect(
    cache: str,
    /,
    *,
    json_output: Annotated[bool, JSON] = False,
) -> int:
    """Show a cache's columns, encoder, provenance, size and norms.

    Args:
        cache: Parquet file, or a folder of them; also as a URL (s3://, gs://, file://).
        json_output: Print JSON.
    """
    require_names(CACHE=cache)
    files = _core.describe(cache)
    report = _core.audit(cache, examples=0)
    if json_output:
        print(json.dumps({"files": files, "audit": report}, ensure_ascii=False))  # noqa: T201
        return 0
    for file in files:
        _print_file(file)
    _print_rows(report)
    return 0


def _print_file(file: dict[str, Any]) -> None:
    _line("file", file["path"])
    _line("size", f"{file['bytes']:,} bytes, {file['row_groups']} row group(s)")
    _line("rows", f"{file['rows']:,} of {file['dim']} values")
    for position, (name, kind) in enumerate(file["columns"]):
        _line(f"column {position}", f"{name}: {kind}")
    footer = file["footer"]
    if footer is None:
        _line("encoder", "unknown: the file does not say which encoder made it")
        return
    _print_fields("identity", footer["identity"])
    runs = footer.get("runs") or [{"rows": footer["rows"], "provenance": footer["provenance"]}]
    for number, run in enumerate(runs, 1):
        count = f"run {number} of {len(runs)}, {run['rows']:,} rows" if len(runs) > 1 else ""
        _print_fields("provenance", run["provenance"], count)


def _print_fields(title: str, values: dict[str, Any] | None, about: str = "") -> None:
    _line(title, about)
    for name, value in _flat(values or {}):
        _line(f"  {name}", value)


def _print_rows(report: dict[str, Any]) -> None:
    norms = report["norms"]
    if norms is not None:
        _line("norms", f"{norms['min']:.4g} to {norms['max']:.4g}, median {norms['median']:.4g}")
    bad = ", ".join(f"{count} {kind}" for kind, count in report["bad"].items())
    _line("bad rows", bad or "none")


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    lines: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, dict):
            lines += _flat(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            lines.append((f"{prefix}{name}", text.replace("\n", "⏎")))
    return lines


def _line(name: str, value: str) -> None:
    print(f"{name:<34}  {value}".rstrip())  # noqa: T201
