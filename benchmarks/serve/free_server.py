"""`ebm-encode serve` with an encoder that costs nearly nothing, if asked."""

import sys

from near_free import make_free

from ebm_encode.cli import main

if __name__ == "__main__":
    arguments = sys.argv[1:]
    if arguments[0] == "--free":
        make_free()
        arguments = arguments[1:]
    sys.exit(main(["serve", *arguments]))
