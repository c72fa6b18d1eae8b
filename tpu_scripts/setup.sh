#!/usr/bin/env bash
# setup.sh: copies this checkout to every worker, and gives it a Python environment with the package in it.
# To be run once for a TPU, and again when setup.py or constraints.txt have changed; a second time it is quick.
#
# Exit status: 0, 1 on an error, 4 where a worker did not answer: try again.
source "$(dirname "$0")/library.sh"
read_flags "$@"
require project zone tpu_name

require_ready_node
copy_code
on_workers "installing the package on all workers (some minutes the first time)" "$setup_seconds" \
  "$(worker_command install)"
