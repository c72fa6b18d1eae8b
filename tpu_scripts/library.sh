# shellcheck shell=bash disable=SC2034
# What the scripts of this directory share: settings, printing instead of running, gcloud, messages.

set -euo pipefail

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "bash 4.4 or later is needed, this is $BASH_VERSION (on macOS: brew install bash)" >&2
  exit 1
fi

if ! command -v timeout >/dev/null; then
  echo "the command timeout is needed (on macOS: brew install coreutils)" >&2
  exit 1
fi

program=${0##*/}
scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
scratch=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$scratch"' EXIT # jobs: a gcloud that somebody interrupts
exec 3>&1 # dry runs print here, also from within $(...)

# Says something; in a dry run as a comment, so that all that is printed can be pasted into a shell.
say() {
  if [[ "$dry_run" == true ]]; then printf '# %s\n' "${*//$'\n'/$'\n# '}"; else printf '%s\n' "$*"; fi
}

complain() { printf '%s: error: %s\n' "$program" "$*" >&2; }

fail() {
  complain "$@"
  exit 1
}

# --- settings ---

source "$scripts/settings.sh"

settings_text=$'\n'$(<"$scripts/settings.sh")
describe_setting() { sed -n "s/^$1=[^#]*# *//p" <<<"$settings_text"; }

# Reads the flags of a script over the settings: --name=value, --dry_run, --help, and after -- the training's arguments.
read_flags() {
  local name
  while (($#)); do
    case "$1" in
      --) shift && training_arguments=("$@") && break ;;
      --help) show_help && exit 0 ;;
      --dry_run | --dry-run) dry_run=true ;;
      --*=*)
        name="${1%%=*}" && name="${name#--}" && name="${name//-/_}"
        [[ "$name" =~ ^[a-z_]+$ && "$name" != training_arguments && "$settings_text" == *$'\n'"$name="* ]] ||
          fail "there is no setting $name: tpu_scripts/settings.sh lists them ($program --help)"
        printf -v "$name" '%s' "${1#*=}"
        ;;
      *) fail "$1 is not understood: flags are --name=value, and the training's own arguments come after --" ;;
    esac
    shift
  done
  for name in dry_run wait relaunch delete_when_finished follow; do one_of "$name" true false; done
  for name in gcloud_seconds setup_seconds poll_seconds launch_seconds stop_seconds max_hours idle_minutes \
    hang_minutes lines tensorboard_port; do
    # Without zeros in front: bash would take what follows for octal.
    [[ "${!name}" =~ ^(0|[1-9][0-9]*)$ ]] || fail "the setting $name is '${!name}' and must be a whole number: --$name=NUMBER"
  done
  host="${ssh_user:+$ssh_user@}$tpu_name" # the TPU, for ssh and scp
  training=(python -m actfer_jax.train --config="$config" --workdir="$workdir" "${training_arguments[@]}")
}

show_help() {
  sed -n '2,/^[^#]/{s/^# \{0,1\}//p;}' "$0"
  printf '\nSettings:\n'
  sed -n '/^training_arguments/!s/^\([a-z_]*\)=[^#]*# */  --\1=...  /p' <<<"$settings_text"
}

# Stops with the name of a setting and what to do about it, where one of the named settings is empty.
require() {
  local name
  for name; do
    [[ -n "${!name}" ]] || fail "the setting $name is missing ($(describe_setting "$name")):" \
      "give --$name=VALUE, export ACTFER_${name^^}, or write it into tpu_scripts/settings.sh"
  done
}

# Stops where a setting is none of the values that it may have.
one_of() {
  local name=$1 value
  shift
  for value; do [[ "${!name}" != "$value" ]] || return 0; done
  fail "the setting $name is '${!name}' and must be one of: $*"
}

# --- running ---

# Prints a command as it would be typed.
show() {
  local words
  words=$(printf '%q ' "$@")
  printf '%s\n' "${words% }" >&3
}

# Runs a command, or in a dry run prints it.
run() {
  if [[ "$dry_run" == true ]]; then show "$@"; else "$@"; fi
}

# --- gcloud ---

# Asks gcloud: what it printed is in $answer, its complaints in $complaint. It is ended after gcloud_seconds, and the SECONDS
# that the step itself may take: nothing that hangs keeps watch.sh from its limits. In a dry run it is printed, with no answer.
ask() { # SECONDS ARGUMENTS...
  local status=0 seconds=$((gcloud_seconds + $1))
  shift
  answer="" complaint=""
  if [[ "$dry_run" == true ]]; then show gcloud "$@" && return; fi
  # timeout ends the processes that gcloud has started too, as a process group. Ctrl-C does not reach that group, but it
  # ends the wait, and the trap above ends the group.
  timeout --kill-after=10 "$seconds" gcloud "$@" >"$scratch/answer" 2>"$scratch/complaint" </dev/null &
  wait $! || status=$?
  answer=$(<"$scratch/answer") complaint=$(<"$scratch/complaint")
  if ((status == 124 || status == 137)); then
    complaint+=${complaint:+$'\n'}"gcloud was ended after $seconds seconds without an answer (--gcloud_seconds)"
  fi
  return "$status"
}

# Whether an error is about a quota that is used up. gcloud's hints about a "quota project" are not.
is_quota_error() { grep -qiE "RESOURCE_EXHAUSTED|quota limit|quota.*(exceeded|exhausted)" <<<"$1"; }

queued_resource() { # VERB FLAGS...
  ask 0 compute tpus queued-resources "$1" "$tpu_name" --project="$project" --zone="$zone" "${@:2}"
}

# Sets $state to a state of gcloud's, or to NONE where there is no such queued resource, and $reason to why it failed.
find_state() {
  state="" reason=""
  if queued_resource describe --format='value(state.state,state.failedData.error.message)'; then
    state=${answer%%$'\t'*} reason=${answer#*$'\t'}
  elif [[ "$complaint" == *NOT_FOUND* ]]; then
    state=NONE
  else
    return 1
  fi
}

# Sets $node_state, and $worker_count to the number of the TPU's workers.
find_node() {
  node_state="" worker_count=0
  ask 0 compute tpus tpu-vm describe "$tpu_name" --project="$project" --zone="$zone" \
    --format='value(state,networkEndpoints.len())' || return 1
  node_state=${answer%%$'\t'*} worker_count=${answer#*$'\t'}
  worker_count=${worker_count:-0}
  if [[ "$node_state" == READY ]] && ((worker_count == 0)); then complaint="it is READY, but without workers" && return 1; fi
}

# Stops unless the TPU is there and ready; sets what find_node sets.
require_ready_node() {
  find_node || fail "there is no TPU $tpu_name in $zone to work with (tpu_scripts/create.sh makes one): $complaint"
  [[ "$dry_run" == true || "$node_state" == READY ]] ||
    fail "the TPU $tpu_name is $node_state, not READY: wait, or see tpu_scripts/status.sh"
}

# --- workers ---

# A connection ends when the machine at its other end has been silent for a minute.
ssh_options=(-oConnectTimeout=20 -oServerAliveInterval=15 -oServerAliveCountMax=4)

# The command line that runs worker.sh with the given words in a worker's home directory. Where that has no code, the training
# may be in another one: gcloud logs in under the name of the user who calls it, and every user has a home directory.
worker_command() {
  local words
  words=$(printf '%q ' "$@")
  printf '%s' "cd actfer_jax/code 2>/dev/null || { pgrep --full '^[^ ]*python[^ ]* (.* )?-m actfer_jax\.train( |$)' >/dev/null \
&& echo 'another user trains here' || echo 'not set up'; exit 0; }; bash tpu_scripts/worker.sh ${words% }"
}

# Runs a command line, which may take so many SECONDS, on all workers at once. Every worker answers with lines that begin with
# "worker NUMBER": they are left in $report, in order, with a line for each worker of which there is none. $not_set_up counts
# the workers that have no code, which cannot say their number, $others those where another training runs, and $silent those
# that gave no answer. False if any worker failed or did not answer.
ask_workers() { # SECONDS COMMAND
  local status=0 number unnumbered missing=() kinds=() without
  ask "$1" compute tpus tpu-vm ssh "$host" --project="$project" --zone="$zone" --quiet --worker=all \
    "${ssh_options[@]/#/--ssh-flag=}" --command="$2" || status=$?
  not_set_up=$(grep -cx 'not set up' <<<"$answer") || true
  for ((number = 0; number < worker_count; number++)); do
    [[ $'\n'"$answer" == *$'\n'"worker $number: "* ]] || missing+=("$number")
  done
  unnumbered=$(grep -cx 'another user trains here' <<<"$answer") || true
  others=$(grep -cE '^(worker [0-9]+: )?another (user|command) trains here' <<<"$answer") || true
  silent=$((${#missing[@]} - not_set_up - unnumbered))
  if ((unnumbered > 0)); then kinds+=("another user trains here"); fi
  if ((not_set_up > 0)); then kinds+=("not set up"); fi
  if ((silent > 0)); then kinds+=("no answer"); fi
  without=$(printf ', or %s' "${kinds[@]}") && without=${without#, or }
  for number in "${missing[@]}"; do answer+=$'\n'"worker $number: $without"; done
  report=$(grep '^worker ' <<<"$answer" | sort -s -k2,2n) || true
  ((silent == 0)) || return 1
  return "$status"
}

# The end of what gcloud complained about.
last_complaint() { grep -v 'Attempting to' <<<"$complaint" | tail -n 15 || true; }

# Does the same for a step of a script: prints the report, and stops where a worker failed; with status 4 where one did not
# answer, and the step may succeed when it is tried again.
on_workers() { # WHAT SECONDS COMMAND
  local what=$1
  say "$what"
  if ask_workers "$2" "$3"; then
    [[ -z "$report" ]] || say "$report"
    ((others == 0)) || fail "another user trains on $others workers: the TPU is theirs (--ssh_user=NAME acts as that user)"
    ((not_set_up == 0)) || fail "$not_set_up workers are not set up: run tpu_scripts/setup.sh first"
  else
    say "$report"
    complain "$what: a worker failed, see above. gcloud said:"$'\n'"$(last_complaint)"
    exit $((silent > 0 ? 4 : 1))
  fi
}

# Counts the workers by what they do: $running, $finished, $interrupted (told to stop, but not by stop.sh), $failed, $stopped
# (by stop.sh), $lost (the machine restarted), $idle (nothing was launched), and as ask_workers does. Where there is an expected
# command, what another one left is nothing, and what another one does is another training. $log_minutes is how long all logs of
# those that run were silent: what goes well is logged by one worker only.
expected=()
find_run() {
  local line minutes
  running=0 finished=0 interrupted=0 failed=0 stopped=0 lost=0 idle=0 log_minutes=0
  ask_workers 0 "$(worker_command status 15 "${expected[@]}")" || true
  while IFS= read -r line; do
    [[ "$line" =~ ^worker\ [0-9]+:\ (.*)$ ]] || continue # the rest are lines of logs
    case "${BASH_REMATCH[1]}" in
      runs\ since\ *)
        running=$((running + 1)) minutes=0
        if [[ "$line" =~ \ ([0-9]+)\ minutes\ ago$ ]]; then minutes=${BASH_REMATCH[1]}; fi
        if ((running == 1 || minutes < log_minutes)); then log_minutes=$minutes; fi
        ;;
      "exited with 0") finished=$((finished + 1)) ;;
      "exited with 143") interrupted=$((interrupted + 1)) ;;
      exited\ with\ * | killed*) failed=$((failed + 1)) ;;
      was\ stopped*) stopped=$((stopped + 1)) ;;
      lost\ *) lost=$((lost + 1)) ;;
      "nothing was launched") idle=$((idle + 1)) ;;
    esac
  done <<<"$report"
}

# Copies this checkout to every worker, with what was changed or added in it, without what git ignores.
copy_code() {
  local archive digest
  digest=$(printf '%s\n' "$project" "$zone" "$scripts" | cksum) # two TPUs of one name, or two checkouts, share no archive
  archive="${XDG_CACHE_HOME:-$HOME/.cache}/actfer_jax/tpu/$tpu_name-${digest%% *}.tar.gz"
  run "$scripts/pack.sh" "$archive"
  say "copying the code to all workers"
  ask 0 compute tpus tpu-vm scp "$archive" "$host:actfer_jax.tar.gz" --project="$project" --zone="$zone" \
    --quiet --worker=all "${ssh_options[@]/#/--scp-flag=}" ||
    { complain "the code could not be copied to all workers. gcloud said:"$'\n'"$complaint" && exit 4; }
  on_workers "unpacking it" 0 "mkdir -p actfer_jax/code && tar -xzf actfer_jax.tar.gz -C actfer_jax/code tpu_scripts/worker.sh \
&& bash actfer_jax/code/tpu_scripts/worker.sh unpack actfer_jax.tar.gz"
}
