"""One short session on an accelerator: which engines are exact there, and how fast they are.

    python benchmarks/gpu OUTPUT.json [--device cuda] [--seconds 480] [--size large]

Made to end within its time, whatever happens: results are written after each step, so a killed
session keeps what it measured. Two parts, taken in turns of rising cost:

- exact: small random models of many architectures, in float32, bfloat16 and float16. Which engine
  is chosen and why, and how far its embeddings are from the unbatched reference.
- fast: a Llama with random weights in bfloat16. States and tokens per second of each engine, with
  and without compiled layers, beside a plain padded Hugging Face loop and batch size 1; peak
  memory; and the latency of a search's request of 8 and 64 states.

`--device cpu --size tiny` tries the script without an accelerator.
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from ebm_encode import Encoder
from ebm_encode.engines.reference import compare

sys.path.insert(0, str(Path(__file__).parents[2] / "samples"))
import tiny_model

ARCHITECTURES = (
    "llama", "qwen3", "mistral", "gemma2", "gemma3_text", "gpt_oss", "deepseek_v3", "mixtral",
    "gpt2", "falcon", "mpt", "mamba2",
)  # fmt: skip
DTYPES = ("float32", "bfloat16", "float16")
SIZES = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2},
    "large": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
    },
    "7b": {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 30,
        "num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 128,
    },
}  # fmt: skip
BATCH = 32
ROUNDS = 3


class Session:
    """The results so far, in a file that is whole after each step."""

    def __init__(self, output: Path, seconds: float) -> None:
        self._output, self._end = output, time.monotonic() + seconds
        self.results: dict[str, Any] = {"steps": []}

    def run(self, name: str, work: Callable[[], dict[str, Any]]) -> None:
        """Does a step, if there is time, and notes what it gave or how it failed."""
        step: dict[str, Any] = {"step": name}
        if time.monotonic() >= self._end:
            step["skipped"] = "no time left"
        else:
            start = time.perf_counter()
            try:
                step |= work()
            except Exception as error:  # noqa: BLE001  (the next step may work)
                step |= {"error": f"{type(error).__name__}: {error}"[:500]}
                step["trace"] = traceback.format_exc(limit=-3)
            step["seconds"] = round(time.perf_counter() - start, 2)
        self.results["steps"].append(step)
        self._output.write_text(json.dumps(self.results, indent=1), "utf-8")
        print(json.dumps({k: v for k, v in step.items() if k != "trace"}), flush=True)


def machine(device: str) -> dict[str, Any]:
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    found: dict[str, Any] = {"python": platform.python_version(), **versions}
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        found |= {"name": properties.name, "memory": properties.total_memory}
    return found


def exact(folder: Path, architecture: str, dtype: str, device: str, states: list[str]) -> Any:
    """The chosen engine of a small model, and its errors against the unbatched reference."""
    load = {"device": device, "dtype": dtype}
    encoder = Encoder.load(str(folder), **load)
    reference = Encoder.load(str(folder), **load, engine="unbatched")
    found, expected = encoder.encode(states), reference.encode(states)
    error, cosine = compare(found, expected)
    return {
        "architecture": architecture,
        "dtype": dtype,
        "engine": encoder.choice.engine.name,
        "reason": encoder.choice.reason,
        "max_relative_error": error,
        "min_cosine": cosine,
    }


def timed(work: Callable[[], Any], device: str) -> float:
    """Median seconds of a few rounds, after one to warm up."""
    times = []
    for _ in range(ROUNDS + 1):
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def fast(
    folder: Path, device: str, dtype: str, states: list[str], options: dict[str, Any]
) -> dict[str, Any]:
    """States and tokens per second of one engine, latencies of requests, and peak memory."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    encoder = Encoder.load(str(folder), device=device, dtype=dtype, **options)
    loaded = time.perf_counter() - start
    tokens = int(encoder.prompts.tokenize(states).lengths.sum())
    seconds = timed(lambda: encoder.encode(states), device)
    result = {
        **options,
        "used": encoder.choice.engine.name,
        "load_seconds": round(loaded, 2),
        "states_per_second": round(len(states) / seconds, 1),
        "tokens_per_second": round(tokens / seconds),
        **{
            f"request_of_{count}_ms": round(
                1e3 * timed(lambda n=count: encoder.encode(states[:n]), device), 3
            )
            for count in (8, 64)
        },
    }
    if device.startswith("cuda"):
        result["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    return result


def padded_loop(folder: Path, device: str, dtype: str, states: list[str]) -> dict[str, Any]:
    """A plain Hugging Face loop over padded batches, sorted by length."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    model = transformers.AutoModel.from_pretrained(folder, dtype=getattr(torch, dtype)).to(device)
    model.eval()

    def run() -> None:
        with torch.inference_mode():
            ordered = sorted(states, key=len)
            for first in range(0, len(ordered), BATCH):
                batch = tokenizer(ordered[first : first + BATCH], return_tensors="pt", padding=True)
                batch = {k: v.to(device) for k, v in batch.items() if k != "token_type_ids"}
                hidden = model(**batch).last_hidden_state.float()
                mask = batch["attention_mask"][..., None]
                ((hidden * mask).sum(1) / mask.sum(1)).cpu()

    return {"states_per_second": round(len(states) / timed(run, device), 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=480)
    parser.add_argument("--size", default="large", choices=[*SIZES])
    parser.add_argument("--states", type=int, default=2000)
    arguments = parser.parse_args()
    device, session = arguments.device, Session(arguments.output, arguments.seconds)
    states = tiny_model.sample_states()
    many = (states * (1 + arguments.states // len(states)))[: arguments.states]
    many = [f"h{n} : True\n{state}" for n, state in enumerate(many)]  # distinct
    session.run("machine", lambda: machine(device))
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        tokenizer = tiny_model.train_tokenizer(states)
        large = tiny_model.make_model(
            root / "large", tokenizer, std=0.02, dtype=torch.bfloat16, **SIZES[arguments.size]
        )
        for engine in ("auto", "packed", "padded", "unbatched"):
            few = many if engine != "unbatched" else many[:64]
            options = {"engine": engine}
            session.run(
                f"fast {engine}", lambda f=few, o=options: fast(large, device, "bfloat16", f, o)
            )
        session.run("fast Hugging Face", lambda: padded_loop(large, device, "bfloat16", many))
        compiled = {"engine": "auto", "compile_layers": "on"}
        session.run("fast compiled", lambda: fast(large, device, "bfloat16", many, compiled))
        for architecture in ARCHITECTURES:
            folder = tiny_model.make_model(root / architecture, tokenizer, architecture)
            for dtype in DTYPES:
                session.run(
                    f"exact {architecture} {dtype}",
                    lambda f=folder, a=architecture, d=dtype: exact(f, a, d, device, states[:96]),
                )


if __name__ == "__main__":
    main()
