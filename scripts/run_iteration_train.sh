#!/usr/bin/env bash
# One training iteration: fine-tune, export, evaluate, encode, train the head, evaluate it.
#
#   scripts/run_iteration_train.sh ITERATION [OPTIONS OF ebm-encode iterate]
#   scripts/run_iteration_train.sh 2 --dry-run     # what would run, and why
#
# The same command resumes: steps that are done are not repeated. Environment variables:
#
# START_STEP          begin there; steps before it must be done (0 and 1 fine-tune, 2 and 3
#                     evaluation, 4 embeddings and head, 5 miniF2F)
# LLM_BASE            base model
# LORA_MODE, LORA_R, LORA_ALPHA, LORA_MLP, LR, MAX_TRAIN_STEPS, SAVE_STEPS, PROBE_DATA,
# PROBE_INTERVAL, BASE_SUBSAMPLE, BATCH_SIZE, GRAD_ACCUM, MAX_SEQ_LEN, RESUME   for run_finetune.sh
# EVAL_BUDGET, EVAL_MAX_THEOREMS_TRAIN, NUM_WORKERS, CONCURRENCY, ENCODE_BATCH_SIZE
# MERGED_MODEL_DIR, LORA_DIR, EBM_CKPT_DIR, TRAJ_DIR, BENCH_DIR, EVAL_DIR, SFT_DIR
#                     folders below the project's root
#
# They are part of what a step is: with other values it runs again. Give the same ones to resume.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=_iterate.sh
source "$(dirname "${BASH_SOURCE[0]}")/_iterate.sh"

number="${1:-}"
require_number "$number"
shift
refuse "the server is stopped for a step that needs its memory, and always started again" \
    KILL_SERVER
refuse "states are encoded in a process of their own; for a server, give \`backend\` and \`server\`
hint: in [steps.encode.options] of scripts/burnqed.toml" ENCODE_URL
refuse "is for the origin's trainer of heads
hint: \`ebm-encode train-head --help\`; [steps.train-head.options] of scripts/burnqed.toml" \
    EBM_STEPS EBM_LR EBM_RESUME HIDDEN_SIZE LOSS_TYPE MARGIN HARD_RATIO MEDIUM_RATIO DROPOUT \
    VAL_BATCHES FINAL_VAL_HARD_RATIO FINAL_VAL_MEDIUM_RATIO

# What this iteration reads of earlier ones, as links: a pattern would also match what its own
# search writes, and iter_1 would match iter_10.
given="$root/data/iterations/$number"
lora="$(folder LORA_DIR data/checkpoints/lora)"
mkdir -p "$given/trajectories" "$given/adapter" "$root/$models" "$root/$evals" \
    "$root/$heads/iter_$number"
declare -A wanted=()
link() { # FILE FOLDER; one that is right stays: a run may be reading it, and this be a --dry-run
    local name="$2/${1##*/}"
    wanted["$name"]=1
    [[ "$(readlink -- "$name")" == "$1" ]] || ln -sfn -- "$1" "$name"
}
shopt -s nullglob
for ((i = 0; i < number; i++)); do
    for file in "$root/$trajectories/iter_$i.parquet" "$root/$trajectories/iter_${i}"_*.parquet; do
        case "$file" in *_test.parquet | *_debug.parquet | *_smoke.parquet) continue ;; esac
        [[ ! -f "$file" ]] || link "$file" "$given/trajectories"
    done
done
# The former adapter, which training continues.
if [[ "${LORA_MODE:-continue}" == continue ]]; then
    for file in "$root/$lora/iter_$((number - 1))"/adapter_*; do
        link "$file" "$given/adapter"
    done
fi
for name in "$given/trajectories"/* "$given/adapter"/*; do
    [[ ! -L "$name" || -n "${wanted["$name"]-}" ]] || rm -- "$name"
done

range=()
# Without a search before it, iteration 0 has no states, and so no head.
[[ "$number" != 0 ]] || range+=(--until minif2f-without-head)
case "${START_STEP:-0}" in
    0)
        echo "step 0: not repeated: it measures the model of the iteration before, as step 3 of" \
            "that iteration did ($evals/iter_N_post_train.json)" >&2
        ;;
    1) range+=(--from llm-train) ;;
    2 | 3)
        [[ "$START_STEP" == 3 ]] ||
            echo "step 2: the server has the new model once it is exported" >&2
        range+=(--from post-eval)
        ;;
    4 | 5)
        if [[ "$number" == 0 ]]; then
            [[ "$START_STEP" == 5 ]] || echo "step 4: iteration 0 has no head" >&2
            range+=(--from minif2f-without-head)
        elif [[ "$START_STEP" == 4 ]]; then
            range+=(--from encode)
        else
            range+=(--from minif2f)
        fi
        ;;
    *) fail "START_STEP=$START_STEP: expected 0 to 5" ;;
esac

settings+=(--set "lora=$lora" --set "sft=$(folder SFT_DIR data/sft)")
take LLM_BASE LORA_MODE LORA_R LORA_ALPHA LORA_MLP LR MAX_TRAIN_STEPS SAVE_STEPS PROBE_DATA \
    PROBE_INTERVAL BASE_SUBSAMPLE BATCH_SIZE GRAD_ACCUM MAX_SEQ_LEN RESUME \
    EVAL_BUDGET EVAL_MAX_THEOREMS_TRAIN NUM_WORKERS CONCURRENCY ENCODE_BATCH_SIZE
iterate "$here/burnqed.toml" --set "number=$number" "${settings[@]}" ${range[@]+"${range[@]}"} "$@"
