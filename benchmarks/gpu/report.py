"""The results in tables, for a terminal and for docs/benchmarks.md, and as a chart's bars."""

from dataclasses import dataclass
from typing import Any

NOT_MEASURED = "not measured"
BARS = {
    "ebm-encode": "ebm-encode",
    "ebm-encode, compiled layers": "ebm-encode, compiled layers",
    "batch size 1": "Hugging Face, batch size 1",
    "padded, sorted by length": "Hugging Face, padded, sorted by length",
    "sentence-transformers": "sentence-transformers",
    "the seed's recipe": "padded in text order, with logits",
}
"""The contenders that a chart shows, with the names that it gives them."""


@dataclass(frozen=True)
class Sheet:
    """A table of text.

    Attributes:
        title: What it tells.
        header: Names of the columns.
        rows: The cells.
    """

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]

    def markdown(self) -> str:
        """The table in Markdown, after its title."""
        lines = [self.header, tuple("---" for _ in self.header), *self.rows]
        table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
        return f"### {self.title}\n\n{table}\n"


def number(value: float | None, form: str = ",.0f", unit: str = "") -> str:
    return NOT_MEASURED if value is None else f"{value:{form}}{unit}"


def share(value: float | None) -> str:
    return number(None if value is None else 100 * value, ".1f", " %")


def sheets(results: dict[str, Any]) -> list[Sheet]:
    """All tables of some results; what was not measured is said to be so."""
    counts = sorted({one["of_states"] for one in results.get("speed", [])})
    found = [_speed(results, count) for count in counts] or [
        Sheet("Speed", ("result",), [(NOT_MEASURED,)])
    ]
    return [*found, _requests(results), _estimate(results), _profile(results), _exactness(results)]


def _speed(results: dict[str, Any], count: int) -> Sheet:
    some = [one for one in results["speed"] if one["of_states"] == count]
    ours = next((one for one in some if one["contender"] == "ebm-encode"), None)
    errors = {one["contender"]: one for one in results.get("agreement", [])}
    header = (
        "contender", "engine", "states run", "states/s", "tokens/s", "unique tokens/s", "TFLOP/s",
        "MFU", "share of matmul", "peak GiB", "1 - cosine", "relative time",
    )  # fmt: skip
    rows = [
        (
            one["contender"],
            one.get("engine", "") + (", compiled" if one.get("compiled") else ""),
            number(one["states"]),
            number(one["states_per_second"], ",.1f"),
            number(one["tokens_per_second"]),
            number(one["unique_tokens_per_second"]),
            number(one["flops_per_second"] / 1e12, ",.3g"),
            "unknown" if one["mfu"] is None else share(one["mfu"]),
            share(one["share_of_matmul"]),
            number(one["peak_bytes"] / 2**30, ",.2f"),
            number(1 - errors[one["contender"]]["cosine"], ".1e")
            if errors.get(one["contender"], {}).get("cosine") is not None
            else NOT_MEASURED,
            number(ours and ours["states_per_second"] / one["states_per_second"], ".2f"),
        )
        for one in some
    ]
    shared = next((s["tokens"] / s["unique_tokens"] for s in some if s["states"] == count), None)
    sharing = number(shared, ".2f", " tokens per unique token")
    return Sheet(f"Speed over {count:,} states, {sharing}", header, rows)


def _requests(results: dict[str, Any]) -> Sheet:
    header = ("states of a request", "what they are", "tokens", "calls", "median ms", "p99 ms")
    rows = [
        (
            str(one["states"]),
            one["what"],
            number(one["tokens"]),
            str(one["calls"]),
            number(1e3 * one["median_seconds"], ",.2f"),
            number(1e3 * one["p99_seconds"], ",.2f"),
        )
        for one in results.get("requests", [])
    ]
    return Sheet("Requests of a search", header, rows or [(NOT_MEASURED, *[""] * 5)])


def _estimate(results: dict[str, Any]) -> Sheet:
    header = ("states", "minutes, an estimate", "from")
    rows = [(NOT_MEASURED, "", "")]
    if one := results.get("estimate"):
        rows = [(f"{one['states']:,}", number(one["seconds"] / 60, ",.1f"), one["method"])]
    return Sheet("The whole corpus", header, rows)


def _profile(results: dict[str, Any]) -> Sheet:
    rows = []
    for one in results.get("profile", []):
        rows += [(f"all {group}", "", share(value)) for group, value in one["shares"].items()]
        rows += [(k["name"][:80], str(k["calls"]), share(k["share"])) for k in one["top"][:10]]
    return Sheet(
        "Where the time goes", ("kernels", "calls", "share"), rows or [(NOT_MEASURED, "", "")]
    )


def _exactness(results: dict[str, Any]) -> Sheet:
    cells: dict[tuple[str, str], dict[str, str]] = {}
    engines: dict[str, None] = {}
    for one in results.get("exactness", []):
        engines[one["engine"]] = None
        row = cells.setdefault((one["architecture"], one["dtype"]), {})
        row[one["engine"]] = _verdict(one)
    header = ("architecture", "dtype", *engines)
    rows = [
        (*key, *(row.get(engine, NOT_MEASURED) for engine in engines)) for key, row in cells.items()
    ]
    title = "Exactness: relative error in float32, 1 - cosine in 16 bits"
    return Sheet(title, header, rows or [(NOT_MEASURED, "")])


def _verdict(one: dict[str, Any]) -> str:
    if "refused" in one:
        return "refused"
    off = one["relative_error"] if one["dtype"] == "float32" else one["cosine"]
    if off is None:
        return "WRONG: not finite"
    off = off if one["dtype"] == "float32" else max(1 - off, 0.0)
    chosen = f" ({one['chosen']})" if "chosen" in one else ""
    return f"{'' if one['exact'] else 'WRONG: '}{off:.0e}{chosen}"


def chart(results: dict[str, Any]) -> dict[str, Any] | None:
    """Bars of states per second over the smallest number of states, as charts.py draws them."""
    speed = results.get("speed", [])
    count = min((one["of_states"] for one in speed), default=0)
    bars = [
        {"name": BARS[one["contender"]], "value": round(one["states_per_second"], 1)}
        for one in speed
        if one["of_states"] == count and one["contender"] in BARS
    ]
    if not bars or bars[0]["name"] != "ebm-encode":
        return None
    first, *others = bars
    model, machine = results["model"], results["machine"]
    return {
        "title": "Proof states embedded per second, higher is better",
        "subtitle": f"Llama of the size {model['size']}, {model['dtype']}, {machine['name']};"
        f" {count:,} Lean states",
        "bars": [first, *sorted(others, key=lambda bar: -bar["value"])],
    }


PICTURE = """<picture>
  <source media="(prefers-color-scheme: dark)" srcset="images/gpu-dark.svg">
  <img alt="{alt}" src="images/gpu-light.svg" width="760">
</picture>

"""


def section(results: dict[str, Any] | None) -> str:
    """The part of docs/benchmarks.md about GPUs."""
    if results is None:
        return (
            "Not measured: what only matters on a GPU is built (see"
            " [engines.md](engines.md#on-a-gpu)) and tested as far as\npossible without one. The"
            " commands below measure it in one session of at most 12 minutes.\n"
        )
    machine, model, settings = results["machine"], results["model"], results["settings"]
    versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items() if v)
    skipped = [f"{s['step']} ({s.get('skipped') or s['error']})" for s in results["steps"]
               if "skipped" in s or "error" in s]  # fmt: skip
    text = (
        f"{machine['name']}, Python {machine['python']}, {versions}; {settings['date']}."
        f" A Llama of the size {model['size']}\nwith random weights in {model['dtype']}.\n\n"
    )
    if drawn := chart(results):
        bars = ", ".join(f"{bar['name']} {bar['value']}" for bar in drawn["bars"])
        text = PICTURE.format(alt=f"Proof states per second: {bars}") + text
    if skipped:
        text += "Skipped or failed: " + "; ".join(skipped) + ".\n\n"
    return text + "\n".join(sheet.markdown() for sheet in sheets(results))


def show(results: dict[str, Any]) -> None:
    """Prints all tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=200)
    for sheet in sheets(results):
        table = Table(*sheet.header, title=sheet.title, title_justify="left")
        for row in sheet.rows:
            table.add_row(*row)
        console.print(table)
    for step in results["steps"]:
        if said := step.get("skipped") or step.get("error"):
            console.print(f"{step['step']}: {said}", markup=False)
