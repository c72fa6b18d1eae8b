#!/usr/bin/env bash
# status.sh: the state of the TPU, and what each worker does. A worker that failed shows the last lines of its log.
# Exit status: 0, or 1 where there is no TPU, or a worker has failed or does not answer.
source "$(dirname "$0")/library.sh"
read_flags "$@"
require project zone tpu_name

find_state || fail "gcloud cannot say how $tpu_name is: $complaint"
if [[ "$dry_run" == false ]]; then
  [[ "$state" != NONE ]] || fail "there is no $tpu_name in $zone: tpu_scripts/create.sh asks for one"
  say "queued resource $tpu_name: $state${reason:+ ($reason)}"
  if [[ "$state" != ACTIVE ]]; then exit; fi
fi

find_node || fail "gcloud cannot say how the TPU $tpu_name is: $complaint"
if [[ "$dry_run" == false ]]; then
  say "TPU $tpu_name: $node_state, $worker_count workers"
  if [[ "$node_state" != READY ]]; then exit; fi
fi

find_run
if [[ "$dry_run" == true ]]; then exit; fi
say "$report"
if ((not_set_up > 0)); then say "$not_set_up workers are not set up: tpu_scripts/setup.sh"; fi
((failed + lost + silent == 0)) || exit 1
