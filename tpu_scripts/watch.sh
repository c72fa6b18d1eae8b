#!/usr/bin/env bash
# watch.sh: carries a run to its end. It looks at the TPU every --poll_seconds and does what is needed next: asks for a TPU,
# sets it up, launches the training; and where the TPU was taken away, deletes what is left of it and begins again, so that
# the training goes on from its last checkpoint. It can be started at any time, also on a training that runs.
# It ends when the training has finished on all workers (exit code 0), when it fails of itself, or at a limit. A training that
# was told to stop, but not by stop.sh, is launched again (exit code 143), and once also one that had failed before this watch.
# What another command left there counts for nothing; where another command or another user trains, watch.sh stops. The limits:
#   --max_hours     the TPU was active for this long, as seen by this watch: the training is ended, the TPU deleted
#   --idle_minutes  nothing has trained for this long: the TPU is deleted
#   --hang_minutes  a training of which nothing was heard for this long (its log, or the workers themselves) counts as idle
#   --relaunch=false  only these limits, whoever trains: nothing is asked for, set up or launched
# The guard works as long as this script does: start it where it is not closed with a laptop, for example in tmux on a small VM.
#
#   tpu_scripts/watch.sh --accelerator_type=v5litepod-16 --workdir=gs://BUCKET/RUN --max_hours=24 -- TRAINING ARGUMENTS
#
# Exit status: 0 when the training has finished, 3 where a quota stands against it, 1 otherwise.
source "$(dirname "$0")/library.sh"
read_flags "$@"
require project zone tpu_name
if [[ "$relaunch" == true ]]; then
  require accelerator_type config workdir
  [[ "$workdir" == gs://* ]] || fail "the setting workdir is $workdir, which is lost with the TPU: give --workdir=gs://BUCKET/RUN"
fi

if [[ "$dry_run" == true ]]; then
  say "what watch.sh does, as the state of the TPU asks for it:"
  for script in status delete create setup launch stop; do
    say "$script.sh:"
    "$scripts/$script.sh" "$@"
  done
  exit
fi

tell() { say "$(date '+%F %T') $*"; } # with the time, for a log that is read in the morning

patience=3 # looks at a training that ended before its end is believed; failures in a row before watch.sh gives up

delete_tpu() {
  until "$scripts/delete.sh" "$@"; do
    tell "trying again to delete $tpu_name"
    sleep "$poll_seconds"
  done
}

give_up() { # WHY FLAGS...: with the TPU deleted
  tell "$1: deleting the TPU"
  delete_tpu "${@:2}"
  exit 1
}

set_up_and_launch() {
  local status=0
  { "$scripts/setup.sh" "$@" && "$scripts/launch.sh" "$@"; } || status=$?
  if ((status == 0)); then
    tell "the training is launched"
    failed_launches=0
  else
    failed_launches=$((failed_launches + 1))
    tell "set-up or launch failed ($failed_launches of $patience times)"
  fi
  launch_again=$((status == 4)) # a worker that was not reached still says how an earlier training ended
  began=1 now=$(date +%s) ended_looks=0 reported=false idle_since=""
}

# Failures are counted in a row: of requests until a TPU is there, of launches until one succeeds or the TPU is taken away.
known=false said="" failed_requests=0 failed_launches=0 launch_again=0 ended_looks=0 reported=false active_seconds=0
idle_since="" silent_since="" # empty: not so now
began=0 # 1: this watch has seen the training run, or launched it
clock=$(date +%s)

if [[ "$relaunch" == true ]]; then expected=("${training[@]}"); fi
if ((max_hours == 0)); then tell "a training that runs may cost without limit: --max_hours=HOURS sets one"; fi

trap 'tell "interrupted: what was asked for stays, and costs once it is there, with no guard (tpu_scripts/delete.sh)"; exit 1' INT TERM

while true; do
  if ! find_state; then
    [[ "$known" == true ]] || fail "gcloud cannot say whether $tpu_name exists: $complaint"
    tell "gcloud gave no state, trying again: $complaint" # a network that fails for a while must not end the guard
    sleep "$poll_seconds"
    continue
  fi
  known=true
  now=$(date +%s)
  if [[ "$state" == ACTIVE ]]; then active_seconds=$((active_seconds + now - clock)) failed_requests=0; fi
  clock=$now

  node_state=""
  if [[ "$state" == ACTIVE ]] && ! find_node; then node_state=UNKNOWN reason=$complaint; fi
  if [[ "$state $node_state" != "$said" ]]; then
    tell "$tpu_name is ${state/NONE/not there}${node_state:+, $node_state}${reason:+ ($reason)}"
    said="$state $node_state"
  fi

  # What is gone is deleted; without relaunch that is the end.
  if [[ "$state" == SUSPENDED || "$state" == FAILED || "$node_state" == PREEMPTED || "$node_state" == TERMINATED ]]; then
    if [[ "$state" == FAILED ]]; then
      failed_requests=$((failed_requests + 1))
      ! is_quota_error "$reason" || { tell "a quota stands against it" && delete_tpu "$@" && exit 3; }
      ((failed_requests < patience)) || give_up "the request has failed $failed_requests times in a row" "$@"
    else
      tell "the TPU was taken away"
    fi
    delete_tpu "$@"
    failed_launches=0 launch_again=0 ended_looks=0 reported=false idle_since="" silent_since=""
    [[ "$relaunch" == true ]] || exit 1
    state=NONE
  fi

  if [[ "$state" == NONE ]]; then
    [[ "$relaunch" == true ]] || fail "there is no $tpu_name in $zone to guard"
    status=0
    "$scripts/create.sh" --wait=false "$@" || status=$?
    if ((status == 3)); then exit 3; fi
    if ((status == 4)); then
      tell "trying again to ask for $tpu_name"
    elif ((status != 0)); then
      failed_requests=$((failed_requests + 1))
      ((failed_requests < patience)) || fail "the TPU could not be asked for, $failed_requests times in a row"
    fi

  elif [[ "$node_state" == READY ]]; then
    find_run
    needs_launch=false
    # A training needs all workers: it runs where each does, or has come to its end a little earlier.
    runs=$((others > 0 || (running > 0 && running + finished + silent == worker_count)))
    if ((silent == 0)); then silent_since=""; elif [[ -z "$silent_since" ]]; then silent_since=$now; fi
    unheard_minutes=$log_minutes # where workers are silent, the one that logs may be among them
    if ((silent > 0)); then
      silent_minutes=$(((now - silent_since) / 60))
      if ((silent == worker_count || silent_minutes < log_minutes)); then unheard_minutes=$silent_minutes; fi
    fi
    runs_unseen=$((runs || silent == worker_count))
    hangs=$((runs_unseen && others == 0 && hang_minutes > 0 && unheard_minutes >= hang_minutes))
    if ((others > 0)) && [[ "$relaunch" == true ]]; then
      say "$report"
      fail "that training is left alone, and the TPU costs: end it (stop.sh), or guard it (--relaunch=false)." \
        "What you launched under another user name is reached with --ssh_user=NAME"
    elif ((silent > 0)); then
      tell "no answer from $silent of $worker_count workers"
      if [[ "$silent_since" == "$now" ]]; then say "gcloud said:"$'\n'"$(last_complaint)"; fi
    elif ((not_set_up + idle + lost > 0 || (launch_again && running < worker_count))); then
      needs_launch=true
      if ((lost > 0)); then tell "a machine restarted"; fi
    elif ((runs)); then
      began=1 failed_launches=0 launch_again=0 ended_looks=0 reported=false
    elif ((stopped > 0)); then
      if ((ended_looks == 0)); then tell "the training was stopped: tpu_scripts/launch.sh starts it again"; fi
      ended_looks=1
    else
      # Where a TPU is taken away, its trainings end some time before its state says so.
      ended_looks=$((ended_looks + 1))
      if ((ended_looks == patience && interrupted > 0 && failed == 0)); then
        needs_launch=true
        tell "the training was told to stop, and did"
      elif ((ended_looks == patience && failed > 0 && !began)); then
        needs_launch=true
        tell "the training had failed before this watch"
      fi
    fi
    if [[ "$needs_launch" == true && "$relaunch" == true ]] && ((failed_launches < patience)); then set_up_and_launch "$@"; fi

    if ((finished == worker_count && ended_looks >= patience)); then
      tell "the training has finished on all workers"
      if [[ "$delete_when_finished" == true ]]; then
        delete_tpu "$@"
      else
        say "the TPU is still there, and costs: tpu_scripts/delete.sh"
      fi
      exit 0
    fi
    if [[ "$reported" == false ]] && ((ended_looks >= patience || failed_launches >= patience)); then
      reported=true
      tell "the training has not finished and is not launched again:"
      say "$report"
      if ((idle_minutes == 0)); then
        say "the TPU is still there, and costs: tpu_scripts/delete.sh"
        exit 1
      fi
      say "the TPU is deleted in $idle_minutes minutes, unless tpu_scripts/launch.sh starts a training"
    fi

    if ((runs_unseen && !hangs)); then
      idle_since=""
    elif [[ -z "$idle_since" ]]; then
      idle_since=$now
      if ((hangs)); then tell "nothing was heard for $unheard_minutes minutes: from now on this counts as idle (--hang_minutes)"; fi
    fi
    if ((idle_minutes > 0)) && [[ -n "$idle_since" ]] && ((now - idle_since >= idle_minutes * 60)); then
      [[ "$reported" == true ]] || say "$report"
      give_up "nothing has trained for $idle_minutes minutes" "$@"
    fi
  fi

  if ((max_hours > 0 && active_seconds >= max_hours * 3600)); then
    tell "the TPU was active for $max_hours hours: ending the training"
    "$scripts/stop.sh" "$@" || tell "the training could not be ended in order"
    give_up "the limit of max_hours=$max_hours is reached" "$@"
  fi
  sleep "$poll_seconds"
done
