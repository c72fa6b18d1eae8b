#!/usr/bin/env bash
# What the other scripts have a TPU worker do. They copy this file there and call it over ssh:
#   unpack ARCHIVE            replaces the code by that of an archive
#   install                   gets Python, makes the environment and installs the package, if that is not done already
#   start SECONDS COMMAND...  starts a training in the background and looks at it for some seconds
#   status LINES [COMMAND...] says what the training does (of that command); where it failed, with why and the end of its log
#   stop SECONDS              ends whatever trains here for this user, and removes what it left
#   log LINES [FLAG...]       the end of the log; labelled_log: with the worker's number on every line
#   tensorboard LOGDIR PORT   shows a run, until the connection ends
# All of it is in ~/actfer_jax: code/ is the checkout, venv/ the environment, and run/ has train.log, exit_code and lock.
# Whoever belongs to the training holds run/lock open: so it is known what runs, whatever became of process numbers.
set -euo pipefail

root="$HOME/actfer_jax"
mkdir -p "$root/run"
code="$root/code" venv="$root/venv" run=$(cd "$root/run" && pwd -P)
libtpu_lockfile="${LIBTPU_LOCKFILE:-/tmp/libtpu_lockfile}"
boot_id_file="${BOOT_ID_FILE:-/proc/sys/kernel/random/boot_id}"

# The number that gcloud and JAX know this worker by; the host's name ends in it too.
metadata="http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number"
number=$(curl --fail --silent --max-time 10 --header 'Metadata-Flavor: Google' "$metadata") || number=${HOSTNAME##*-w-}
[[ "$number" =~ ^[0-9]+$ ]] || number=0

say() { printf 'worker %s: %s\n' "$number" "$*"; }

show() { sed --unbuffered "s/^/worker $number| /"; }

fail() {
  say "$*"
  exit 1
}

unpack() { # ARCHIVE
  export LC_ALL=C
  tar --list --gzip --quoting-style=literal --file "$1" | sort >"$root/files.new"
  if [[ -f "$root/files" ]]; then # what an earlier archive brought and this one does not have was deleted from the checkout
    comm -23 "$root/files" "$root/files.new" | while IFS= read -r file; do rm -f -- "$code/$file"; done
  fi
  tar --extract --gzip --file "$1" --directory "$code"
  mv "$root/files.new" "$root/files"
  rm -f "$1"
  say "has the code"
}

install() {
  local made_from
  exec 8>"$root/install.lock"
  flock 8 # where a connection was lost, what it had started still installs, and gcloud connects again
  if [[ ! -f "$venv/made_from" ]]; then make_environment; fi
  made_from=$(cat "$code/setup.py" "$code/constraints.txt" <("$venv/bin/python" -VV) | sha256sum)
  if [[ "$(cat "$venv/made_from" 2>/dev/null)" != "$made_from" ]]; then
    (cd "$code" && "$venv/bin/python" -m pip install --editable '.[tpu]' --constraint constraints.txt) >"$root/install.log" 2>&1 ||
      { tail -n 15 "$root/install.log" | show && fail "the package could not be installed, see ~/actfer_jax/install.log there"; }
    printf '%s\n' "$made_from" >"$venv/made_from"
  fi
  say "is set up with $("$venv/bin/python" -V)"
}

# The images of TPU workers come with a Python that is too old. The first of these that works: one that is there, one that
# uv brings (needs no root, and no apt that another process may have locked), one from the package archive deadsnakes.
make_environment() {
  local python
  for python in python3.11 python3.12 python3.13 python3; do
    rm -rf "$venv"
    if "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null &&
      "$python" -m venv "$venv" >"$root/install.log" 2>&1; then
      return
    fi
  done
  rm -rf "$venv"
  if { python3 -m pip install --user uv && python3 -m uv venv --seed --python 3.11 "$venv"; } >>"$root/install.log" 2>&1; then
    return
  fi
  rm -rf "$venv"
  if {
    sudo add-apt-repository --yes ppa:deadsnakes/ppa &&
      sudo apt-get -o DPkg::Lock::Timeout=600 install --yes python3.11 python3.11-venv &&
      python3.11 -m venv "$venv"
  } >>"$root/install.log" 2>&1; then
    return
  fi
  rm -rf "$venv"
  tail -n 15 "$root/install.log" | show
  fail "no Python 3.11 to 3.13 could be had, neither from the image nor with uv nor from apt's deadsnakes:" \
    "does the worker reach the internet (an external address or Cloud NAT)? Or choose another runtime_version."
}

# Ids of the processes that belong to the training: that hold its lock, or were started by hand from the same environment.
training_processes() { pgrep --full "^$venv/bin/python (.* )?-m actfer_jax\.train( |$)" || true; }
# Those of other users, or from another environment: while one has the TPU, no other can.
other_trainings() {
  pgrep --full --list-full '^[^ ]*python[^ ]* (.* )?-m actfer_jax\.train( |$)' | grep -vF " $venv/bin/python " || true
}
all_processes() {
  { training_processes && find /proc/[0-9]*/fd -lname "$run/lock" 2>/dev/null | cut -d / -f 3; } | sort -u
}

start() { # SECONDS COMMAND...
  local deadline=$((SECONDS + $1))
  shift
  [[ -f "$venv/made_from" ]] || fail "has no environment: run tpu_scripts/setup.sh first"
  exec 9>"$run/lock"
  flock --timeout 5 9 || fail "another training is still there"
  if [[ -f "$run/train.log" ]]; then mv "$run/train.log" "$run/train.previous.log"; fi
  : >"$run/train.log"
  cat "$boot_id_file" >"$run/boot_id"
  printf '%q ' "$@" >"$run/command"
  rm -f "$run/exit_code" "$run/stopped" # last: with them gone, status says that what is above runs
  nohup setsid bash "$code/tpu_scripts/worker.sh" supervise "$@" </dev/null >/dev/null 2>&1 &
  exec 9>&-
  while [[ ! -f "$run/exit_code" ]] && ((SECONDS < deadline)); do sleep 0.2; done
  status 15
  [[ ! -f "$run/exit_code" || "$(<"$run/exit_code")" == 0 ]]
}

# The process that start leaves behind: it outlives a stop, to write down how the training ended. A training that was told to
# stop (SIGTERM), and has saved its state, exits with 0 like one that has finished, unless it is asked for another status.
supervise() { # COMMAND...
  local status=0
  trap : TERM
  cd "$code"
  # With its platforms named, JAX stops where it cannot have the TPU, and does not train on the CPU instead.
  export PATH="$venv/bin:$PATH" PYTHONUNBUFFERED=1 JAX_PLATFORMS="${JAX_PLATFORMS:-tpu,cpu}" ACTFER_STOPPED_STATUS=143
  "$(command -v "$1")" "${@:2}" </dev/null >"$run/train.log" 2>&1 || status=$?
  printf '%s\n' "$status" >"$run/exit_code.new"
  mv "$run/exit_code.new" "$run/exit_code"
}

status() { # LINES [COMMAND...]
  local locked=true exit_code="" command="" same=true since
  if flock --shared --nonblock "$run/lock" true; then locked=false; fi
  # Only now: what holds the lock writes the exit code before it lets go.
  if [[ -f "$run/exit_code" ]]; then exit_code=$(<"$run/exit_code"); fi
  if [[ -f "$run/command" ]]; then command=$(<"$run/command"); fi
  if (($# > 1)) && [[ "$command" != "$(printf '%q ' "${@:2}")" ]]; then same=false; fi
  if [[ -n "$command" && -z "$exit_code" && "$locked" == true ]]; then
    since=$(date -r "$run/boot_id" '+%F %T %Z')
    if [[ "$same" == true ]]; then
      say "runs since $since, last logged $((($(date +%s) - $(date -r "$run/train.log" +%s)) / 60)) minutes ago"
    else
      say "another command trains here since $since: $command"
    fi
  elif [[ -n "$(other_trainings)" ]]; then
    say "another user trains here"
  elif [[ -z "$command" || "$same" == false ]]; then
    say "nothing was launched"
  elif [[ "$(<"$run/boot_id")" != "$(<"$boot_id_file")" ]]; then
    say "lost its training: the machine restarted"
  elif [[ -f "$run/stopped" ]]; then
    say "was stopped (exit code ${exit_code:-none})"
  elif [[ "$exit_code" == 0 ]]; then
    say "exited with 0"
  else
    case "$exit_code" in
      "") say "killed: the training left no exit code" ;;
      134) say "exited with 134 (aborted: most often it lost another worker, whose log has the reason)" ;;
      *) say "exited with $exit_code" ;;
    esac
    show_end "$1" | show
  fi
}

# The end of the log; before it, lines further up that say why a training ended: an abort prints the stacks of all threads
# after them, and the names of all extension modules.
show_end() { # LINES
  local end
  end=$(log +1 | grep --text -vE '^ +@ +0x|^Extension modules: ' | tail --lines="$1") || true
  log +1 | grep --text --max-count=2 -E '^error: |Terminating process because|heartbeat timeout' |
    grep --text -vxF -e "$end" || true
  printf '%s' "${end:+$end$'\n'}"
}

send() { # SIGNAL PROCESS...
  local process
  for process in "${@:2}"; do kill "-$1" "$process" 2>/dev/null || true; done
}

wait_until_clear() { # SECONDS
  local deadline=$(($(date +%s) + $1))
  while [[ -n "$(all_processes)" ]] && (($(date +%s) < deadline)); do sleep 0.2; done
  [[ -z "$(all_processes)" ]]
}

stop() { # SECONDS
  if [[ -n "$(all_processes)" ]]; then touch "$run/stopped"; fi # a stop is neither an end nor a failure of the training
  # shellcheck disable=SC2046 # process ids are words
  send TERM $(training_processes)
  if ! wait_until_clear "$1"; then
    # shellcheck disable=SC2046
    send KILL $(all_processes)
    wait_until_clear 20 || fail "cannot end its processes $(all_processes | paste -s -d ' '): delete the TPU"
  fi
  [[ -z "$(other_trainings)" ]] || fail "another user trains here"
  rm -f "$libtpu_lockfile" 2>/dev/null || sudo rm -f "$libtpu_lockfile"
  say "is clear"
}

log() { # LINES [FLAG...]
  if [[ -f "$run/train.log" ]]; then tail --lines="$1" "${@:2}" "$run/train.log"; else echo "there is no log yet"; fi
}

labelled_log() { log "$@" | show; }

tensorboard() { # LOGDIR PORT
  cd "$code"
  exec "$venv/bin/tensorboard" --logdir="$1" --port="$2" --host=localhost
}

"$@"
