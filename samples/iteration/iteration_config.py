"""The configuration of an iteration of the example, and its steps, run one after the other."""

import json
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from string import Template
from typing import Any

SCRIPTS = Path(__file__).parent

# Lists and texts are filled in as JSON, which TOML reads as its own.
CONFIG = Template("""\
[iteration]
folder = $folder  # records, logs and outputs

[steps.llm-train]
command = $fine_tune
inputs = $learned
outputs = ["{folder}/adapter"]

[steps.export]
command = $export
inputs = [$base, "{folder}/adapter"]
outputs = ["{folder}/model"]

[steps.encode.options]
model-path = "{folder}/model"
trajectories = $files
output = "{folder}/states.parquet"
device = "cpu"

[steps.train-head.options]
cache = "{folder}/states.parquet"
trajectories = $files
output = "{folder}/head.safetensors"

[steps.evaluate.options]
head = "{folder}/head.safetensors"
cache = "{folder}/states.parquet"
trajectories = $files
no-comparisons = true
json = true
""")

_COMMANDS = {"encode": "encode", "train-head": "train-head", "evaluate": "evaluate-head"}
_PLACES = {"encode": (), "train-head": ("cache",), "evaluate": ("head", "cache")}
"""The options of our own steps that are arguments without a name."""


_TOLD = 2000
"""Characters of a log that an error tells."""


class StepError(Exception):
    """A step failed."""


def write_config(folder: Path, base: Path, files: list[Path], steps: int) -> Path:
    """Writes the configuration of an iteration that learns from some recorded searches."""
    names = [str(file) for file in files]
    script = [sys.executable, str(SCRIPTS / "fine_tune.py"), "--model", str(base)]
    script += ["--trajectories", *names, "--output", "{folder}/adapter", "--steps", str(steps)]
    merge = [sys.executable, str(SCRIPTS / "export.py"), "--model", str(base)]
    merge += ["--adapter", "{folder}/adapter", "--output", "{folder}/model"]
    values = {
        "folder": str(folder),
        "fine_tune": [*script, "--batch", "16", "--rate", "4e-3", "--device", "cpu"],
        "learned": [str(base), *names],
        "export": [*merge, "--trajectories", *names],
        "base": str(base),
        "files": names,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "iteration.toml"
    path.write_text(
        CONFIG.substitute({k: json.dumps(v, ensure_ascii=False) for k, v in values.items()})
    )
    return path


def run_steps(config: Path) -> dict[str, float]:
    """Runs the steps of a configuration, each in a process; seconds of each.

    What a step prints goes to `NAME.out` and `NAME.log` in the iteration's folder.

    Raises:
        StepError: If one fails; those after it are not run.
    """
    read = tomllib.loads(config.read_text())
    folder, seconds = read["iteration"]["folder"], {}
    for name, step in read["steps"].items():
        command = step.get("command") or _own_command(name, step["options"])
        command = [part.replace("{folder}", folder) for part in command]
        started, place = time.monotonic(), Path(folder) / name
        out_path, log_path = place.with_suffix(".out"), place.with_suffix(".log")
        with out_path.open("w") as out, log_path.open("w") as log:
            done = subprocess.run(command, stdout=out, stderr=log, check=False)  # noqa: S603
        if done.returncode:
            told = log_path.read_text()[-_TOLD:]
            raise StepError(f"{name}: exit code {done.returncode}; {log_path} ends:\n{told}")
        seconds[name] = time.monotonic() - started
    return seconds


def _own_command(name: str, options: dict[str, Any]) -> list[str]:
    """The command of a step of this package."""
    command = [sys.executable, "-m", "ebm_encode", _COMMANDS[name]]
    command += [options[place] for place in _PLACES[name]]
    for option, value in options.items():
        if option in _PLACES[name]:
            continue
        values = value if isinstance(value, list) else [value]
        command += [f"--{option}", *([] if value is True else map(str, values))]
    return command
