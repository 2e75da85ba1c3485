"""Draws the charts of README.md and docs/benchmarks.md from the recorded results.

    python benchmarks/charts.py

Reads `benchmarks/results/*.json` and writes `docs/images/NAME-light.svg` and `NAME-dark.svg`. A few
bars need no plotting library, and the same results give the same bytes everywhere: a test compares
the charts with the committed ones.

`gpu.json` is what `benchmarks/gpu` gives: besides its chart, it fills a section of
docs/benchmarks.md, which says "not measured" without it. Other files hold a title and bars.
"""

import json
import sys
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

sys.path.insert(0, str(Path(__file__).parent / "gpu"))
import report

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
IMAGES = ROOT / "docs" / "images"
BENCHMARKS = ROOT / "docs" / "benchmarks.md"
# The section between these is written here.
BEGIN, END = "<!-- from benchmarks/results/gpu.json -->", "<!-- end of gpu.json -->"

WIDTH, LABELS, VALUES = 760, 290, 80  # pixels; bars get what labels and values leave
TOP, BAR, GAP = 64, 24, 10
FONT = 'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif"'
BOLD, RIGHT = ' font-weight="600"', ' text-anchor="end"'
# GitHub's own colours of text, muted text, the first bar and the other bars.
THEMES = {
    "light": ("#1f2328", "#59636e", "#1f6feb", "#aeb7c0"),
    "dark": ("#f0f6fc", "#9198a1", "#4493f8", "#484f58"),
}


def write(words: str, x: int, y: int, *, size: int, fill: str, rest: str = "") -> str:
    return f'<text x="{x}" y="{y}" font-size="{size}" fill="{fill}"{rest}>{escape(words)}</text>'


def draw(result: dict[str, Any], theme: str) -> str:
    """A bar chart as SVG, with a transparent background."""
    text, muted, first, other = THEMES[theme]
    bars = result["bars"]
    longest = max(bar["value"] for bar in bars)
    height = TOP + len(bars) * (BAR + GAP)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" {FONT}>',
        f"<title>{escape(result['title'])}</title>",
        write(result["title"], 0, 20, size=17, fill=text, rest=BOLD),
        write(result["subtitle"], 0, 42, size=13, fill=muted),
    ]
    for number, bar in enumerate(bars):
        y = TOP + number * (BAR + GAP)
        length = round((WIDTH - LABELS - VALUES) * bar["value"] / longest)
        box = f'x="{LABELS}" y="{y}" width="{length}" height="{BAR}" rx="3"'
        color, bold = (other, "") if number else (first, BOLD)
        base = y + BAR // 2 + 5
        lines += [
            write(bar["name"], LABELS - 10, base, size=14, fill=text, rest=RIGHT + bold),
            f'<rect {box} fill="{color}"/>',
            write(str(bar["value"]), LABELS + length + 8, base, size=14, fill=text, rest=bold),
        ]
    return "\n".join([*lines, "</svg>\n"])


def charts() -> dict[Path, str]:
    """The text of every chart, by its file."""
    found = {}
    for file in sorted(RESULTS.glob("*.json")):
        result = json.loads(file.read_text(encoding="utf-8"))
        if file.name == "gpu.json":
            result = report.chart(result)
            if result is None:  # nothing to compare was measured
                continue
        for theme in THEMES:
            found[IMAGES / f"{file.stem}-{theme}.svg"] = draw(result, theme)
    return found


def with_section(page: str, results: dict[str, Any] | None) -> str:
    """A page with its section about GPUs written from some results, or saying there are none."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{report.section(results)}{END}{after}"


def page() -> str:
    """docs/benchmarks.md as it should be."""
    recorded = RESULTS / "gpu.json"
    results = json.loads(recorded.read_text(encoding="utf-8")) if recorded.exists() else None
    return with_section(BENCHMARKS.read_text(encoding="utf-8"), results)


def main() -> None:
    for path, svg in charts().items():
        path.write_text(svg, encoding="utf-8")
        print(path.relative_to(ROOT))
    BENCHMARKS.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
