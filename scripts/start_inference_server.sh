#!/usr/bin/env bash
# Has the inference server answer with a model: starts it, or starts it again if it has another one.
#
#   scripts/start_inference_server.sh MODEL        # a folder, or a hub id
#
# Returns once that model answers (exit code 0). Any other code: it does not, and the error says why
# (2: wrong arguments, the server does not stop or come up, or an iteration is at work). The server
# runs on; its log is data/server/server.log.
#
# SGLANG_URL, PORT      where (http://127.0.0.1:30000)
# TP, MEM_FRACTION, MAX_RUNNING, QUANTIZATION, DTYPE, CUDA_DEVICE, EXTRA_ARGS   for SGLang
# INFERENCE_COMMAND     another server: 'vllm serve "$MODEL_PATH" --port "$PORT"' (run by bash)
#
# `--serve MODEL` is what `[server] start` runs: the server itself, in the foreground.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=_iterate.sh
source "$(dirname "${BASH_SOURCE[0]}")/_iterate.sh"

serve() {
    export MODEL_PATH="$1"
    [[ -z "${CUDA_DEVICE:-}" ]] || export CUDA_VISIBLE_DEVICES="$CUDA_DEVICE"
    if [[ -n "${INFERENCE_COMMAND:-}" ]]; then
        exec bash -c "$INFERENCE_COMMAND"
    fi
    local options=(--model-path "$MODEL_PATH" --host 127.0.0.1 --port "$PORT" --tp "${TP:-1}"
        --mem-fraction-static "${MEM_FRACTION:-0.8}" --dtype "${DTYPE:-bfloat16}"
        --enable-return-hidden-states) more=()
    [[ -z "${MAX_RUNNING:-}" ]] || options+=(--max-running-requests "$MAX_RUNNING")
    [[ -z "${QUANTIZATION:-}" ]] || options+=(--quantization "$QUANTIZATION")
    read -ra more <<<"${EXTRA_ARGS:-}"
    exec "${PYTHON:-python3}" -m sglang.launch_server "${options[@]}" ${more[@]+"${more[@]}"}
}

if [[ "${1:-}" == --serve ]]; then
    [[ $# -eq 2 ]] || fail "--serve: expected a model"
    serve "$2"
fi
[[ $# -eq 1 && "$1" != -* ]] || fail "expected one model" "hint: ${0##*/} $models/iter_1"
model="$1"
if [[ ! -e "$model" ]]; then
    # A hub id: its files in the hub's cache, so that the server can be asked for their path.
    [[ "$model" =~ ^[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+$ && ! -d "${model%%/*}" ]] ||
        fail "$model: no such folder"
    model="$("${PYTHON:-python3}" -c \
        'import sys; from huggingface_hub import snapshot_download as get; print(get(sys.argv[1]))' \
        "$model")" || fail "$1: neither a folder, nor found on the hub" \
        "hint: the error above says why"
fi
# As the configurations write it, so that both speak of one server.
model="$(realpath -s --relative-to="$here" -- "$model")"
iterate "$here/burnqed-search.toml" --recover "${settings[@]}" --set number=server \
    --set "llm=$model"
