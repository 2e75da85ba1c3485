#!/usr/bin/env bash
# The search of an iteration, on the server with that iteration's model.
#
#   scripts/run_iteration_search.sh ITERATION [OPTIONS OF ebm-encode iterate]
#
# The server is started with that model if it does not have it. The same command resumes: theorems
# that were searched are not searched again. Iteration 0 has no head: it searches by the policy
# alone, and again at temperature 1.2. Environment variables:
#
# NUM_WORKERS         Pantograph processes (8)
# CONCURRENCY         theorems at the same time (8)
# MAX_THEOREMS        only the first ones
# MERGED_MODEL_DIR, EBM_CKPT_DIR, TRAJ_DIR, BENCH_DIR    folders below the project's root

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=_iterate.sh
source "$(dirname "${BASH_SOURCE[0]}")/_iterate.sh"

number="${1:-}"
require_number "$number"
shift
[[ "${START_STEP:-2}" == 2 ]] || fail "START_STEP=$START_STEP: there is only step 2, the search" \
    "hint: its figures are in data/iterations/$number/summary.json"
refuse "options of the search are in scripts/burnqed-search.toml" SEARCH_CONFIG
refuse "no search reads it; its theorems are $benchmarks/iter${number}_search_theorems.jsonl" \
    THEOREM_INDEX
refuse "the encoder of the search is that of its cache
hint: for a server, give \`--backend\` and \`--server\` in scripts/burnqed-search.toml" ENCODE_URL

model="$root/$models/iter_$number"
[[ -d "$model" ]] || fail "$model: is not there" "hint: scripts/run_iteration_train.sh $number"
config="$here/burnqed-search.toml"
[[ "$number" != 0 ]] || config="$here/burnqed-search-0.toml"
mkdir -p "$root/$trajectories"
take NUM_WORKERS CONCURRENCY MAX_THEOREMS
iterate "$config" --set "number=$number" "${settings[@]}" \
    --set "llm=$(realpath -s --relative-to="$here" -- "$model")" "$@"
