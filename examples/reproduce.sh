#!/usr/bin/env bash
# From an empty disk to ActFER's rows, in one script (docs/reproduce.md). A step whose file is there is left out.
#
#   examples/reproduce.sh --dry_run                      prints every command, its estimate and what was published
#   DATA=/data OUT=runs/reproduce examples/reproduce.sh
#
# Settings, from the environment: DATA, OUT, MODEL, TOPOLOGY (of compile_check), PRICE (dollars of a chip-hour), PYTHON.
set -euo pipefail
cd "$(dirname "$0")/.."

dry_run=false
case "${1:-}" in
  "") ;;
  --dry_run) dry_run=true ;;
  *) sed -n '2,7s/^# \{0,1\}//p' "$0" && exit 2 ;;
esac

DATA=${DATA:-/data} OUT=${OUT:-runs/reproduce} MODEL=${MODEL:-Qwen/Qwen3-VL-4B-Instruct}
TOPOLOGY=${TOPOLOGY:-v5e:4x4} PRICE=${PRICE:-0} PYTHON=${PYTHON:-python}
chips=${TOPOLOGY/:/-}

# The report of a training: this run's own, or the one in docs/ where that is of the same topology.
report() {
  if [[ -f "$OUT/compile_$1.json" ]]; then echo "$OUT/compile_$1.json"; else echo "docs/compile_check/$2$chips.json"; fi
}

estimate() { "$PYTHON" -m examples.reproduce_hours --dollars_per_chip_hour="$PRICE" "$@"; }

# step TITLE FILE ESTIMATE PUBLISHED COMMAND...: runs a command that leaves FILE, unless that is there.
step() {
  local title=$1 file=$2 takes=$3 published=$4
  shift 4
  printf '\n# %s: %s; writes %s\n#   published: %s; ours at this size: not measured\n' "$title" "$takes" "$file" "$published"
  if [[ "$dry_run" == true ]]; then printf '%q ' "$@" && echo && return; fi
  if [[ -e "$file" ]]; then echo "# $file is there" && return; fi
  "$@"
}

[[ "$dry_run" == true ]] || mkdir -p "$OUT"
here="no accelerator" alone="hours unknown: one chip, or one for each --shard"
for set in raf_db:RAF-DB fer_plus:FERPlus affectnet:AffectNet disfa:DISFA; do
  step "check ${set%:*}" "$OUT/check_${set%:*}.json" "$here" none \
    "$PYTHON" -m actfer_jax.data.check "${set%:*}" --data_dir="$DATA/${set#*:}" --json="$OUT/check_${set%:*}.json"
done
step "check ferbench" "$OUT/check_ferbench.json" "$here" none \
  "$PYTHON" -m actfer_jax.data.check ferbench --data_dir="$DATA" --set="questions=$DATA/UniFER" --json="$OUT/check_ferbench.json"
for run in sft ucgrpo; do
  step "rehearse $run" "$OUT/rehearse_$run.json" "$here" none \
    "$PYTHON" -m actfer_jax.rehearse --config="examples/reproduce.py:$run:$DATA" --config.model.path="$MODEL" \
    --json="$OUT/rehearse_$run.json"
  step "compile $run" "$OUT/compile_$run.json" "$here" none \
    "$PYTHON" -m actfer_jax.compile_check --config="examples/reproduce.py:$run:$DATA" --config.model.path="$MODEL" \
    --topology="$TOPOLOGY" --longest_row=2048 --mean_row=1700 --dollars_per_chip_hour="$PRICE" --json="$OUT/compile_$run.json"
done
step "supervised cold start" "$OUT/sft/policy/config.json" "$(estimate "$(report sft sft-)")" none \
  "$PYTHON" -m actfer_jax.train --config="examples/reproduce.py:sft:$DATA" --config.model.path="$MODEL" --workdir="$OUT/sft"
step "UC-GRPO" "$OUT/ucgrpo/policy/config.json" "$(estimate "$(report ucgrpo "")")" none \
  "$PYTHON" -m actfer_jax.train --config="examples/reproduce.py:ucgrpo:$DATA" --config.model.path="$OUT/sft/policy" \
  --workdir="$OUT/ucgrpo"
step "FERBench" "$OUT/ferbench/results.json" "$alone" "73.89 accuracy, 67.45 macro-F1 (arXiv 2604.08990)" \
  "$PYTHON" -m actfer_jax.evaluate --config=configs/eval/ferbench.py --config.data.directory="$DATA" \
  --config.data.questions="$DATA/UniFER" --config.dtype=bfloat16 --checkpoint="$OUT/ucgrpo/policy" --out="$OUT/ferbench"
step "DISFA" "$OUT/disfa/results.json" "$alone" "58.2 F1 (arXiv 2604.08990)" \
  "$PYTHON" -m actfer_jax.evaluate --config=configs/eval/disfa.py --config.data.directory="$DATA/DISFA" \
  "--config.controls=()" --config.dtype=bfloat16 --checkpoint="$OUT/ucgrpo/policy" --out="$OUT/disfa"
for benchmark in ferbench disfa; do
  step "table of $benchmark" "what it prints" "$here" "the rows below ours" \
    "$PYTHON" -m actfer_jax.table "$OUT/$benchmark" --format=md
done
