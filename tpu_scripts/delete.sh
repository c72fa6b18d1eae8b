#!/usr/bin/env bash
# delete.sh: deletes the TPU and its queued resource, whatever its state. Then it costs nothing and counts against no quota.
# What is on the disks of the workers is lost; what is in the bucket stays.
source "$(dirname "$0")/library.sh"
read_flags "$@"
require project zone tpu_name

find_state || fail "gcloud cannot say whether $tpu_name exists: $complaint"
if [[ "$state" == NONE ]]; then say "there is no $tpu_name in $zone: nothing to delete" && exit; fi
say "deleting $tpu_name"
if ! queued_resource delete --force --quiet; then
  [[ "$complaint" == *NOT_FOUND* ]] || fail "gcloud did not delete $tpu_name, which may go on costing: $complaint"
fi
say "$tpu_name is deleted"
