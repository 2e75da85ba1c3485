#!/bin/sh
# Installs a pack's wheels into a temporary folder, and measures:
#     sh benchmarks/gpu/run.sh FOLDER OUTPUT.json [options of `measure`]
# PYTHON chooses the Python that has torch and transformers (default: python3).
set -eu
here=$(dirname "$0")
python=${PYTHON:-python3}
pack=$1 output=$2
shift 2
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
"$python" "$here" install "$pack" --target "$site"
if [ -f "$pack/states.parquet" ]; then
    set -- --states "$pack/states.parquet" "$@"
fi
PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 "$python" "$here" measure "$output" "$@"
