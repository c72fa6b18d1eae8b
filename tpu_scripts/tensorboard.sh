#!/usr/bin/env bash
# tensorboard.sh: shows the run in TensorBoard, at http://localhost:6006. Ctrl-C ends it.
# What is in a bucket is read by a TensorBoard on this machine. With --tensorboard_on=worker, and for other paths, TensorBoard
# runs on worker 0 and its port is forwarded.
source "$(dirname "$0")/library.sh"
read_flags "$@"
require workdir
if [[ -z "$tensorboard_on" ]]; then
  tensorboard_on=worker
  if [[ "$workdir" == gs://* ]]; then tensorboard_on=here; fi
fi
one_of tensorboard_on here worker

say "http://localhost:$tensorboard_port"
if [[ "$tensorboard_on" == here ]]; then
  [[ "$dry_run" == true ]] || command -v tensorboard >/dev/null ||
    fail "there is no tensorboard here: activate the environment that has this package, or give --tensorboard_on=worker"
  run tensorboard --logdir="$workdir" --port="$tensorboard_port"
else
  require project zone tpu_name
  # -t ends the TensorBoard there when the connection ends.
  run gcloud compute tpus tpu-vm ssh "$host" --project="$project" --zone="$zone" --worker=0 \
    "${ssh_options[@]/#/--ssh-flag=}" --ssh-flag=-t --ssh-flag="-L$tensorboard_port:localhost:$tensorboard_port" \
    --command="$(worker_command tensorboard "$workdir" "$tensorboard_port")"
fi
