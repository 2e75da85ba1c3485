"""Loads models onto a GPU that is not there: tensors of it know their shape and dtype only.

    python tests/gpu_without_numbers.py FOLDER DEVICE

prints what the host held meanwhile, in bytes: memory of its own, without pages of files. Such a GPU
takes what it is given and drops the numbers, so what is measured is what a load leaves with the
host. Files are read one tensor at a time; on a GPU a few are on their way at once.
"""

import json
import os
import sys
import threading
from contextlib import contextmanager
from unittest.mock import patch

import psutil
import torch
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily


def _read(tensor, device=None, dtype=None):
    """As transformers reads one tensor of a file, which is a real one."""
    with unset_fake_temporarily():
        tensor = tensor[...]
    return tensor.to(device=device, dtype=dtype)


@contextmanager
def pretended_gpu():
    """New tensors on `cuda` have no numbers; asking for one raises."""
    memory = {"mem_get_info": (80 << 30, 80 << 30), "memory_reserved": 0, "memory_allocated": 0}
    patches = [
        # Modes are of one thread.
        patch.dict(os.environ, HF_DEACTIVATE_ASYNC_LOAD="1"),
        patch("transformers.core_model_loading._materialize_copy", _read),
        patch("torch.cuda.current_device", lambda: 0),
        *(patch(f"torch.cuda.{name}", lambda *_, v=value: v) for name, value in memory.items()),
    ]
    for each in patches:
        each.start()
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield
    finally:
        for each in patches:
            each.stop()


class Peak:
    """The most memory of its own that this process held while within."""

    def __enter__(self):
        self._process = psutil.Process()
        self._before = self._held()
        self._most = self._before
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._most = max(self._most, self._held())
        self._ended.set()
        self._thread.join()

    @property
    def grown(self):
        return self._most - self._before

    def _held(self):
        memory = self._process.memory_info()
        return memory.rss - memory.shared

    def _watch(self):
        while not self._ended.wait(0.001):
            self._most = max(self._most, self._held())


def main(folder, device):
    from ebm_encode.loading.model import load_model  # noqa: PLC0415

    def load():
        return load_model(folder, dtype="bfloat16", device=device)

    def measured():
        load()  # what is imported on the way
        with Peak() as peak:
            model = load()
        tensors = [*model.base.parameters(), *model.base.buffers()]
        assert {tensor.device.type for tensor in tensors} == {device}
        return {
            "grown": peak.grown,
            "model": sum(tensor.numel() * tensor.element_size() for tensor in tensors),
        }

    if device == "cpu":
        found = measured()
    else:
        with pretended_gpu():
            found = measured()
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
