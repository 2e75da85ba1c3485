"""A process that was forked after a model was loaded encodes, or is refused at once."""

import multiprocessing
import os
import signal
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from ebm_encode import Encoder

STATES = ["n : ℕ\n⊢ n + 0 = n", "n : ℕ\n⊢ n = n", "⊢ True", "p q : Prop\nhp : p\n⊢ p ∨ q"] * 8
STATES = [f"h{i} : {state}" for i, state in enumerate(STATES)]
LIMIT = 120
"""Seconds, for a busy machine; what hangs does so for ever."""


def in_a_fork(work):
    """Runs something in a forked process; returns its exit code, or that of being killed."""
    child = os.fork()
    if child == 0:
        signal.alarm(LIMIT)  # ends it, if nothing else does
        try:
            work()
        except BaseException:  # noqa: BLE001 - the exit code says it
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def near(embeddings, right):
    return np.abs(embeddings - right).max() / np.abs(right).max() <= 1e-5


@pytest.mark.parametrize("engine", ["auto", "padded", "unbatched"])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("first", ["load", "encode"])
def test_a_forked_process_encodes(llama, engine, threads, first):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        encoder = Encoder.load(llama, engine=engine)
        right = encoder.encode(STATES) if first == "encode" else None

        def work():
            embeddings = encoder.encode(STATES)
            assert embeddings.shape == (len(STATES), encoder.dim)
            assert right is None or near(embeddings, right)
            assert in_a_fork(lambda: encoder.encode(STATES[:3])) == 0, "one forked from that"

        assert in_a_fork(work) == 0
        assert near(encoder.encode(STATES), encoder.encode(STATES)), "as does the process before"
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


class Encoded(Dataset):
    """Encodes in the worker."""

    def __init__(self, encoder):
        self.encoder = encoder

    def __len__(self):
        return len(STATES)

    def __getitem__(self, i):
        return self.encoder.encode([STATES[i]])[0]


def test_workers_of_a_data_loader_encode(llama):
    encoder = Encoder.load(llama)
    right = encoder.encode(STATES)
    loader = DataLoader(
        Encoded(encoder), batch_size=8, num_workers=2, multiprocessing_context="fork", timeout=LIMIT
    )
    assert near(torch.cat(list(loader)).numpy(), right)


def test_a_pool_of_processes_encodes(llama):
    encoder = Encoder.load(llama)
    right = encoder.encode(STATES)
    with multiprocessing.get_context("fork").Pool(
        2, initializer=_keep, initargs=(encoder,)
    ) as pool:
        embeddings = pool.map_async(_encode, [STATES[:16], STATES[16:]]).get(timeout=LIMIT)
    assert near(np.concatenate(embeddings), right)


_kept = []


def _keep(encoder):
    _kept.append(encoder)


def _encode(states):
    return _kept[-1].encode(states)
