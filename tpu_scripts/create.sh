#!/usr/bin/env bash
# create.sh: asks for a TPU (a queued resource with one node of the same name) and waits until it is ready.
# Where it exists already, that is said and the script goes on.
#
#   tpu_scripts/create.sh --accelerator_type=v5litepod-16 --zone=us-west4-a --project=PROJECT
#   tpu_scripts/create.sh --capacity=on_demand ...    not preempted, and dearer; reserved: from a reservation of yours
#
# Exit status: 0, 1 on an error, 3 where a quota stands against it, 4 where Google's side or the network failed: try again.
source "$(dirname "$0")/library.sh"
read_flags "$@"
require project zone tpu_name accelerator_type
one_of capacity spot reserved on_demand

if [[ -z "$runtime_version" ]]; then
  case "$accelerator_type" in
    v5litepod-*) runtime_version=v2-alpha-tpuv5-lite ;;
    v5p-*) runtime_version=v2-alpha-tpuv5 ;;
    v6e-*) runtime_version=v2-alpha-tpuv6e ;;
    v2-* | v3-* | v4-*) runtime_version=tpu-ubuntu2204-base ;;
    *) fail "no runtime_version is known for the accelerator_type $accelerator_type: give --runtime_version=VALUE" \
      "(gcloud compute tpus tpu-vm versions list --zone=$zone shows them)" ;;
  esac
fi

flags=(--node-id="$tpu_name" --accelerator-type="$accelerator_type" --runtime-version="$runtime_version")
if [[ "$capacity" == spot ]]; then flags+=(--spot); fi
if [[ "$capacity" == reserved ]]; then flags+=(--reserved); fi
if [[ -n "$service_account" ]]; then flags+=(--service-account="$service_account"); fi
if [[ -n "$network" ]]; then flags+=(--network="$network"); fi
if [[ -n "$subnetwork" ]]; then flags+=(--subnetwork="$subnetwork"); fi
if [[ -n "$valid_until_duration" ]]; then flags+=(--valid-until-duration="$valid_until_duration"); fi

stop_for_quota() {
  printf '%s: error: a quota of project %s stands against this: %s\n' "$program" "$project" "$1" >&2
  printf 'Ask for more (docs/tpu.md, Quota), or choose another zone, capacity or accelerator_type. %s\n' \
    "Queued resources that are SUSPENDED or FAILED count too: tpu_scripts/delete.sh" >&2
  exit 3
}

fail_like_gcloud() { # WHAT
  printf '%s: error: %s: %s\n' "$program" "$1" "$complaint" >&2
  case "$complaint" in
    *UNAVAILABLE* | *INTERNAL* | *DEADLINE_EXCEEDED* | *ABORTED* | *onnection* | *"gcloud was ended"*) exit 4 ;;
  esac
  exit 1
}

find_state || fail_like_gcloud "gcloud cannot say whether $tpu_name exists"
if [[ "$state" == NONE || "$dry_run" == true ]]; then
  say "asking for $tpu_name: $accelerator_type in $zone, $capacity, image $runtime_version"
  if ! queued_resource create "${flags[@]}" --quiet; then
    if [[ "$complaint" == *ALREADY_EXISTS* || "$complaint" == *"already exists"* ]]; then
      say "$tpu_name was asked for by someone else at the same time"
    elif is_quota_error "$complaint"; then
      stop_for_quota "$complaint"
    else
      fail_like_gcloud "gcloud did not create $tpu_name"
    fi
  fi
else
  say "$tpu_name exists already"
fi
if [[ "$dry_run" == true || "$wait" == false ]]; then exit; fi

trap 'say "interrupted: the request for $tpu_name stays, and costs once it is granted (tpu_scripts/delete.sh)"; exit 1' INT TERM
said=""
while true; do
  find_state || fail_like_gcloud "gcloud cannot say what became of $tpu_name"
  if [[ "$state" != "$said" ]]; then say "$tpu_name is $state" && said=$state; fi
  case "$state" in
    ACTIVE) exit ;;
    FAILED)
      if is_quota_error "$reason"; then stop_for_quota "$reason"; fi
      fail "the request has failed (${reason:-no reason given}) and will not come back: run tpu_scripts/delete.sh, then create.sh"
      ;;
    SUSPENDED) fail "$tpu_name was taken away and will not come back: run tpu_scripts/delete.sh, then create.sh" ;;
    NONE) fail "$tpu_name is gone: somebody deleted it" ;;
  esac
  sleep "$poll_seconds"
done
