"""Checkpoints of the Trainer that can be trusted: each has a list of its files' digests.

The Trainer writes a checkpoint file by file, so one that a kill left half-written looks like the
others, and the Trainer would resume from it. The list is written when the checkpoint is complete,
and a checkpoint counts only if its files are those of the list.
"""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import blake3
from transformers import TrainerCallback

LIST = "complete.json"
_NAME = re.compile(r"checkpoint-(\d+)")


class Completed(TrainerCallback):  # type: ignore[misc]
    """Lists the files of a checkpoint once it is complete."""

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Called by the Trainer after it has written a checkpoint."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        unfinished = folder / f"{LIST}.unfinished"
        unfinished.write_text(json.dumps(_digests(folder)))
        unfinished.replace(folder / LIST)


def newest(work: Path) -> Path | None:
    """The newest complete checkpoint of a folder; the others are removed.

    The Trainer keeps two, and removes the older one before the newest is listed. So if one of the
    two is not whole, the other is.
    """
    named = ((_NAME.fullmatch(folder.name), folder) for folder in work.glob("checkpoint-*"))
    found = {int(name[1]): folder for name, folder in named if name}
    whole = [step for step, folder in found.items() if _is_complete(folder)]
    for step, folder in found.items():
        if step not in whole:
            shutil.rmtree(folder)
    return found[max(whole)] if whole else None


def _is_complete(folder: Path) -> bool:
    try:
        listed = json.loads((folder / LIST).read_text())
    except (OSError, ValueError):
        return False
    return bool(listed == _digests(folder))


def _digests(folder: Path) -> dict[str, str]:
    """BLAKE3 of each file, by its path in the folder."""
    files = (Path(base) / name for base, _, names in os.walk(folder) for name in names)
    return {
        str(file.relative_to(folder)): blake3.blake3(file.read_bytes()).hexdigest()
        for file in sorted(files)
        if not file.name.startswith(LIST)
    }
