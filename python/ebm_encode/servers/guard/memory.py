"""Free memory of the GPUs of this machine, as the driver has it."""

import pynvml

from ebm_encode.errors import ServerError


def free_gpu_memory() -> int:
    """Free bytes of all GPUs together.

    Raises:
        ServerError: If this machine has no GPU that can be asked.
    """
    return sum(free_memory_of_gpus())


def free_memory_of_gpus() -> list[int]:
    """Free bytes of each GPU; asks the driver, and so takes no memory of a GPU itself.

    Raises:
        ServerError: If this machine has no GPU that can be asked.
    """
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise ServerError(
            f"free GPU memory cannot be measured on this machine ({error}), and a server that says"
            " it gave memory back may not have"
        ) from error
    try:
        gpus = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        return [int(pynvml.nvmlDeviceGetMemoryInfo(gpu).free) for gpu in gpus]
    except pynvml.NVMLError as error:
        raise ServerError(f"free GPU memory cannot be measured ({error})") from error
    finally:
        pynvml.nvmlShutdown()
