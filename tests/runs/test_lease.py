"""The lease on a workdir, by a clock of the test's own and by real processes; on a disk and in a bucket."""

import dataclasses
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path

import pytest

from actfer_jax.runs.lease import STALE_AFTER, BucketStore, DiskStore, Holder, Lease, Verdict, Watch, runs
from actfer_jax.runs.metrics import WorkdirError
from tests import bucket as stand_in

ELSEWHERE = Holder("a", "worker-7", 4321, "2026-01-01 09:30:00+00:00", "another boot", "17")


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch, stand_in.serve(tmp_path_factory.mktemp("certificate")) as bucket:
        for name, value in bucket.environment.items():
            patch.setenv(name, value)
        yield bucket


@pytest.fixture(params=["disk", "bucket"])
def make_store(request, tmp_path):
    """Makes stores of one lease, as several processes have them."""
    if request.param == "disk":
        return lambda: DiskStore(tmp_path / "lease.json")
    bucket = request.getfixturevalue("bucket")
    bucket.objects.clear()
    return lambda: BucketStore("gs://bucket/run/lease.json")


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def renewed(holder: Holder, times: int = 1) -> Holder:
    return dataclasses.replace(holder, renewals=holder.renewals + times)


def test_a_lease_of_another_machine_is_judged_by_whether_it_changes():
    clock = Clock()
    content, looks = ELSEWHERE.written(), []
    quiet, alive = Watch(clock), Watch(clock)
    for clock.now in (1000, 1019, 1059.9):
        looks.append((quiet.judge(content), alive.judge(content)))
    assert looks == [(Verdict.UNDECIDED, Verdict.UNDECIDED)] * 3
    clock.now = 1000 + STALE_AFTER
    assert quiet.judge(content) is Verdict.FREE
    # What it says of times counts for nothing, and what was seen once is not forgotten.
    assert alive.judge(renewed(ELSEWHERE).written()) is Verdict.HELD
    clock.now += 10 * STALE_AFTER
    assert alive.judge(renewed(ELSEWHERE).written()) is Verdict.HELD
    assert alive.judge(None) is Verdict.FREE


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"token": "x"}', b"\0" * 1024])
def test_a_damaged_lease_is_watched_too(content):
    clock = Clock()
    watch = Watch(clock)
    assert watch.judge(content) is Verdict.UNDECIDED
    clock.now += STALE_AFTER
    assert watch.judge(content) is Verdict.FREE


def test_whether_a_process_of_this_machine_still_runs():
    here = Holder.here()
    assert runs(here) is True
    assert Watch().judge(here.written()) is Verdict.HELD
    # Its id has another process now; the machine was started again; a container's processes are not ours to see.
    assert runs(dataclasses.replace(here, process_started="1")) is False
    assert runs(ELSEWHERE) is None
    boot, space = here.machine.split(" ", 1)
    assert runs(dataclasses.replace(here, machine=f"{boot} pid:[1]")) is None

    with subprocess.Popen(["sleep", "600"]) as process:
        started = Path(f"/proc/{process.pid}/stat").read_text().split()[21]
        other = dataclasses.replace(here, process=process.pid, process_started=started)
        assert runs(other) is True
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert runs(other) is False  # a zombie
    assert runs(other) is False
    assert Watch().judge(other.written()) is Verdict.FREE


def test_what_is_written_is_read_whatever_was_there(make_store):
    store, other = make_store(), make_store()
    assert store.read() is None and store.swap(None, None)
    assert not store.swap(b"x", b"y") and store.read() is None
    assert store.swap(None, b"long content") and other.read() == b"long content"
    assert not other.swap(None, b"y") and not other.swap(b"other", b"y")
    assert other.swap(b"long content", b"short") and store.read() == b"short"
    assert not store.swap(b"long content", None)
    assert store.swap(b"short", None) and other.read() is None


def test_of_many_that_take_a_stale_lease_one_gets_it(make_store):
    starts = 8
    with ThreadPoolExecutor(starts) as pool:
        stores = [make_store() for _ in range(starts)]
        before = None
        for number in range(10):
            contents = [b"%d of %d" % (index, number) for index in range(starts)]
            swapped = list(pool.map(lambda store, new, old=before: store.swap(old, new), stores, contents))
            assert swapped.count(True) == 1
            before = contents[swapped.index(True)]
            assert stores[0].read() == before
            if number % 3 == 2:  # released: the next find none
                assert stores[0].swap(before, None)
                before = None


def test_taken_held_and_released(make_store, caplog):
    clock = Clock()
    make_store().swap(None, ELSEWHERE.written())
    lease, rival = (Lease("run", make_store(), Watch(clock)) for _ in range(2))
    assert not lease.try_to_take() and not rival.try_to_take()
    assert "was being trained by process 4321 on worker-7, since 2026-01-01 09:30:00" in caplog.text
    assert "waiting up to 60 s" in caplog.text
    clock.now += STALE_AFTER
    assert lease.try_to_take()
    with pytest.raises(WorkdirError, match=rf"run is being trained by process {os.getpid()} on .*kill {os.getpid()}"):
        rival.try_to_take()
    assert lease.renew() and lease.renew()
    lease.confirm()
    lease.release()
    assert make_store().read() is None
    assert rival.try_to_take()


def test_a_holder_that_lost_its_lease_says_who_has_it_and_leaves_it(make_store):
    lease = Lease("run", make_store())
    assert lease.try_to_take()
    make_store().swap(make_store().read(), ELSEWHERE.written())
    assert not lease.renew()
    with pytest.raises(WorkdirError, match="run was taken over by process 4321 on worker-7.*writes nothing more"):
        lease.confirm()
    lease.release()
    assert make_store().read() == ELSEWHERE.written()


def test_a_renewal_whose_answer_is_lost_is_no_loss():
    class Store:
        """Does what it is told, and at every second time says that it did not."""

        content, says = None, cycle([True, False])

        def read(self):
            return self.content

        def swap(self, expected, new):
            if self.content != expected:
                return False
            self.content = new
            return next(self.says)

    lease = Lease("run", Store())
    assert lease.try_to_take()
    assert all(lease.renew() for _ in range(4))
    lease.confirm()
