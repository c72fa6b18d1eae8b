#!/usr/bin/env bash
# stop.sh: ends the training on every worker. It gets --stop_seconds to save its state. The TPU stays, and costs.
source "$(dirname "$0")/library.sh"
read_flags "$@"
require project zone tpu_name

require_ready_node
on_workers "ending the training" "$stop_seconds" "$(worker_command stop "$stop_seconds")"
