"""`ebm-encode serve` with an encoder that writes a constant embedding, if asked."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "bridge"))
from free import make_free

from ebm_encode.cli import main

if __name__ == "__main__":
    arguments = sys.argv[1:]
    if arguments[0] == "--free":
        make_free()
        arguments = arguments[1:]
    sys.exit(main(["serve", *arguments]))
