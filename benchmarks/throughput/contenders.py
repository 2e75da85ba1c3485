"""One way to compute embeddings, in its own process: `python contenders.py NAME FOLDER`.

The folder holds `model/`, `states.json`, `prompts.json` (the same in the template) and
`machine.json` (device, dtype and template). Embeddings go to `NAME.npy`, figures to `NAME.json`.
Each contender imports its packages inside its function, so that it can run in its own environment.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).parents[1]))
from peak_memory import most_resident

# Width, layers, width of the feed-forward part and of a head, in the proportions of Llama; 7b has
# the shape of DeepSeek-Prover-V2-7B.
SIZES = {
    "small": (384, 6, 1024, 64),
    "medium": (768, 12, 2048, 64),
    "large": (1536, 16, 4096, 64),
    "7b": (4096, 30, 11008, 128),
}
BATCH = 32
PART = 4096
"""States given to a contender at once: as many as a bulk run plans together."""
LONGEST = 2048
TURN = 2.0
"""Seconds of work on a CPU between two turns of matmuls."""

Encode = Callable[[list[str]], np.ndarray]


@dataclass(frozen=True)
class Setup:
    """The input of all contenders of a run.

    Attributes:
        model: The model's folder.
        states: What the contender gets: states, if it has the template itself, else prompts.
        device: torch device of the model.
        dtype: Compute dtype.
        template: Text around each state, for ours; the others get prompts.
    """

    model: str
    states: list[str]
    device: str
    dtype: str
    template: str = "raw"

    def causal(self) -> Any:
        """The model of transformers, with its language-model head."""
        import torch
        import transformers

        causal = transformers.AutoModelForCausalLM.from_pretrained(
            self.model, dtype=getattr(torch, self.dtype)
        )
        return causal.eval().to(self.device)


def ours(setup: Setup) -> Encode:
    """ebm-encode with its defaults: the self-test chooses the engine."""
    return _ours(setup, "auto")


def packed(setup: Setup) -> Encode:
    """ebm-encode without prefix sharing."""
    return _ours(setup, "packed")


def _ours(setup: Setup, engine: Any) -> Encode:
    from ebm_encode import Encoder

    encoder = Encoder.load(
        setup.model,
        template=setup.template,
        device=setup.device,
        dtype=setup.dtype,
        engine=engine,
        overlong="truncate",  # as the others do
    )
    # As a bulk run does before its first batch; nothing on a CPU.
    encoder.calibrate(encoder.prompts.tokenize(setup.states[:PART]), times=50)
    return encoder.encode


def unbatched(setup: Setup) -> Encode:
    """Batch size 1, base model only: the reference."""
    return padded(setup, size=1)


def sorted_by_length(setup: Setup) -> Encode:
    """Padded batches of 32, sorted by length, base model only."""
    return padded(setup, size=BATCH, by_length=True)


def classic_base(setup: Setup) -> Encode:
    """The classic recipe: padded batches of 32 in text order; base model only."""
    return padded(setup, size=BATCH)


def classic_logits(setup: Setup) -> Encode:
    """The classic recipe as found: padded batches of 32 in text order, logits, all layers."""
    return padded(setup, size=BATCH, head=True)


def padded(setup: Setup, *, size: int, by_length: bool = False, head: bool = False) -> Encode:
    """Batches of a size in text order or sorted by length; with logits of all tokens if asked."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(setup.model)
    causal = setup.causal()

    def encode(states: list[str]) -> np.ndarray:
        order = (
            sorted(range(len(states)), key=lambda i: len(states[i]))
            if by_length
            else range(len(states))
        )
        order = list(order)
        rows = np.empty((len(states), causal.config.hidden_size), np.float32)
        with torch.inference_mode():
            for start in range(0, len(order), size):
                some = order[start : start + size]
                batch = tokenizer(
                    [states[i] for i in some], return_tensors="pt", padding=True,
                    truncation=True, max_length=LONGEST, return_token_type_ids=False,
                ).to(setup.device)  # fmt: skip
                if head:
                    hidden = causal(**batch, output_hidden_states=True).hidden_states[-1]
                else:
                    hidden = causal.base_model(**batch, use_cache=False).last_hidden_state
                mask = batch["attention_mask"][..., None]
                summed = (hidden * mask).sum(1, dtype=torch.float32)
                rows[some] = (summed / mask.sum(1)).cpu().numpy()
        return rows

    return encode


def sentence_transformers(setup: Setup) -> Encode:
    """sentence-transformers with mean pooling over the same folder."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    dtype = {"dtype": getattr(torch, setup.dtype)}
    words = Transformer(setup.model, max_seq_length=LONGEST, model_kwargs=dtype)
    pooling = Pooling(words.get_word_embedding_dimension(), "mean")
    encoder = SentenceTransformer(modules=[words, pooling], device=setup.device)
    return lambda states: encoder.encode(states, batch_size=BATCH, show_progress_bar=False)


def radix_mlp(setup: Setup) -> Encode:
    """RadixMLP's folding: shared prefixes once in all layers but attention.

    The folding is the `radix-mlp` package's. Its own models are forks, so here transformers' model
    runs on the folded tokens, and the attention function unfolds and folds them.
    """
    import torch
    import transformers
    from radix_mlp import compute_fold_and_scatter
    from torch.nn.functional import scaled_dot_product_attention

    tokenizer = transformers.AutoTokenizer.from_pretrained(setup.model)
    base = setup.causal().base_model
    window: dict[str, Any] = {}

    def attention(_module, query, key, value, _mask, *, scaling=None, **_):
        scatter, fold, ends = window["scatter"], window["fold"], window["ends"]
        full = [part.index_select(2, scatter) for part in (query, key, value)]
        parts = [
            scaled_dot_product_attention(
                *(part[:, :, start:end] for part in full), is_causal=True, scale=scaling
            )
            for start, end in pairwise(ends)
        ]
        return torch.cat(parts, dim=2).index_select(2, fold).transpose(1, 2).contiguous(), None

    transformers.AttentionInterface.register("radix_mlp", attention)
    base.config._attn_implementation = "radix_mlp"  # noqa: SLF001

    def encode(states: list[str]) -> np.ndarray:
        rows = np.empty((len(states), base.config.hidden_size), np.float32)
        sequences = tokenizer(states, truncation=True, max_length=LONGEST)["input_ids"]
        order = sorted(range(len(states)), key=lambda i: sequences[i])
        while order:
            some: list[int] = []
            while order and (
                not some or sum(len(sequences[i]) for i in [*some, order[-1]]) <= 16384
            ):
                some.append(order.pop())
            flat = np.concatenate([sequences[i] for i in some]).astype(np.uint32)
            lengths = [len(sequences[i]) for i in some]
            positions = np.concatenate([np.arange(n) for n in lengths]).astype(np.uint32)
            ends = np.concatenate([[0], np.cumsum(lengths)])
            ids, places, scatter, fold = compute_fold_and_scatter(
                flat, positions, ends.astype(np.uint32)
            )
            window["scatter"] = torch.from_numpy(scatter.astype(np.int64)).to(setup.device)
            window["fold"] = torch.from_numpy(fold.astype(np.int64)).to(setup.device)
            window["ends"] = ends.tolist()
            with torch.inference_mode():
                hidden = base(
                    input_ids=torch.from_numpy(ids.astype(np.int64))[None].to(setup.device),
                    position_ids=torch.from_numpy(places.astype(np.int64))[None].to(setup.device),
                    use_cache=False,
                ).last_hidden_state[0]
                whole = hidden[window["scatter"]]
                for i, start, end in zip(some, ends[:-1], ends[1:], strict=True):
                    rows[i] = whole[start:end].mean(0, dtype=torch.float32).cpu().numpy()
        return rows

    return encode


def vllm(setup: Setup) -> Encode:
    """Mean pooling by vLLM's pooling runner."""
    from vllm import LLM
    from vllm.config import PoolerConfig

    engine = LLM(
        setup.model, runner="pooling", convert="embed", dtype=setup.dtype, max_model_len=LONGEST,
        pooler_config=PoolerConfig(pooling_type="MEAN", use_activation=False),
        disable_log_stats=True, gpu_memory_utilization=0.4,
    )  # fmt: skip

    def encode(states: list[str]) -> np.ndarray:
        outputs = engine.embed(
            states, use_tqdm=False, tokenization_kwargs={"truncate_prompt_tokens": LONGEST}
        )
        return np.asarray([output.outputs.embedding for output in outputs], np.float32)

    return encode


CONTENDERS: dict[str, Callable[[Setup], Encode]] = {
    "ours": ours,
    "packed": packed,
    "unbatched": unbatched,
    "sorted-by-length": sorted_by_length,
    "sentence-transformers": sentence_transformers,
    "radix-mlp": radix_mlp,
    "vllm": vllm,
    "classic-base": classic_base,
    "classic-logits": classic_logits,
}

OURS = ("ours", "packed")
"""Those that put the template around a state themselves."""


class Peak:
    """FLOP/s that matmuls of the model's largest shape reach while the contender runs.

    Matmuls take turns with the contender's work, so that both meet the same noise of the machine; a
    single fast moment says nothing of minutes of work.

    Attributes:
        best: FLOP/s of the fastest matmul.
        bytes: Memory of its matrices.
        device: torch device of the matrices.
    """

    def __init__(self, width: int, inner: int, setup: Setup) -> None:
        import torch

        self.device = setup.device
        own = {"device": setup.device, "dtype": getattr(torch, setup.dtype)}
        rows = 4096 if setup.device == "cpu" else 16384
        self._left, self._right = torch.randn(rows, width, **own), torch.randn(width, inner, **own)
        self._out = torch.empty(rows, inner, **own)
        self._each = 2 * rows * width * inner
        matrices = (self._left, self._right, self._out)
        self.bytes = sum(matrix.nbytes for matrix in matrices)
        self._wait = torch.cuda.synchronize if setup.device == "cuda" else lambda: None
        self._count, self._seconds, self.best = 0, 0.0, 0.0

    @property
    def sustained(self) -> float:
        """FLOP/s of all matmuls together."""
        return self._count * self._each / self._seconds

    def measure(self, seconds: float) -> None:
        """Runs matmuls for some seconds."""
        import torch

        torch.mm(self._left, self._right, out=self._out)  # lets the contender's threads fall asleep
        self._wait()
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            start = time.perf_counter()
            torch.mm(self._left, self._right, out=self._out)
            self._wait()
            taken = time.perf_counter() - start
            self._count += 1
            self._seconds += taken
            self.best = max(self.best, self._each / taken)


@contextmanager
def taking_turns(peak: Peak) -> Iterator[list[float]]:
    """Runs matmuls after a forward pass on a CPU, every few seconds.

    Yields the list of seconds that this took. vLLM's passes are in another process.
    """
    from torch.nn.modules.module import register_module_forward_hook

    pauses: list[float] = []
    last = time.perf_counter()

    def turn(module: Any, *_: Any) -> None:
        nonlocal last
        start = time.perf_counter()
        if type(module).__name__ == "LlamaModel" and start - last > TURN:
            peak.measure(TURN / 10)
            last = time.perf_counter()
            pauses.append(last - start)

    if peak.device != "cpu":  # a pass still runs when its call returns
        yield pauses
        return
    handle = register_module_forward_hook(turn)
    try:
        yield pauses
    finally:
        handle.remove()


def cost(model: str, states: list[str]) -> tuple[int, int, float]:
    """Tokens, unique tokens after prefix sharing, and the FLOPs that the unique tokens take.

    In every layer: twice its weights for each unique token, and four times the width for each pair
    of a unique token and a token that it attends to.
    """
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    config = transformers.AutoConfig.from_pretrained(model)
    sequences = tokenizer(states, truncation=True, max_length=LONGEST)["input_ids"]
    width, inner, depth = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    nodes = pairs = 0
    before: list[int] = []
    for sequence in sorted(sequences):
        same = next(
            (i for i, (a, b) in enumerate(zip(before, sequence, strict=False)) if a != b),
            min(len(before), len(sequence)),
        )
        nodes += len(sequence) - same
        pairs += sum(range(same + 1, len(sequence) + 1))
        before = sequence
    flops = depth * (2 * nodes * (4 * width**2 + 3 * width * inner) + 4 * width * pairs)
    return sum(map(len, sequences)), nodes, float(flops)


def _most_memory(setup: Setup, peak: Peak) -> float:
    """Peak memory in bytes: of the device; on a CPU, of this process and its children.

    Children, because vLLM runs its model in one.
    """
    if setup.device == "cpu":
        import psutil

        own = psutil.Process()
        processes = [own, *own.children(recursive=True)]
        return sum(most_resident(process.pid) for process in processes) - peak.bytes
    import torch

    return torch.cuda.max_memory_allocated() - peak.bytes


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["HF_HUB_OFFLINE"] = "1"
    prompts = json.loads((folder / "prompts.json").read_text())
    # Markers of the template that a state spells would be plain text to ours.
    states = json.loads((folder / "states.json").read_text()) if name in OURS else prompts
    model = str(folder / "model")
    machine = json.loads((folder / "machine.json").read_text())
    setup = Setup(model, states, machine["device"], machine["dtype"], machine["template"])
    config = json.loads((folder / "model" / "config.json").read_text())
    encode = CONTENDERS[name](setup)
    # The longest too: ours compares the longest sequence with the reference once in a corpus.
    encode([states[0], max(states, key=len)])
    peak = Peak(config["hidden_size"], config["intermediate_size"], setup)
    parts, seconds = [], 0.0
    for first in range(0, len(states), PART):
        peak.measure(0.5)
        start = time.perf_counter()
        with taking_turns(peak) as pauses:
            parts.append(encode(states[first : first + PART]))
        seconds += time.perf_counter() - start - sum(pauses)
    peak.measure(0.5)
    rows = np.concatenate(parts)
    megabytes = _most_memory(setup, peak) / 2**20
    np.save(folder / f"{name}.npy", rows)
    tokens, nodes, flops = cost(model, prompts)
    figures = {
        "states": len(states), "seconds": seconds, "tokens": tokens, "nodes": nodes,
        "flops": flops, "sustained": peak.sustained, "best": peak.best, "megabytes": megabytes,
    }  # fmt: skip
    (folder / f"{name}.json").write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
