"""What a right server computes: a model folder run by plain transformers, one text at a time."""

import threading
from dataclasses import dataclass, field

import numpy as np
import torch
import transformers


@dataclass
class Run:
    """One prompt: ids [t], states [t, dim] after the final norm, logits [t, vocabulary]."""

    ids: list[int]
    states: np.ndarray
    logits: np.ndarray


@dataclass
class Model:
    """A causal LM in float32; `run` is safe to call from many threads."""

    folder: str
    _known: dict[tuple[int, ...], Run] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        torch.set_num_threads(1)
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(self.folder)
        found = transformers.AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32)
        self._model = found.eval()
        self.config = found.config
        self.dim = int(found.config.hidden_size)
        self.longest = int(found.config.max_position_embeddings)

    def ids(self, text: str, *, special: bool = True) -> list[int]:
        return self.tokenizer(text, add_special_tokens=special)["input_ids"]

    def text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids)

    def run(self, ids: list[int]) -> Run:
        key = tuple(ids)
        with self._lock:
            if key not in self._known:
                with torch.no_grad():
                    out = self._model.base_model(torch.tensor([ids])).last_hidden_state
                    logits = self._model.get_output_embeddings()(out)
                self._known[key] = Run(list(ids), out[0].numpy().copy(), logits[0].numpy().copy())
            return self._known[key]

    def states(self, ids: list[int]) -> np.ndarray:
        """The states [t, dim] of token ids; a copy."""
        return self.run(ids).states.copy()

    def greedy(self, ids: list[int], count: int) -> list[int]:
        """The next tokens of highest logit."""
        made: list[int] = []
        for _ in range(count):
            made.append(int(self.run(ids + made).logits[-1].argmax()))
        return made

    def logprobs(self, ids: list[int], made: list[int]) -> list[tuple[float | None, int, None]]:
        """Log probability of each token after the first, in SGLang's triples."""
        whole = ids + made
        logits = self.run(whole[:-1] if made else whole).logits.astype(np.float64)
        wide = logits - logits.max(-1, keepdims=True)
        logs = wide - np.log(np.exp(wide).sum(-1, keepdims=True))
        rest = [(float(logs[i - 1, token]), token, None) for i, token in enumerate(whole) if i]
        return [(None, whole[0], None), *rest]
