"""Peak memory of a process, as the kernel counts it."""

from pathlib import Path


def most_resident(process: int | str = "self") -> int:
    """Peak resident bytes of a process, 0 once it ended; `getrusage` would count its parent's too.

    Args:
        process: Its id.
    """
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    # A process that has ended and was not waited for has no such line.
    lines = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return sum(int(line.split()[1]) for line in lines) * 1024
