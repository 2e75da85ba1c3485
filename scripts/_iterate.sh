# Sourced by the scripts beside it: what they have in common. They run `ebm-encode iterate`.
# shellcheck shell=bash

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(dirname "$here")"

fail() {
    printf 'error: %s\n' "$@" >&2
    exit 2
}

# An iteration's number, without leading zeros.
require_number() {
    [[ "${1:-}" =~ ^(0|[1-9][0-9]*)$ ]] || fail "\`${1:-}\`: expected the number of an iteration" \
        "hint: ${0##*/} 1"
}

# Environment variables that mean nothing here are refused: ignored ones would be taken for used.
refuse() {
    local why="$1" name
    shift
    for name in "$@"; do
        [[ -z "${!name:-}" ]] || fail "$name=${!name}: $why"
    done
}

# Folders of the project below its root, by the names of its own scripts.
folder() {
    local value="${!1:-$2}"
    [[ "$value" != /* ]] || fail "$1=$value: expected a folder below $root, such as $2"
    printf '%s' "$value"
}

# The server's address. PORT alone, or an address alone, says both.
if [[ -z "${SGLANG_URL:-}" ]]; then
    SGLANG_URL="http://127.0.0.1:${PORT:-30000}"
elif [[ -z "${PORT:-}" && "$SGLANG_URL" =~ :([0-9]+)/?$ ]]; then
    PORT="${BASH_REMATCH[1]}"
fi
export SGLANG_URL="${SGLANG_URL%/}" PORT="${PORT:-30000}"

models="$(folder MERGED_MODEL_DIR data/models/merged)"
trajectories="$(folder TRAJ_DIR data/trajectories)"
heads="$(folder EBM_CKPT_DIR data/checkpoints/ebm)"
benchmarks="$(folder BENCH_DIR data/benchmarks)"
evals="$(folder EVAL_DIR data/evals)"
settings=(
    --set "models=$models" --set "trajectories=$trajectories" --set "heads=$heads"
    --set "benchmarks=$benchmarks" --set "evals=$evals" --set "url=$SGLANG_URL"
)

# `--set name=VALUE` for each of the variables that is set: NUM_WORKERS is `num-workers`.
take() {
    local variable name
    for variable in "$@"; do
        name="${variable,,}"
        [[ -z "${!variable:-}" ]] || settings+=(--set "${name//_/-}=${!variable}")
    done
}

# `ebm-encode`, unless EBM_ENCODE is another program, such as that of a virtual environment.
iterate() {
    exec "${EBM_ENCODE:-ebm-encode}" iterate "$@"
}
