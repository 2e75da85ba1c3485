"""The result of an evaluation as a picture."""

import os
from typing import Any

from matplotlib.figure import Figure

from ebm_encode.heads.curves import save_figure
from ebm_encode.heads.ranking import WITHIN

SHOWN = (
    "chance", "policy", "shortest_text", "fewest_goals", "format_flags", "token_counts",
    "random_encoder", "zeroed", "linear", "head", "mixture",
)  # fmt: skip
REPLAYED = ("breadth_first", "policy", "shortest_text", "head", "mixture", "oracle")


def draw_evaluation(path: str | os.PathLike[str], report: dict[str, Any]) -> None:
    """Draws rank-1 among siblings with intervals, and what replayed searches solve.

    Args:
        path: The picture, .svg, .png or .pdf.
        report: As `evaluate_head` gives it.
    """
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    axes = figure.subplots(1, len(report["siblings"]) + 1)
    for place, (question, rankers) in enumerate(report["siblings"].items()):
        names = [name for name in SHOWN if name in rankers][::-1]
        values = [rankers[name]["rank1"] for name in names]
        ends = [
            rankers[name]["rank1_interval"] or (v, v) for name, v in zip(names, values, strict=True)
        ]
        errors = [
            [max(0.0, v - low) for v, (low, _) in zip(values, ends, strict=True)],
            [max(0.0, high - v) for v, (_, high) in zip(values, ends, strict=True)],
        ]
        colours = ["C0" if name in {"head", "mixture"} else "0.7" for name in names]
        axes[place].barh(names, values, xerr=errors, color=colours, ecolor="0.3")
        axes[place].set_xlabel("rank-1 among siblings (95 % interval over theorems)")
        axes[place].set_title(question, fontsize="medium")
        axes[place].axvline(rankers["chance"]["rank1"], linestyle=":", color="0.3")
    for name in REPLAYED:
        if name in report["replay"]:
            solved = [report["replay"][name][f"within_{limit}"] for limit in WITHIN]
            axes[-1].plot([str(limit) for limit in WITHIN], solved, marker="o", label=name)
    axes[-1].set_xlabel("expansions")
    axes[-1].set_title("solved in replay", fontsize="medium")
    axes[-1].legend(fontsize="x-small", frameon=False)
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)
