"""The charts of the documentation show the recorded results."""

import runpy
from pathlib import Path

import pytest

CHARTS = runpy.run_path(str(Path(__file__).parent.parent / "benchmarks" / "charts.py"))["charts"]()


@pytest.mark.parametrize("path", CHARTS, ids=lambda path: path.name)
def test_the_chart_is_drawn_from_the_recorded_result(path):
    assert path.read_text(encoding="utf-8") == CHARTS[path]
