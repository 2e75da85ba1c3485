"""What a server should have answered, and a name for what it did answer."""

from dataclasses import dataclass

import numpy as np
import torch
import transformers

TOLERANCE = 2e-4  # of the largest value: engines in float32 that add in another order


def near(left: np.ndarray, right: np.ndarray) -> bool:
    """Whether two arrays of one shape are equal within the tolerance."""
    if left.shape != right.shape:
        return False
    bound = TOLERANCE * max(1.0, float(np.abs(right).max(initial=0)))
    return bool((np.abs(left - right) <= bound).all())


@dataclass
class Reference:
    """Texts, their token ids and last hidden states by plain transformers at batch size 1."""

    texts: list[str]
    ids: list[list[int]]
    states: list[np.ndarray]

    @classmethod
    def of(cls, folder: str, texts: list[str]) -> "Reference":
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        ids = [tokenizer(text)["input_ids"] for text in texts]
        with torch.no_grad():
            states = [model.base_model(torch.tensor([i])).last_hidden_state[0] for i in ids]
        return cls(texts, ids, [s.numpy() for s in states])

    def mean(self, index: int) -> np.ndarray:
        return self.states[index].mean(0)

    def verdict(self, index: int, rows: np.ndarray) -> str:
        """`right`, `empty`, `zero`, `cut` (own last rows), `foreign`, else `unknown`."""
        own = self.states[index]
        if rows.size == 0:
            return "empty"
        if near(rows, own):
            return "right"
        if not rows.any():
            return "zero"
        if len(rows) < len(own) and near(rows, own[-len(rows) :]):
            return "cut"
        return "foreign" if self._foreign(index, rows) else "unknown"

    def _foreign(self, index: int, rows: np.ndarray) -> bool:
        """Whether rows that are not this text's own are another text's."""
        mine = [row for row in rows if not _among(row, self.states[index])]
        others = [s for i, s in enumerate(self.states) if i != index]
        return bool(mine) and all(any(_among(row, s) for s in others) for row in mine)

    def described(self, index: int, rows: np.ndarray) -> str:
        """Whose the rows are, in runs: `own[1:92] + 2[1:2]`."""
        runs: list[tuple[str, int, int]] = []
        for row in rows:
            owner, place = self._owner(index, row, runs)
            if runs and runs[-1][0] == owner and runs[-1][2] == place:
                runs[-1] = (owner, runs[-1][1], place + 1)
            else:
                runs.append((owner, place, place + 1))
        return " + ".join(f"{o}[{a}:{b}]" for o, a, b in runs) or "no rows"

    def _owner(
        self, index: int, row: np.ndarray, runs: list[tuple[str, int, int]]
    ) -> tuple[str, int]:
        order = [index, *(i for i in range(len(self.states)) if i != index)]
        found = [
            ("own" if i == index else str(i), int(place))
            for i in order
            for place in np.flatnonzero(_close(row, self.states[i]))
        ]
        # The run goes on where it can: equal prefixes have equal rows.
        following = (runs[-1][0], runs[-1][2]) if runs else None
        if following in found:
            return following
        return found[0] if found else ("unknown", 0)


def _close(row: np.ndarray, states: np.ndarray) -> np.ndarray:
    bound = TOLERANCE * max(1.0, float(np.abs(row).max()))
    return np.abs(states - row).max(1) <= bound


def _among(row: np.ndarray, states: np.ndarray) -> bool:
    return bool(_close(row, states).any())


def prefill(item: dict) -> np.ndarray:
    """The rows [k, dim] of the prompt in an item of SGLang's reply; k is 0 where there are none."""
    states = item["meta_info"]["hidden_states"]
    if not states or not states[0]:
        return np.zeros((0, 0), np.float32)
    return np.asarray(states[0], np.float32)
