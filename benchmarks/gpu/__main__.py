"""One short session on a GPU: which engines are exact there, and how fast they are.

    python benchmarks/gpu pack FOLDER                 # here: wheels for a machine without network
    bash benchmarks/gpu/run.sh FOLDER gpu.json        # there: install them, and measure
    python benchmarks/gpu measure gpu.json            # where everything is installed

See README.md beside this file. `--device cpu --size tiny` tries the measurement without a GPU.
"""

import argparse
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    # Each part imports only what its machine has.
    if "pack" in sys.argv[1:2]:
        import pack

        pack.add_options(commands.add_parser("pack"))
        return pack.pack(parser.parse_args())
    if "install" in sys.argv[1:2]:
        import install

        install.add_options(commands.add_parser("install"))
        return install.install(parser.parse_args())
    commands.add_parser("pack", help="put wheels and states into a folder")
    commands.add_parser("install", help="install what this machine lacks from such a folder")
    measuring_parser = commands.add_parser("measure", help="measure, with all there is")
    if "measure" in sys.argv[1:2]:
        # Before anything imports torch: the package sets how torch's idle threads wait.
        import measuring

        import ebm_encode  # noqa: F401

        measuring.add_options(measuring_parser)
        return measuring.measure(parser.parse_args())
    parser.parse_args()
    return 2


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    sys.exit(main())
