"""A project with the folders and programs of the origin, small ones, and our scripts in it."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import httpx2

from iterations.play import HERE
from support import ROOT

_FINETUNE = """
set -euo pipefail
cd "$(dirname "$0")/.."
echo "llm-train $KILL_SERVER $LLM_BASE ${LORA_R:-default}" >> runs
mkdir -p "data/checkpoints/lora/iter_$1"
echo "adapter ${LORA_R:-default}" > "data/checkpoints/lora/iter_$1/adapter_model.safetensors"
"""
_EXPORT = """
import argparse, shutil
from pathlib import Path
parser = argparse.ArgumentParser()
for name in ("--checkpoint", "--base-model", "--output"):
    parser.add_argument(name, required=True)
parser.add_argument("--verify", action="store_true", required=True)
given = parser.parse_args()
with open("runs", "a") as file:
    file.write("export\\n")
shutil.copytree("exported", given.output)
adapter = Path(given.checkpoint, "adapter_model.safetensors").read_text()
Path(given.output, "weights").write_text(given.base_model + " " + adapter)
"""
# Writes what it was called with, and the model that the server has at that time.
_WRITES = """
import json, os, sys, urllib.request
from pathlib import Path
given = sys.argv[1:]
url = given[given.index(URL_OPTION) + 1]
with urllib.request.urlopen(url + "/v1/models", timeout=10) as reply:
    model = json.load(reply)["data"][0]["id"]
output = Path(given[given.index("--output") + 1])
model = os.path.realpath(Path(ROOT, "scripts", model))
output.write_text(json.dumps({"arguments": given, "model": model}))
with open(Path(ROOT, "runs"), "a") as file:
    file.write(NAME + " " + output.name + "\\n")
print(json.dumps({"solved": 1, "attempted": 2}))
"""
# Stands for a Python with SGLang: writes down how it was called.
_SGLANG = """
import os, sys
from pathlib import Path
given = sys.argv[1:]
Path(ROOT, "sglang").write_text("\\n".join([*given, os.environ.get("CUDA_VISIBLE_DEVICES", "")]))
port, model = (given[given.index(name) + 1] for name in ("--port", "--model-path"))
os.execv(sys.executable, [sys.executable, str(Path(ROOT, "server.py")), port, model, "faults"])
"""


class Project:
    """A folder with the origin's layout.

    Args:
        folder: Where; it must be empty.
        model: Folder that the export copies, beside its own file.
    """

    def __init__(self, folder: Path, model: str | None = None) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        shutil.copytree(ROOT / "scripts", folder / "scripts")
        for config in (folder / "scripts").glob("*.toml"):
            text = config.read_text()
            assert "settle-seconds = 5" in text
            config.write_text(text.replace("settle-seconds = 5", "settle-seconds = 0.3"))
        shutil.copy(HERE / "server.py", folder / "server.py")
        for name in ("bin", "python/training", "configs", "data/benchmarks", "data/sft"):
            (folder / name).mkdir(parents=True)
        if model is None:
            (folder / "exported").mkdir()
        else:
            shutil.copytree(model, folder / "exported")
        (folder / "scripts" / "run_finetune.sh").write_text(_FINETUNE)
        (folder / "python" / "training" / "export_llm.py").write_text(_EXPORT)
        (folder / "python" / "training" / "train_llm.py").write_text("")
        (folder / "configs" / "search.toml").write_text("")
        for name in ("sft/train.jsonl", "benchmarks/train_eval_theorems.json",
                     "benchmarks/minif2f_v2s_test.jsonl", "benchmarks/iter0_search_theorems.jsonl",
                     "benchmarks/iter1_search_theorems.jsonl"):  # fmt: skip
            (folder / "data" / name).write_text('{"theorem_name": "a", "statement": "True"}\n')
        self._program("cargo", _WRITES, URL_OPTION="--server-url", NAME="cargo")
        self._program("ebm-prover", _WRITES, URL_OPTION="--policy-url", NAME="ebm-prover")
        self._program("python-with-sglang", _SGLANG)
        (folder / "bin" / "ebm-encode").write_text(
            f'#!/usr/bin/env bash\nexec "{sys.executable}" -m ebm_encode "$@"\n'
        )
        for program in (folder / "bin").iterdir():
            program.chmod(0o755)

    def _program(self, name: str, text: str, **values: str) -> None:
        head = [f"#!{sys.executable}", f"ROOT = {str(self.folder)!r}"]
        head += [f"{key} = {value!r}" for key, value in values.items()]
        (self.folder / "bin" / name).write_text("\n".join([*head, text]))

    def run(self, script: str, *arguments: str, **environment: str) -> tuple[int, str]:
        """Runs a script from the project's root: its exit code, and what it prints."""
        done = subprocess.run(
            [f"scripts/{script}", *arguments],
            cwd=self.folder,
            env=os.environ | self.environment() | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=280,
            check=False,
        )
        return done.returncode, done.stdout

    def environment(self) -> dict[str, str]:
        """What the scripts find their programs and the server by."""
        return {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "PORT": str(self.port),
            "PYTHON": str(self.folder / "bin" / "python-with-sglang"),
        }

    def make_model(self, name: str) -> Path:
        """A folder that stands for a model."""
        folder = self.folder / "data" / "models" / "merged" / name
        folder.mkdir(parents=True)
        (folder / "weights").write_text(name)
        return folder

    def served(self) -> Path | None:
        """The model that the server has."""
        try:
            found = httpx2.get(f"http://127.0.0.1:{self.port}/v1/models", timeout=5).json()
        except httpx2.HTTPError:
            return None
        # It was started in the folder of the scripts.
        return Path(os.path.realpath(self.folder / "scripts" / found["data"][0]["id"]))

    def server(self) -> dict:
        """What is written down of the server's process."""
        return json.loads((self.folder / "data" / "server" / "started.json").read_text())

    def runs(self) -> list[str]:
        """The programs that ran, in order, since the last call."""
        path = self.folder / "runs"
        found = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return found

    def written(self, path: str) -> dict:
        """What a stand-in wrote."""
        return json.loads((self.folder / "data" / path).read_text())
