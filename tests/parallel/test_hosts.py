"""Two real processes on this machine: what they tell each other, and how they stop together."""

import json
import os
import pty
import signal
import socket
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from threading import Event, Thread
from urllib.parse import parse_qs, urlsplit

import pytest

from actfer_jax.config import ConfigError
from actfer_jax.parallel.hosts import Interrupted, connect, gather, termination, watch_machine
from benchmarks.equal_training import free_port

PROCESS = """
import json, os, signal, sys
import jax
from actfer_jax.parallel import hosts
index = int(sys.argv[2])
hosts.connect(sys.argv[1], 2, index)
said = {"index": index, "text": "long " * (9000 if index else 1) + "\\u00e9", "values": [1.5, None]}
heard = hosts.gather(said)
with hosts.termination() as stop:
    before = stop.agreed()
    if index == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    after = stop.agreed()
def prepare():
    raise OSError("no space")
try:
    hosts.first_before_others(prepare)
except OSError as error:
    failed = [0, str(error)]
except hosts.ConfigError as error:
    failed = [1, str(error)]
print(json.dumps([failed, jax.process_count(), heard, before, after]))
"""


def test_processes_hear_each_other_and_stop_together():
    address = f"127.0.0.1:{free_port()}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, address, str(index)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    # Gloo says on standard output that it is connected.
    said = [json.loads(output.splitlines()[-1]) for output, _ in outputs]
    failed, (count, heard, before, after) = [one.pop(0) for one in said], said[0]
    assert failed == [[0, "no space"], [1, "process 0 ends: no space"]]
    assert said[1] == said[0]
    assert count == 2 and [record["index"] for record in heard] == [0, 1]
    assert [len(record["text"]) for record in heard] == [6, 45_001] and heard[0]["values"] == [1.5, None]
    assert (before, after) == (0, signal.SIGTERM)


def test_one_process_needs_no_others():
    connect()
    assert gather({"a": (1, 2)}) == [{"a": (1, 2)}]
    with pytest.raises(ConfigError, match="--coordinator, --processes and --process"):
        connect("127.0.0.1:1", None, 0)


@pytest.mark.parametrize(
    ("coordinator", "processes", "index", "words"),
    [
        ("localhost", 2, 0, "give HOST:PORT, such as localhost:12345"),
        (":1234", 2, 0, "give HOST:PORT"),
        ("localhost:port", 2, 0, "give HOST:PORT"),
        ("localhost:99999", 2, 0, "give HOST:PORT"),
        ("localhost:1234", 2, 2, "--process=2 is none of --processes=2"),
        ("localhost:1234", 0, 0, "--process=0 is none of --processes=0"),
        ("localhost:1234", 2, -1, "--process=-1 is none"),
    ],
)
def test_an_address_that_is_none_is_refused(coordinator, processes, index, words):
    with pytest.raises(ConfigError, match=words):
        connect(coordinator, processes, index)


def test_a_port_that_is_in_use_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on port {port} .*in use.*another port"):
            connect(f"127.0.0.1:{port}", 2, 0)


@pytest.fixture(params=[signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def number(request):
    """A signal that is not ignored, which it is where the tests run in the background."""
    before = signal.signal(request.param, signal.SIG_DFL)
    yield request.param
    signal.signal(request.param, before)


def test_a_signal_is_remembered_and_the_handler_put_back(number):
    before = signal.getsignal(number)
    with termination() as stop:
        stop.check()
        os.kill(os.getpid(), number)
        with pytest.raises(Interrupted, match=number.name):
            stop.check()
    assert signal.getsignal(number) is before
    assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP], indirect=True)
def test_what_is_ignored_stays_ignored(number):
    """A background job of a script, and what runs under nohup."""
    signal.signal(number, signal.SIG_IGN)
    with termination() as stop:
        os.kill(os.getpid(), number)
        stop.check()


# Waits for as long as a file is open, and then says what it was told. As when a program compiles, Ctrl-C does not reach
# its main thread.
WAITS = """
import ctypes, fcntl, os, signal, sys, termios
from actfer_jax.parallel import hosts
if os.isatty(0):
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
with hosts.termination() as stop:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    print("ready", flush=True)
    libc = ctypes.CDLL(None)
    while libc.read(int(sys.argv[1]), ctypes.create_string_buffer(1), 1) < 0:
        pass
    print("a line for a terminal that may be gone", flush=True)
    with open(sys.argv[2], "w") as file:
        file.write(signal.Signals(stop.noticed).name)
"""


def waiting(tmp_path: Path, **streams) -> tuple[subprocess.Popen, int]:
    """A process that waits, and the file whose closing ends that."""
    read, write = os.pipe()
    command = [sys.executable, "-c", WAITS, str(read), str(tmp_path / "told")]
    process = subprocess.Popen(command, env=os.environ | {"JAX_PLATFORMS": "cpu"}, pass_fds=[read], **streams)
    os.close(read)
    return process, write


def test_a_second_interrupt_ends_a_process_at_once(tmp_path):
    process, write = waiting(tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGINT)
    for line in process.stderr:
        if b"Ctrl-C again stops at once" in line:
            break
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=300)
    assert process.returncode == 130
    assert not (tmp_path / "told").exists()
    os.close(write)


def test_a_closed_terminal_is_remembered_and_nothing_is_written_to_it(tmp_path):
    master, terminal = pty.openpty()
    process, write = waiting(tmp_path, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True)
    os.close(terminal)
    while b"ready" not in os.read(master, 1000):
        pass
    os.close(master)
    os.close(write)
    assert process.wait(timeout=300) == 0
    assert (tmp_path / "told").read_text() == "SIGHUP"


def test_what_google_cloud_announces_is_logged_and_a_preemption_stops_the_run(monkeypatch, caplog):
    values = {"maintenance-event": ["NONE", "TERMINATE_ON_HOST_MAINTENANCE"], "preempted": ["FALSE", "TRUE"]}
    heard, over = {key: Event() for key in values}, Event()

    class Metadata(BaseHTTPRequestHandler):
        """As the metadata server of a machine answers: the value at once, then when it is another one."""

        def do_GET(self) -> None:
            address = urlsplit(self.path)
            key, etag = PurePosixPath(address.path).name, int(parse_qs(address.query)["last_etag"][0])
            assert self.headers["Metadata-Flavor"] == "Google" and "wait_for_change" in address.query
            if etag == len(values[key]):
                heard[key].set()
                over.wait()
                return
            self.send_response(200)
            self.send_header("ETag", str(etag + 1))
            self.end_headers()
            self.wfile.write(values[key][etag].encode())

    with ThreadingHTTPServer(("127.0.0.1", 0), Metadata) as server, termination() as stop:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("GCE_METADATA_HOST", f"127.0.0.1:{server.server_port}")
        stop.check()
        watch_machine(stop)
        assert all(event.wait(timeout=60) for event in heard.values())
        with pytest.raises(Interrupted):
            stop.check()
        over.set()
        server.shutdown()
    assert sorted(record.getMessage() for record in caplog.records) == [
        "Google Cloud announces maintenance-event: TERMINATE_ON_HOST_MAINTENANCE",
        "Google Cloud announces preempted: TRUE",
    ]
