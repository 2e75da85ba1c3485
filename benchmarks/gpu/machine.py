"""The machine, the versions on it, and what its device can do at most."""

import importlib.metadata
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch
from packaging.requirements import Requirement

PEAKS = (
    # Part of the device's name; dense TFLOP/s in 16 bits with float32 sums, in float32 without
    # TF32; the source.
    ("H200 NVL", 835.5, 60.0, "NVIDIA H200 data sheet, dense is half of the value with sparsity"),
    ("H200", 989.5, 67.0, "NVIDIA H200 data sheet, dense is half of the value with sparsity"),
    ("H100 PCIe", 756.5, 51.0, "NVIDIA H100 data sheet, dense is half of the value with sparsity"),
    ("H100 NVL", 835.5, 60.0, "NVIDIA H100 data sheet, dense is half of the value with sparsity"),
    ("H100", 989.5, 67.0, "NVIDIA H100 data sheet (SXM), dense is half of that with sparsity"),
    ("A100", 312.0, 19.5, "NVIDIA A100 data sheet"),
)
DISTRIBUTIONS = (
    "ebm-encode", "torch", "transformers", "tokenizers", "safetensors", "numpy", "triton",
    "sentence-transformers", "pyarrow", "huggingface-hub",
)  # fmt: skip


def peak_flops(device_name: str, dtype: str) -> dict[str, Any] | None:
    """The data sheet's FLOP/s of a device in a dtype, with the source; `None` if unknown."""
    for part, sixteen, single, source in PEAKS:
        if part in device_name:
            peak = single if dtype == "float32" else sixteen
            return {"flops_per_second": peak * 1e12, "dtype": dtype, "source": source}
    return None


def measured_flops(device: str, dtype: str, width: int, inner: int) -> float:
    """FLOP/s of the fastest of some matmuls of a model's largest shape."""
    rows = 16384 if device.startswith("cuda") else 1024
    own = {"device": device, "dtype": getattr(torch, dtype)}
    left, right = torch.randn(rows, width, **own), torch.randn(width, inner, **own)
    out = torch.empty(rows, inner, **own)
    best, end = 0.0, time.perf_counter() + 0.5
    torch.mm(left, right, out=out)
    while time.perf_counter() < end:
        synchronize(device)
        start = time.perf_counter()
        torch.mm(left, right, out=out)
        synchronize(device)
        best = max(best, 2.0 * rows * width * inner / (time.perf_counter() - start))
    return best


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def facts(device: str, dtype: str) -> dict[str, Any]:
    """Hardware, versions, and which packages are older than ours asks for."""
    found: dict[str, Any] = {
        "device": device,
        "name": device_name(device),
        "peak": peak_flops(device_name(device), dtype),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "python": platform.python_version(),
        "linux": platform.release(),
        "versions": {name: version_of(name) for name in DISTRIBUTIONS},
        "older_than_required": older_than_required(),
    }
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "device_memory_bytes": properties.total_memory,
            "compute_capability": list(torch.cuda.get_device_capability(device)),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return found


def version_of(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def older_than_required() -> list[str]:
    """Installed packages that do not satisfy what ours asks for, as `torch 2.11 (>=2.15)`."""
    try:
        wanted = [Requirement(line) for line in importlib.metadata.requires("ebm-encode") or []]
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        return []
    found = []
    for requirement in wanted:
        version = version_of(requirement.name)
        optional = requirement.marker is not None and "extra" in str(requirement.marker)
        if (
            version
            and not optional
            and not requirement.specifier.contains(version, prereleases=True)
        ):
            found.append(f"{requirement.name} {version} ({requirement.specifier})")
    return found


def device_name(device: str) -> str:
    """Of the GPU, or of the processor."""
    if device.startswith("cuda"):
        return torch.cuda.get_devicedevice_name(device)
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def allocated(device: str) -> int:
    """Bytes of a GPU's memory that tensors take; 0 for a CPU."""
    return torch.cuda.memory_allocated(device) if device.startswith("cuda") else 0
