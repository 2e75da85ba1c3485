"""Examinations of a vLLM pooling server, and of a server of this package."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ebm_encode.doctor.diagnosis import Diagnosis, Finding
from ebm_encode.doctor.sglang import LENGTHS, Sequence32, StatesOf
from ebm_encode.errors import EbmEncodeError, ServerError, UnsafeServerError
from ebm_encode.servers.http import ServerClient
from ebm_encode.servers.remote import RemoteEncoder
from ebm_encode.servers.vllm.engine import START, embeddings_of
from ebm_encode.servers.vllm.info import read_info

_NEAR = 0.02


def examine_vllm(
    client: ServerClient, *, states_of: StatesOf | None, dtype: str | None
) -> Diagnosis:
    """Finds out how a pooling server pools, and whether batches change its answers.

    Args:
        client: The server.
        states_of: The model, if there is one to compare with.
        dtype: The compute dtype of that.
    """
    info = read_info(lambda path: client.get_json(path, missing_ok=True), client.url)
    found = Diagnosis(client.url, "vllm", dict(vars(info)))
    sleeping = client.get_json("/is_sleeping", missing_ok=True) or {}
    if sleeping.get("is_sleeping"):
        found.findings.append(
            Finding("whether it is awake", "it sleeps", right=False, advice="POST /wake_up")
        )
        found.not_asked.append("nothing was sent: requests to a server that sleeps hang")
        return found
    rng = np.random.default_rng()
    prompts = [rng.integers(10, 250, length).astype(np.uint32) for length in LENGTHS]

    def ask(sequences: list[Sequence32]) -> NDArray[np.float32]:
        return np.stack(embeddings_of(client, info, sequences))

    try:
        alone = np.concatenate([ask([prompt]) for prompt in prompts])
        together = ask(prompts)
    except (ServerError, UnsafeServerError) as error:
        why = str(error).partition("\n")[0]
        found.findings.append(Finding("embeddings of token ids", why, right=False, advice=START))
        return found
    found.findings.append(_equal("a batch of six", together, alone))
    found.findings.append(_equal("the same again", ask(prompts), alone))
    norms = np.linalg.norm(alone, axis=1)
    if np.abs(norms - 1).max() < 1e-3:  # noqa: PLR2004  (rounding of a norm)
        answer, right = "normalised, though the request says not to", False
    else:
        answer, right = "not normalised", True
    found.findings.append(Finding("its norms", answer, right, advice="" if right else START))
    if dtype is not None and info.dtype is not None:
        right = info.dtype == dtype
        advice = "" if right else f"start it with --dtype {dtype}, or compare with {info.dtype}"
        found.findings.append(Finding("its dtype", info.dtype, right, advice=advice))
    if info.pooling is not None:
        right = info.pooling.upper() == "MEAN"
        found.findings.append(
            Finding("how it says it pools", info.pooling, right, advice="" if right else START)
        )
    if states_of is None:
        found.not_asked.append("how it pools: give --model-path to know")
        if info.pooling is None:
            found.findings.append(
                Finding("how it pools", "it does not say", right=False, advice="give --model-path")
            )
    else:
        found.findings.append(_pooling(alone, [states_of(prompt) for prompt in prompts]))
    return found


def examine_remote(
    client: ServerClient,
    *,
    token: str | None,
    timeout: float,
    encode: Callable[[list[str]], NDArray[np.float32]] | None,
) -> Diagnosis:
    """Compares answers of a server of this package with one another, and with the model."""
    texts = ["⊢ True", "n : ℕ\n⊢ n + 0 = n", "p q : Prop\nhp : p\nhq : q\n⊢ p ∧ q"]
    try:
        with RemoteEncoder(client.url, token=token, timeout=timeout) as remote:
            about = {"version": remote.info.get("version"), "model": remote.info.get("model")}
            found = Diagnosis(client.url, "remote", about | {"engine": remote.info.get("engine")})
            alone = np.concatenate([remote.encode([text]) for text in texts])
            found.findings.append(_equal("a batch of three", remote.encode(texts), alone))
    except EbmEncodeError as error:
        found = Diagnosis(client.url, "remote", {})
        found.findings.append(Finding("embeddings of texts", str(error), right=False))
        return found
    if encode is None:
        found.not_asked.append("how it compares with the model: give --model-path to know")
    else:
        found.findings.append(_equal("the model in this process", encode(texts), alone))
    return found


def _equal(question: str, rows: NDArray[np.float32], alone: NDArray[np.float32]) -> Finding:
    apart = np.linalg.norm(rows - alone, axis=1) / np.linalg.norm(alone, axis=1)
    right = bool(np.isfinite(apart).all() and apart.max() <= _NEAR)
    answer = f"differs from one at a time by at most {apart.max():.1e}"
    return Finding(question, answer, right)


def _pooling(rows: NDArray[np.float32], states: list[NDArray[np.float32]]) -> Finding:
    """Which pooling of the model's states the embeddings are."""
    if rows.shape[1] != states[0].shape[1]:
        answer = f"{rows.shape[1]} values, and the model's states have {states[0].shape[1]}"
        return Finding("how it pools", answer, right=False)
    kinds = {
        "the mean of the last hidden states": np.stack([own.mean(axis=0) for own in states]),
        "the last token's state": np.stack([own[-1] for own in states]),
        "the first token's state": np.stack([own[0] for own in states]),
    }
    kinds |= {
        f"{name}, normalised": own / np.linalg.norm(own, axis=1, keepdims=True)
        for name, own in kinds.items()
    }
    apart = {
        name: float((np.linalg.norm(rows - own, axis=1) / np.linalg.norm(own, axis=1)).max())
        for name, own in kinds.items()
    }
    best = min(apart, key=lambda name: apart[name])
    if apart[best] > _NEAR:
        answer, right = "none of the poolings of this model's states: other weights?", False
    else:
        answer, right = best, best == "the mean of the last hidden states"
    return Finding("how it pools", answer, right, advice="" if right else START)
