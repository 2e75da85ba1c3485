"""Learning curves as a picture."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from ebm_encode.errors import ArgumentError

SUFFIXES = (".svg", ".png", ".pdf")


def draw_curves(
    path: str | os.PathLike[str],
    histories: Mapping[str, Sequence[Mapping[str, float]]],
    chance: Mapping[str, float],
) -> None:
    """Draws loss, sibling rank-1 and energy gap of each training by epoch.

    Args:
        path: The picture, .svg, .png or .pdf.
        histories: What each epoch measured, by the training's name.
        chance: Rank-1 of a random order, by question.
    """
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    loss, rank, gap = figure.subplots(1, 3)
    for name, history in histories.items():
        epochs = [epoch["epoch"] for epoch in history]
        loss.plot(epochs, [epoch["loss"] for epoch in history], label=name)
        gap.plot(epochs, [epoch["energy_gap"] for epoch in history], label=name)
        for question, style in (("provable", "-"), ("nearest", "--")):
            if question in chance:
                values = [epoch[question] for epoch in history]
                (line,) = rank.plot(epochs, values, style, label=f"{name}, {question}")
                rank.axhline(chance[question], linestyle=":", color="0.6", linewidth=0.8)
                line.set_gid(f"{name}-{question}")
    for axes, title in (
        (loss, "training loss"),
        (rank, "validation rank-1 among siblings\n(dotted: chance)"),
        (gap, "energy gap, not proved - proved"),
    ):
        axes.set_title(title, fontsize="medium")
        axes.set_xlabel("epoch")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize="x-small", frameon=False)
    save_figure(figure, path)


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Saves a picture that is there whole or not at all; the same data give the same bytes.

    Raises:
        ArgumentError: If the name has no suffix of a picture.
    """
    target = Path(path)
    if target.suffix not in SUFFIXES:
        raise ArgumentError(f"{target}: expected a name that ends in {', '.join(SUFFIXES)}")
    draft = target.with_name(f".{target.name}.{os.getpid()}{target.suffix}")
    metadata = {"Date": None} if target.suffix == ".svg" else {}
    try:
        with mpl.rc_context({"svg.hashsalt": "ebm-encode", "svg.fonttype": "none"}):
            figure.savefig(draft, metadata=metadata)
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
