"""Launching with real processes: what happens when one of them ends badly, or is asked to end."""

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen

import pytest
import torch

from pycls.errors import InputError
from pycls.runtime import report, worker
from pycls.runtime.launch import launch_local

Launch = Callable[..., "Popen[str]"]
pytestmark = pytest.mark.timeout(60)

GROUP = """
import torch
from pycls.runtime.distributed import all_reduce_sum, destroy, init_process_group_from_env
init_process_group_from_env(torch.device("cpu"), timeout_s=40)
all_reduce_sum(torch.ones(3))
"""


def finish(process: "Popen[str]") -> tuple[int, str, str]:
    out, err = process.communicate(timeout=45)
    return process.returncode, out, err


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_each_worker_knows_its_place(launch: Launch) -> None:
    code, out, err = finish(launch(3, """
        names = "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"
        print(" ".join([os.environ[name] for name in names]), flush=True)
    """))  # fmt: skip
    assert (code, err) == (0, "")
    assert sorted(out.splitlines()) == ["0 3 0 3", "1 3 1 3", "2 3 2 3"]


def test_starting_and_ending_cost_little(launch: Launch) -> None:
    """A launch is two plain interpreters, one after the other: no torch in the launcher, no rendezvous."""
    start = time.monotonic()
    assert finish(launch(2, "assert 'torch' not in sys.modules"))[0] == 0
    assert time.monotonic() - start < 4.0, "about 0.2 s on an idle machine"


def test_the_first_error_is_shown_once_and_ends_all(launch: Launch) -> None:
    start = time.monotonic()
    code, _, err = finish(launch(3, GROUP + """
if rank == 1:
    raise LookupError("no such sample: 17")
all_reduce_sum(torch.ones(3))
    """))  # fmt: skip
    assert code == 1
    last = err.splitlines()[-1]
    assert re.fullmatch(r"RunError: rank 1 of 3 on \S+ failed \(exit code 1\): LookupError: no such sample: 17", last)
    assert err.count("Traceback") == 1, "the other ranks' loss of contact is no news"
    assert time.monotonic() - start < 30


def test_a_killed_worker_is_named_though_others_report_its_loss(launch: Launch) -> None:
    code, _, err = finish(launch(3, GROUP + """
if rank == 2:
    os.kill(os.getpid(), signal.SIGKILL)
all_reduce_sum(torch.ones(3))
    """))  # fmt: skip
    assert code == 1
    assert re.search(r"RunError: rank 2 of 3 on \S+ was killed by SIGKILL", err.splitlines()[-1])
    assert "Traceback" not in err


def test_workers_that_do_not_heed_are_killed_when_one_fails(launch: Launch) -> None:
    """A rank in an endless loop that treats SIGTERM as a request never looks at it."""
    start = time.monotonic()
    code, out, err = finish(launch(2, """
        signal.signal(signal.SIGTERM, lambda *_: None)
        if rank == 1:
            time.sleep(0.5)
            os._exit(7)
        print(os.getpid(), flush=True)
        while True:
            time.sleep(0.1)
    """))  # fmt: skip
    assert code == 1 and "rank 1 of 2" in err and "(exit code 7)" in err
    assert time.monotonic() - start < 10
    assert not is_running(int(out))


def test_a_users_error_keeps_its_kind_and_is_one_line(launch: Launch) -> None:
    code, _, err = finish(launch(2, """
        from pycls.errors import InputError
        error = InputError("DATA.ROOT: no such folder")
        assert report_error(error)
        sys.exit(2)
    """))  # fmt: skip
    assert (code, err) == (2, "InputError: DATA.ROOT: no such folder\n")


def test_a_run_error_names_its_rank(launch: Launch) -> None:
    code, _, err = finish(launch(2, """
        from pycls.errors import RunError
        if rank == 1:
            report_error(RunError("the loss is nan at step 5"))
            leave(1)
        time.sleep(30)
    """))  # fmt: skip
    assert code == 1
    assert re.fullmatch(r"RunError: rank 1 of 2 on \S+ failed \(exit code 1\): the loss is nan at step 5\n", err)


STOPPABLE = """
sys.path.insert(0, ".")
from pycls.runtime.signals import StopSignal, exit_code_of
with StopSignal() as stop:
    print("ready", flush=True)
    while not stop.reason:
        time.sleep(0.02)
    print(f"saved {rank}", flush=True)
sys.exit(exit_code_of(stop.reason))
"""


def wait_ready(process: "Popen[str]", count: int) -> None:
    assert process.stdout is not None
    for _ in range(count):
        assert process.stdout.readline() == "ready\n"


@pytest.mark.parametrize(
    ("number", "expected"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 143), (signal.SIGUSR1, 138),
                         (signal.SIGUSR2, 140)], ids=lambda x: str(x)
)
def test_a_request_to_stop_reaches_the_workers_and_is_no_error(launch: Launch, number: int, expected: int) -> None:
    process = launch(2, STOPPABLE)
    wait_ready(process, 2)
    process.send_signal(number)
    code, out, err = finish(process)
    assert (code, err) == (expected, "")
    assert sorted(out.splitlines()) == ["saved 0", "saved 1"]


def test_an_error_while_stopping_is_an_error(launch: Launch) -> None:
    process = launch(2, STOPPABLE.replace("sys.exit(exit_code_of(stop.reason))", """
if rank == 1:
    time.sleep(0.5)
    raise OSError("the disk is full")
sys.exit(exit_code_of(stop.reason))"""))  # fmt: skip
    wait_ready(process, 2)
    process.send_signal(signal.SIGTERM)
    code, _, err = finish(process)
    assert code == 1 and "rank 1 of 2" in err and "OSError: the disk is full" in err.splitlines()[-1]


def test_who_does_not_stop_in_time_is_killed_and_named(launch: Launch) -> None:
    process = launch(2, """
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143) if rank == 0 else None)
        print("ready", flush=True)
        while True:
            time.sleep(0.1)
    """, stop_grace_s=1.0)  # fmt: skip
    wait_ready(process, 2)
    process.send_signal(signal.SIGTERM)
    code, _, err = finish(process)
    assert (code, err) == (1, "RunError: rank 1 did not stop within 1 s of being asked to, and was killed\n")


def test_a_second_interrupt_is_passed_on(launch: Launch) -> None:
    process = launch(2, STOPPABLE.replace("while not stop.reason", "while True"))
    wait_ready(process, 2)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    code, out, err = finish(process)
    assert (code, out, err) == (130, "", "")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the kernel's help in this is Linux's")
def test_workers_die_with_a_killed_launcher(launch: Launch) -> None:
    process = launch(2, """
        print(os.getpid(), flush=True)
        time.sleep(50)
    """)  # fmt: skip
    assert process.stdout is not None
    pids = [int(process.stdout.readline()) for _ in range(2)]
    assert all(is_running(pid) for pid in pids)
    process.kill()
    wait_for(lambda: not any(is_running(pid) for pid in pids), seconds=5)
    finish(process)


def test_a_worker_whose_launcher_is_already_gone_ends(python: Launch) -> None:
    process = python(f"""
        import os
        os.environ["{worker.LAUNCHER_PID}"] = "1" if os.getppid() != 1 else "2"
        from pycls.runtime.worker import die_with_parent
        die_with_parent()
    """)
    assert finish(process)[0] == -signal.SIGKILL


def test_the_number_of_processes_is_checked() -> None:
    with pytest.raises(ValueError, match="0 processes"):
        launch_local(0)


def test_lost_peers_are_told_from_causes() -> None:
    class DistError(RuntimeError):
        """Named as PyTorch's."""

    gloo = RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]")
    assert report.is_lost_peer(gloo) and report.is_lost_peer(DistError("NCCL"))
    assert not report.is_lost_peer(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not report.is_lost_peer(ConnectionRefusedError("Connection refused")), "a download, say"


def test_error_lines() -> None:
    class Special(InputError):
        pass

    assert report.error_type(Special("x")) == "InputError"
    assert report.one_line(InputError("a\n  b")) == "a b"
    assert report.one_line(RuntimeError("first\nException raised from foo")) == "RuntimeError: first"
    assert report.one_line(KeyError()) == "KeyError"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("[x/gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:59601: Connection reset by peer. This is typically",
         "the process at 127.0.0.1 is gone"),
        ("[x/gloo/transport/tcp/pair.cc:561] Connection closed by peer [10.0.0.3]:2948. This is typically caused",
         "the process at 10.0.0.3 is gone"),
        ("[x/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 3000ms for recv operation to complete",
         "another process did not answer for 3 s (RUNTIME.TIMEOUT)"),
        ("[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=4, OpType=ALLREDUCE, Timeout(ms)=600000) "
         "ran for 600028 milliseconds before timing out.", "another process did not answer for 600 s (RUNTIME.TIMEOUT)"),
        ("NCCL error in: ../torch/csrc/x.cpp:1, remote process exited or there was a network error, NCCL version 2.21.5",
         "another process is gone"),
        ("NCCL error in: ../torch/csrc/x.cpp:1, unhandled cuda error, NCCL version 2.21.5",
         "a GPU failed; NCCL_DEBUG=WARN shows which call"),
        ("NCCL of an unknown mood", "RuntimeError: NCCL of an unknown mood"),
    ],
)  # fmt: skip
def test_errors_of_gloo_and_nccl_in_words(error: str, words: str) -> None:
    assert report.one_line(RuntimeError(error)) == words


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("Timed out after 4 seconds waiting for clients. 1/2 clients joined.", "only 1 of 2 processes came"),
        ("The client socket has timed out after 3000ms while trying to connect to (10.0.0.3, 23461).",
         "at 10.0.0.3, port 23461"),
        ("The server socket has failed to listen, code: -98, name: EADDRINUSE, message: address", "set MASTER_PORT"),
    ],
)  # fmt: skip
def test_errors_of_the_rendezvous_in_words(error: str, words: str) -> None:
    assert words in report.one_line(torch.distributed.DistError(error))


def test_without_a_launcher_an_error_is_the_callers_to_show(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (worker.ERROR_FILE, "TORCHELASTIC_ERROR_FILE"):
        monkeypatch.delenv(name, raising=False)
    assert not worker.report_error(ValueError("x"))
    monkeypatch.setenv(worker.ERROR_FILE, str(tmp_path / "missing" / "file"))
    assert not worker.report_error(ValueError("x"))
    monkeypatch.delenv(worker.ERROR_FILE)
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "elastic.json"))
    assert not worker.report_error(ValueError("x"))
    assert "ValueError: x" in (tmp_path / "elastic.json").read_text()


def test_an_abort_after_the_report_is_not_the_cause(launch: Launch) -> None:
    """A process group that nobody left can abort the process while the interpreter shuts down."""
    code, _, err = finish(launch(1, """
        report_error(ValueError("the cause"))
        os.abort()
    """))  # fmt: skip
    last = err.splitlines()[-1]
    assert code == 1 and re.fullmatch(r"RunError: rank 0 of 1 on \S+ failed \(SIGABRT\): ValueError: the cause", last)


def test_only_the_first_report_of_a_process_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(worker.ERROR_FILE, str(tmp_path / "e.json"))
    assert not worker.report_error(ValueError("cause")), "there is no launcher to show it"
    monkeypatch.setenv(worker.LAUNCHER_PID, "1")
    assert worker.report_error(ValueError("cause")) and worker.report_error(ValueError("consequence"))
    assert "cause" in (tmp_path / "e.json").read_text()
    assert os.listdir(tmp_path) == ["e.json"]
