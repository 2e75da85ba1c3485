"""A step of a test iteration: writes what its inputs say, and can fail, hang or be slow.

    step.py NAME OUTPUT INPUT...

The file `faults/NAME` holds a line for each run to come: `fail-start`, `fail-middle`, `fail-end`,
`hang-start`, `hang-middle`, `hang-end`, `full` (the disk); none for a good run. Each run adds a
line to `runs`.
"""

import errno
import hashlib
import os
import sys
import time
from pathlib import Path


def fault(place: str, kind: str) -> None:
    if kind == f"fail-{place}":
        print("CUDA error: an illegal memory access")
        sys.exit(3)
    if kind == f"hang-{place}":
        Path("hanging").write_text(str(os.getpid()))
        time.sleep(3600)
    if kind == "full" and place == "middle":
        raise OSError(errno.ENOSPC, "No space left on device")


def main(name: str, output: Path, *inputs: str) -> None:
    with Path("runs").open("a") as file:
        file.write(f"{name}\n")
    plan = Path("faults", name)
    kinds = plan.read_text().splitlines() if plan.exists() else []
    kind = kinds[0] if kinds else ""
    if kinds:
        plan.write_text("\n".join(kinds[1:]))
    print(f"{name} begins")
    fault("start", kind)
    digest = hashlib.sha256()
    for given in inputs:
        path = Path(given)
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            digest.update(file.read_bytes() if file.is_file() else b"")
    half = output.with_name(f"{output.name}.half")
    half.mkdir(parents=True, exist_ok=True)
    (half / "weights").write_text(digest.hexdigest())
    time.sleep(float(os.environ.get("STEP_SECONDS", "0")))
    fault("middle", kind)
    if output.exists():
        for file in output.iterdir():
            file.unlink()
        output.rmdir()
    half.rename(output)
    fault("end", kind)
    print('{"solved": 3, "attempted": 7}')


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
