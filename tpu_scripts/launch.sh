#!/usr/bin/env bash
# launch.sh: starts the training on every worker, with this checkout as it is now. What still trains there is ended first.
# The training goes on when the connection ends; what stands in --workdir is continued.
#
#   tpu_scripts/launch.sh --config=configs/ucgrpo.py --workdir=gs://BUCKET/RUN -- --config.model.path=gs://BUCKET/MODEL
#
# Exit status: 0, 1 on an error, 4 where a worker did not answer: try again.
source "$(dirname "$0")/library.sh"
read_flags "$@"
require project zone tpu_name config workdir

require_ready_node
if ((worker_count > 1)) && [[ "$workdir" != gs://* ]]; then
  fail "the setting workdir is $workdir, which every one of the $worker_count workers would have to itself:" \
    "give --workdir=gs://BUCKET/RUN"
fi
[[ "$workdir" == gs://* ]] || say "the workdir $workdir is on the worker's disk: it is lost when the TPU is deleted, also by watch.sh"

on_workers "ending what is left of earlier runs" "$stop_seconds" "$(worker_command stop "$stop_seconds")"
copy_code
on_workers "starting the training" "$launch_seconds" "$(worker_command start "$launch_seconds" "${training[@]}")"
say "tpu_scripts/status.sh, logs.sh and tensorboard.sh show how it goes; delete.sh ends the cost"
