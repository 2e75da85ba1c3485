"""Every engine, one by one, on small models of many architectures, against plain transformers."""

import functools
import gc
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
import transformers

from ebm_encode import Encoder
from ebm_encode.engines.reference import compare
from ebm_encode.errors import EbmEncodeError
from ebm_encode.options import EngineName

ENGINES = [name for name in get_args(EngineName) if name != "auto"]
DTYPES = ("bfloat16", "float32", "float16")
STATES = 32
TOLERANCE = 1e-4
"""Largest relative error in float32."""
SIMILAR = 0.9995
"""Smallest cosine in 16 bits."""


def plain(folder: Path, dtype: str, device: str, states: list[str]) -> np.ndarray:
    """Means of plain transformers' last hidden states, each text at batch size 1."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, dtype=getattr(torch, dtype))
    model = model.eval().to(device)
    return unbatched(model, tokenizer, states)


def unbatched(model: Any, tokenizer: Any, states: list[str]) -> np.ndarray:
    """Means of a base model's last hidden states, each text at batch size 1."""
    rows = []
    # Else convolutions in float32 are computed in TF32.
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for state in states:
            ids = tokenizer(state, return_tensors="pt").input_ids.to(model.device)
            hidden = model(input_ids=ids, use_cache=False).last_hidden_state[0]
            rows.append(hidden.double().mean(0).cpu().numpy())
    return np.stack(rows).astype(np.float32)


def all_engines(
    folder: Path, architecture: str, dtype: str, device: str, states: list[str]
) -> list[dict[str, Any]]:
    """What every engine gives, and what `auto` chose."""
    expected = plain(folder, dtype, device, states)
    load = functools.partial(Encoder.load, str(folder), device=device, dtype=dtype)
    found = []
    for engine in ("auto", *ENGINES):
        one: dict[str, Any] = {"architecture": architecture, "dtype": dtype, "engine": engine}
        try:
            encoder = load(engine=engine)
            error, cosine = compare(encoder.encode(states), expected)
        except EbmEncodeError as refusal:
            one["refused"] = str(refusal).splitlines()[0][:300]
        else:
            right = error <= TOLERANCE if dtype == "float32" else cosine >= SIMILAR
            one |= {"relative_error": error, "cosine": cosine, "exact": bool(right)}
            if engine == "auto":
                one |= {"chosen": encoder.choice.engine.name, "reason": encoder.choice.reason[:300]}
            del encoder
        found.append(one)
    gc.collect()
    return found
