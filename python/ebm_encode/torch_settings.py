"""What a pass needs of torch's settings, which belong to the whole process.

A trainer beside the encoder, or an environment variable, may let float32 matmuls be computed in
TF32 or bfloat16, or whole layers by `autocast`; for convolutions and recurrent layers on a GPU
that is torch's own default. Embeddings would then be float32 in name only, and so
would the reference that they are compared with. And cuDNN's attention, where torch
prefers it, makes a plan for every new shape; lengths of states differ all the time.

A forked process computes with one thread of torch: it has no others.
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.backends.cuda import cudnn_sdp_enabled, enable_cudnn_sdp

_MATMULS = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
# Convolutions are between the attention layers of LFM2 and in Mamba; code that comes with a model
# may have recurrent layers.
_LAYERS = (
    torch.backends.cudnn.conv,
    torch.backends.cudnn.rnn,
    torch.backends.mkldnn.conv,
    torch.backends.mkldnn.rnn,
)
_EXACT = ("none", "ieee")
_DEVICES = ("cpu", "cuda", "mps", "xpu")


class _Changed:
    """The settings while passes run, in whatever threads; put back by the last one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._passes = 0
        self._put_back = ExitStack()
        self._forked = False

    def after_fork(self) -> None:
        """In the forked process: passes of other threads are not under way here."""
        self._lock = threading.Lock()  # another thread may have held the one of before
        self._passes = 0
        self._put_back.close()
        self._forked = True

    def enter(self) -> None:
        with self._lock:
            if self._forked:
                # The threads of torch and of OpenMP did not come along in the fork, and work given
                # to them would be waited for without end. So one thread does all the work here, as
                # in torch's own `DataLoader` workers.
                torch.set_num_threads(1)
                self._forked = False
            if self._passes == 0:
                self._put_back.callback(_exact_matmuls())
                self._put_back.callback(_exact_layers())
                self._put_back.callback(_no_plans())
            self._passes += 1

    def leave(self) -> None:
        with self._lock:
            self._passes -= 1
            if self._passes == 0:
                self._put_back.close()


_changed = _Changed()
os.register_at_fork(after_in_child=_changed.after_fork)


@contextmanager
def inference() -> Iterator[None]:
    """Passes run in this: without gradients, in the model's own dtype, attention unplanned."""
    _changed.enter()
    try:
        with torch.inference_mode(), _no_autocast():
            yield
    finally:
        _changed.leave()


@contextmanager
def _no_autocast() -> Iterator[None]:
    """Not in the dtype of a trainer's `autocast` around the call, which holds for this thread."""
    with ExitStack() as off:
        for device in _DEVICES:
            if torch.is_autocast_enabled(device):
                off.enter_context(torch.autocast(device, enabled=False))
        yield


def _exact_matmuls() -> Callable[[], None]:
    """Has float32 matmuls computed in float32; returns what puts the setting back."""
    before = [matmul.fp32_precision for matmul in _MATMULS]
    if all(precision in _EXACT for precision in before):
        return lambda: None
    try:
        old_name: str | None = torch.get_float32_matmul_precision()
    except RuntimeError:  # torch refuses if the setting was made by its newer names
        old_name = None
    torch.set_float32_matmul_precision("highest")

    def put_back() -> None:
        if old_name is not None:
            torch.set_float32_matmul_precision(old_name)
        _put_back(_MATMULS, before)

    return put_back


def _exact_layers() -> Callable[[], None]:
    """The same for convolutions and recurrent layers, of which torch has no setting by one name."""
    before = [layer.fp32_precision for layer in _LAYERS]
    if all(precision in _EXACT for precision in before):
        return lambda: None
    try:
        # Where a host reads the older name, it can do so during a pass, too.
        allowed: bool | None = torch.backends.cudnn.allow_tf32
        torch.backends.cudnn.allow_tf32 = False
    except RuntimeError:  # as above
        allowed = None
    for layer in _LAYERS:
        if layer.fp32_precision not in _EXACT:
            layer.fp32_precision = "ieee"

    def put_back() -> None:
        if allowed is not None:
            torch.backends.cudnn.allow_tf32 = allowed
        _put_back(_LAYERS, before)

    return put_back


def _put_back(settings: Sequence[Any], before: Sequence[str]) -> None:
    for setting, precision in zip(settings, before, strict=True):
        if setting.fp32_precision != precision:
            setting.fp32_precision = "none"  # it may have been of the setting above it
        if setting.fp32_precision != precision:
            setting.fp32_precision = precision


def _no_plans() -> Callable[[], None]:
    """Takes cuDNN's attention from the choices; returns what puts it back."""
    before = cudnn_sdp_enabled()
    enable_cudnn_sdp(enabled=False)
    return lambda: enable_cudnn_sdp(before)
