#!/usr/bin/env bash
# logs.sh: the end of a worker's log.
#
#   tpu_scripts/logs.sh --worker=3 --lines=200
#   tpu_scripts/logs.sh --follow=true
source "$(dirname "$0")/library.sh"
read_flags "$@"
require project zone tpu_name worker
[[ "$worker" =~ ^([0-9]+|all)$ ]] || fail "the setting worker is '$worker' and must be a number or all"

words=(log "$lines")
if [[ "$worker" == all ]]; then words=(labelled_log "$lines"); fi
if [[ "$follow" == true ]]; then words+=(-F); fi
run gcloud compute tpus tpu-vm ssh "$host" --project="$project" --zone="$zone" --quiet --worker="$worker" \
  "${ssh_options[@]/#/--ssh-flag=}" --command="$(worker_command "${words[@]}")"
