"""watch.sh: carries a run to its end, and guards against cost."""

import os
import re
import sys

import pytest
from stand_in_cloud import FINISHES, HANGS, QUOTA, TELL, WORKDIR, Cloud

pytest_plugins = ["stand_in_cloud"]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="worker.sh is for Linux: flock, setsid, /proc")


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
