"""A stand-in for gcloud and for the workers of a TPU, against which the scripts in tpu_scripts/ are run.

It keeps its state in a directory, records every call, answers `describe` from a script of states, and carries
out what is sent over ssh: each worker has a home directory of its own, one a user, with a stand-in for Python there. So
detaching, logs, exit codes, ending what is left over and launching again are real; the cloud and the training are not.
"""

import json
import os
import select
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

SCRIPTS = Path(__file__).parent.parent / "tpu_scripts"
COMMANDS = ("create", "setup", "launch", "status", "logs", "watch", "tensorboard", "stop", "delete")
WORKDIR = "gs://bucket/run"
USUAL = (
    *("--project=the-project", "--zone=us-west4-a", "--accelerator_type=v5litepod-16", f"--workdir={WORKDIR}"),
    *("--poll_seconds=0", "--launch_seconds=0", "--stop_seconds=20"),
)

QUOTA = "ERROR: (gcloud) RESOURCE_EXHAUSTED: Quota limit 'TPUV5sPreemptibleLitepod' has been exceeded. Limit: 0"

# Answers as gcloud does, for the commands that the scripts use. It fails on all others.
GCLOUD = r'''
import json, os, signal, subprocess, sys
home = os.environ["FAKE"]
arguments = sys.argv[1:]
with open(f"{home}/calls.jsonl", "a") as file:
    file.write(json.dumps(arguments) + "\n")
with open(f"{home}/cloud.json") as file:
    cloud = json.load(file)

def save():
    new = f"{home}/cloud.{os.getpid()}"
    with open(new, "w") as file:
        json.dump(cloud, file)
    os.replace(new, f"{home}/cloud.json")

def refuse(text, status=1):
    sys.stderr.write(text + "\n")
    sys.exit(status)

def flag(name, default=None):
    return next((a.split("=", 1)[1] for a in arguments if a.startswith(f"--{name}=")), default)

def processes():
    for entry in os.listdir("/proc"):
        try:
            with open(f"/proc/{entry}/environ", "rb") as file:
                variables = file.read().split(b"\0")
        except (OSError, ValueError):
            continue
        if f"FAKE={home}".encode() in variables and any(v.startswith(b"FAKE_WORKER=") for v in variables):
            yield int(entry)

def hang():
    """Gives no answer, and neither does a process that it has started: the time for it is over, says the alarm."""
    subprocess.Popen(["sleep", "infinity"])
    os.kill(os.getppid(), signal.SIGALRM)
    signal.pause()

def lose_workers():
    """The machines are gone, and all that was on them."""
    import glob, shutil
    for process in processes():
        try:
            os.kill(process, 9)
        except ProcessLookupError:
            pass
    for worker in range(cloud["workers"]):
        for directory in glob.glob(f"{home}/worker{worker}*"):
            shutil.rmtree(directory, ignore_errors=True)

def look():
    """The state that is next in the script. A state may say what file must be there before it passes."""
    states = cloud["states"]
    if not states:
        return None
    state = states[0]
    if isinstance(state, list):
        passes = os.path.exists(f"{home}/{state[1]}")
        state = state[0]
    else:
        passes = len(states) > 1
    if passes:
        states.pop(0)
    return state

kind, verb, name = arguments[2], arguments[3], arguments[4]
if kind == "queued-resources" and verb == "create":
    if cloud["states"]:
        refuse("ERROR: (gcloud) ALREADY_EXISTS: Resource 'queuedResources/x' already exists")
    answer = cloud["creates"].pop(0)
    save()
    if isinstance(answer, str):
        refuse(answer)
    cloud["states"] = answer
    save()
elif kind == "queued-resources" and verb == "describe":
    state = look()
    if state == "outage":
        save()
        refuse("ERROR: (gcloud) UNAVAILABLE: connection reset")
    if state == "hangs":
        save()
        hang()
    if state in (None, "NONE"):
        save()
        refuse(f"ERROR: (gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: Resource '{name}' was not found")
    state, _, reason = state.partition(": ")
    if state == "SUSPENDED":
        lose_workers()
    if state.startswith("node "):
        cloud["node"], state = state.split()[1], "ACTIVE"
        if cloud["node"] == "PREEMPTED":
            lose_workers()
    elif state == "ACTIVE":
        cloud["node"] = "READY"
    save()
    print(f"{state}\t{reason}")
elif kind == "queued-resources" and verb == "delete":
    if cloud["states"] in ([], ["NONE"]):
        refuse("ERROR: (gcloud) NOT_FOUND: it was not found")
    if cloud["failing_deletes"]:
        cloud["failing_deletes"] -= 1
        save()
        refuse("ERROR: (gcloud) INTERNAL: try again")
    lose_workers()
    cloud["states"] = []
    save()
elif kind == "tpu-vm" and verb == "describe":
    if not cloud["states"]:
        refuse("ERROR: (gcloud) NOT_FOUND: it was not found")
    if cloud["node"] == "outage":
        refuse("ERROR: (gcloud) UNAVAILABLE: connection reset")
    print(f"{cloud['node']}\t{cloud['workers']}")
elif kind == "tpu-vm" and verb in ("ssh", "scp"):
    chosen = flag("worker", "0")
    workers = range(cloud["workers"]) if chosen == "all" else [int(chosen)]
    status = 0
    user = next((a.split("@")[0] for a in arguments[4:] if "@" in a and not a.startswith("--")), "")
    for worker in sorted(reversed(workers), key=cloud["hanging"].count):
        sys.stderr.write(f"{verb.upper()}: Attempting to connect to worker {worker}...\n")
        directory = f"{home}/worker{worker}{'-' if user else ''}{user}"
        os.makedirs(directory, exist_ok=True)
        if worker in cloud["hanging"]:
            hang()
        drop = next((drop for drop in cloud["drops"] if drop[0] == worker and drop[1] in flag("command", "")), None)
        if drop:
            cloud["drops"].remove(drop)
            save()
        if drop or worker in cloud["unreachable"]:
            sys.stderr.write("ssh: connect to host 10.0.0.1 port 22: Connection timed out\n")
            result = 255
        elif verb == "scp":
            source, target = (a for a in arguments[4:] if not a.startswith("--"))
            with open(source, "rb") as here, open(f"{directory}/{target.split(':', 1)[1]}", "wb") as there:
                there.write(here.read())
            result = 0
        else:
            # gcloud splits a command at spaces, and ssh joins the words again.
            command = " ".join(flag("command").split(" "))
            environment = {
                "HOME": directory, "FAKE": home, "FAKE_WORKER": str(worker), "HOSTNAME": f"t1v-n-0123abcd-w-{worker}",
                "PATH": f"{home}/worker_bin:/usr/bin:/bin", "BOOT_ID_FILE": f"{home}/boot_id",
                "LIBTPU_LOCKFILE": f"{directory}/libtpu_lockfile",
            }
            # As with ssh, nothing but the command's output stays open: `run` closes all else.
            result = subprocess.run(["bash", "-c", command], cwd=directory, env=environment).returncode
        if result:
            sys.stderr.write(f"##### Command execution on worker {worker} failed with exit status {result}.\n")
            status = status or result
    sys.exit(status)
else:
    refuse(f"unexpected: {arguments}", 2)
'''

# A worker's Python. `exec -a` gives the training the command line that it has there: the environment's python is first.
PYTHON = r"""#!/bin/bash
printf '%q ' "$@" >> "$HOME/python_calls"; echo >> "$HOME/python_calls"
case "$*" in
  -c\ *) ;;
  "-m venv "*) mkdir -p "$3/bin" && cp "$FAKE/worker_bin/python3.11" "$3/bin/python" ;;
  "-m pip "*) [[ ! -f "$FAKE/pip_fails" ]] || { echo "ERROR: No matching distribution found for jax"; exit 1; } ;;
  -V | -VV) echo "Python 3.11.9" ;;
  "-m actfer_jax.train "*) exec -a "$0" /bin/bash "$FAKE/training.sh" "$@" ;;
  *) echo "unexpected: $*" >&2; exit 2 ;;
esac
"""

# All workers of a test, and of other tests, are on one machine: this finds the processes of one worker.
PGREP = """#!/bin/bash
/usr/bin/pgrep "$@" | while read -r process rest; do
  for variable in "FAKE=$FAKE" "FAKE_WORKER=$FAKE_WORKER"; do
    grep -qzxF "$variable" "/proc/$process/environ" 2>/dev/null || continue 2
  done
  echo "$process${rest:+ $rest}"
done | grep .
"""

CURL = """#!/bin/bash
[[ "$*" == *agent-worker-number* ]] && printf '%s' "$FAKE_WORKER"
"""

# A clock on which some time passes between two looks; all else that date can do, it does.
DATE = """#!/bin/bash
[[ "$*" == +%s ]] || exec /bin/date "$@"
read -r now step < "$FAKE/clock"
echo $((now + step))
echo $((now + step)) "$step" > "$FAKE/clock"
"""

# Trainings. `tell` says something to the test and goes on when the test has read it.
TELL = 'tell() { printf "%s\\n" "$FAKE_WORKER $*" > "$FAKE/told"; }\n'
STOPS = 'trap "echo told to stop: saved step 1 of 9; kill %1; exit 143" TERM\n'
RUNS = TELL + STOPS + "echo step 1\nsleep infinity &\ntell runs $$\nwait"
FINISHES = "echo done"
HANGS = 'trap "kill %1; exit 143" TERM\nsleep infinity &\nwait'


class Cloud:
    """A checkout with the scripts, a stand-in cloud, and what happened there."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.checkout = directory / "the checkout"  # a path with a space

    def make(self) -> None:
        shutil.copytree(SCRIPTS, self.checkout / "tpu_scripts")
        for name in ("setup.py", "constraints.txt", "actfer_jax/train.py", "configs/ucgrpo.py"):
            self.write(name, f"# {name}\n")
        self.write(".gitignore", "/runs/\n.venv*/\n")
        git = ["git", "-c", "init.defaultBranch=main"]
        subprocess.run([*git, "init", "--quiet", "--template="], cwd=self.checkout, check=True)
        subprocess.run([*git, "add", "--all"], cwd=self.checkout, check=True)
        self.executable("bin/gcloud", f"#!{sys.executable} -IS{GCLOUD}")
        self.executable("bin/date", DATE)
        self.executable("bin/tensorboard", '#!/bin/bash\nprintf "%s\\n" "$@" > "$FAKE/tensorboard"\n')
        self.executable("worker_bin/python3.11", PYTHON)
        self.executable("worker_bin/curl", CURL)
        self.executable("worker_bin/pgrep", PGREP)
        for name in ("python3.12", "python3.13", "python3", "sudo"):  # the machine's own must not be used
            self.executable(f"worker_bin/{name}", "#!/bin/bash\nexit 1\n")
        (self.directory / "boot_id").write_text("first boot\n")
        self.minutes_between_looks(1)
        self.training(FINISHES)
        self.set(
            states=[],
            creates=[["ACTIVE"]],
            node="READY",
            workers=4,
            failing_deletes=0,
            unreachable=[],
            hanging=[],
            drops=[],
        )

    def executable(self, name: str, text: str) -> None:
        path = self.directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def write(self, name: str, text: str) -> None:
        """Writes a file of the checkout."""
        path = self.checkout / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def training(self, text: str) -> None:
        (self.directory / "training.sh").write_text(text + "\n")

    def set(self, **changes: Any) -> None:
        path = self.directory / "cloud.json"
        cloud = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(cloud | changes))

    def minutes_between_looks(self, minutes: int) -> None:
        (self.directory / "clock").write_text(f"1700000000 {60 * minutes}\n")

    def active(self, workers: int = 4) -> None:
        """There is a TPU already."""
        self.set(states=["ACTIVE"], workers=workers)

    def run(self, script: str, *flags: str, status: int | None = 0, settings: Sequence[str] | None = None) -> str:
        """Runs a script to its end, with the usual settings; the output and the errors."""
        process = self.start(script, *flags, settings=settings)
        output, _ = process.communicate(timeout=300)
        assert status is None or process.returncode == status, output
        return output

    def start(self, script: str, *flags: str, settings: Sequence[str] | None = None) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            ["bash", self.script(script), *(USUAL if settings is None else settings), *flags],
            env=self.environment,
            cwd=self.directory,  # the scripts must not depend on where they are called
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def script(self, name: str) -> Path:
        return self.checkout / f"tpu_scripts/{name}.sh"

    @property
    def environment(self) -> dict[str, str]:
        path = f"{self.directory}/bin:{os.path.dirname(shutil.which('git') or '')}:/usr/bin:/bin"
        return {"PATH": path, "HOME": str(self.directory), "FAKE": str(self.directory), "LC_ALL": "C.UTF-8"}

    def calls(self, *words: str) -> list[list[str]]:
        """The calls of gcloud that have all of the words."""
        path = self.directory / "calls.jsonl"
        calls = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [call for call in calls if all(word in call for word in words)]

    def verbs(self) -> list[str]:
        """What changed something, in order."""
        return [call[3] for call in self.calls() if call[3] not in ("describe", "ssh")]

    def launches(self) -> list[list[str]]:
        return [call for call in self.calls("ssh") if "worker.sh start" in call[-1]]

    def forget_calls(self) -> None:
        (self.directory / "calls.jsonl").unlink(missing_ok=True)

    def wait_until_told(self, count: int) -> None:
        """Waits until so many trainings have told something."""
        text = ""
        told = os.open(self.directory / "told", os.O_RDWR)  # for writing too, so that it does not wait for a writer
        try:
            while text.count("\n") < count:
                ready, _, _ = select.select([told], [], [], 60)
                assert ready, f"only this was told: {text!r}"
                text += os.read(told, 4096).decode()
        finally:
            os.close(told)

    def home(self, worker: int) -> Path:
        return self.directory / f"worker{worker}"

    def kept(self, worker: int, name: str) -> str:
        return (self.home(worker) / "actfer_jax" / name).read_text()

    def processes(self) -> list[psutil.Process]:
        """What runs on the workers."""
        found = []
        for process in psutil.process_iter():
            try:
                environment = process.environ()
                if environment.get("FAKE") == str(self.directory) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cloud = Cloud(tmp_path_factory.mktemp("template"))
    cloud.make()
    return cloud.directory


@pytest.fixture
def cloud(template: Path, tmp_path: Path) -> Iterator[Cloud]:
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    os.mkfifo(tmp_path / "told")
    cloud = Cloud(tmp_path)
    yield cloud
    for process in cloud.processes():
        process.kill()


@pytest.fixture
def running(cloud: Cloud) -> Cloud:
    """A TPU of two workers with a training that runs."""
    cloud.active(workers=2)
    cloud.run("setup")
    cloud.training(RUNS)
    cloud.run("launch")
    cloud.wait_until_told(2)
    return cloud
