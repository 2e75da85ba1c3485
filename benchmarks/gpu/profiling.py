"""Where the time of some passes goes, by torch's profiler."""

import time
from collections import Counter
from typing import Any

from speed import Encode
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

GROUPS = (
    # The first group of which a part is in the kernel's or operator's name.
    ("attention", ("flash", "fmha", "attention", "flex", "sdpa", "path_attn")),
    ("elementwise", ("triton_",)),  # fused by the compiler, and named after all that they do
    ("matmul", ("gemm", "nvjet", "cutlass", "xmma", "::mm", "addmm", "bmm", "matmul", "splitk")),
    ("copies", ("memcpy", "memset", "copy", "cat", "index", "gather", "scatter", "contiguous")),
)


def group_of(name: str) -> str:
    """The group of a kernel or operator; the rest is element-wise or a reduction."""
    lower = name.lower()
    return next((g for g, parts in GROUPS if any(p in lower for p in parts)), "elementwise")


def profiled(encode: Encode, states: list[str], *, device: str, top: int = 15) -> dict[str, Any]:
    """Shares of the time of kernel groups and of the kernels that take most, while states run.

    On a GPU of the kernels on it; idle is the time in which none ran. On a CPU of torch's
    operators, each without those that it calls; idle is the time outside of them, which is this
    package's, the tokenizer's and the Rust extension's.
    """
    on_gpu = device.startswith("cuda")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    encode(states)
    with profile(activities=activities) as found:
        start = time.perf_counter()
        encode(states)
        wall = time.perf_counter() - start
    kernels: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    if on_gpu:
        spans = []
        for event in found.events():
            annotation = getattr(event, "is_user_annotation", False)  # spans over kernels
            if event.device_type == DeviceType.CUDA and not annotation:
                kernels[event.name] += (event.time_range.end - event.time_range.start) / 1e6
                calls[event.name] += 1
                spans.append((event.time_range.start, event.time_range.end))
        busy = _covered(spans) / 1e6
    else:
        for event in found.key_averages():
            kernels[event.key] += event.self_cpu_time_total / 1e6
            calls[event.key] += event.count
        busy = sum(kernels.values())
    groups: Counter[str] = Counter()
    for name, seconds in kernels.items():
        groups[group_of(name)] += seconds
    shares = {group: seconds / wall for group, seconds in groups.most_common()}
    return {
        "of": "kernels on the device" if on_gpu else "operators of torch",
        "states": len(states),
        "seconds": wall,
        "shares": shares | {"idle": max(0.0, 1 - busy / wall)},
        "top": [
            {"name": name[:160], "group": group_of(name), "calls": calls[name], "share": s / wall}
            for name, s in kernels.most_common(top)
        ],
    }


def _covered(spans: list[tuple[float, float]]) -> float:
    """The time in which at least one of some spans was under way."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
