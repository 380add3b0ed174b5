"""What SLURM's variables say about a task; a real one is in tests/e2e/slurm."""

import os

import pytest

from pycls.errors import InputError
from pycls.runtime import slurm
from pycls.runtime.distributed import Ranks, ranks_from_env

STEP = {"SLURM_JOB_ID": "77", "SLURM_STEP_ID": "0", "SLURM_PROCID": "9", "SLURM_LOCALID": "1", "SLURM_NODEID": "2",
        "SLURM_STEP_NUM_TASKS": "11", "SLURM_STEP_NUM_NODES": "3", "SLURM_STEP_TASKS_PER_NODE": "4(x2),3",
        "SLURM_STEP_NODELIST": "gpu[003-004,9]"}  # fmt: skip


@pytest.fixture(autouse=True)
def only(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of a launch but those a test sets; what it sets is undone."""
    for name in [name for name in os.environ if name.startswith(("SLURM_", "MASTER_", "GLOO_"))]:
        monkeypatch.delenv(name)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GLOO_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def adopt(monkeypatch: pytest.MonkeyPatch, **change: str) -> tuple[Ranks, str | None, str | None]:
    for name, value in {**STEP, **change}.items():
        monkeypatch.setenv(name, value)
    slurm.adopt_task()
    return ranks_from_env(), os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")


def test_a_task_knows_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    assert adopt(monkeypatch) == (Ranks(9, 11, 1, 3), "gpu003", str(10_000 + 16 * 77))
    assert "GLOO_SOCKET_IFNAME" not in os.environ


def test_on_one_machine_no_name_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    one = {"SLURM_STEP_NUM_NODES": "1", "SLURM_NODEID": "0", "SLURM_STEP_TASKS_PER_NODE": "11", "SLURM_LOCALID": "9"}
    ranks, host, _ = adopt(monkeypatch, **one)
    assert ranks == Ranks(9, 11, 9, 11) and host == "127.0.0.1" and os.environ["GLOO_SOCKET_IFNAME"] == "lo"


def test_what_is_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    _, host, port = adopt(monkeypatch, MASTER_ADDR="here", SLURM_STEP_RESV_PORTS="12345-12346")
    assert (host, port) == ("here", "12345")
    monkeypatch.setenv("RANK", "0")
    assert adopt(monkeypatch)[0].rank == 0, "it is a worker already"


def test_a_lone_task_is_none_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is a batch script, in which SLURM_PROCID is 0 and there is no step."""
    assert adopt(monkeypatch, SLURM_STEP_NUM_TASKS="1") == (Ranks(), None, None)
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS")
    slurm.adopt_task()
    assert "RANK" not in os.environ


@pytest.mark.parametrize(("name", "value"), [("SLURM_STEP_TASKS_PER_NODE", "4"), ("SLURM_JOB_ID", "x")])
def test_nonsense_is_said(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    with pytest.raises(InputError, match="SLURM's variables"):
        adopt(monkeypatch, **{name: value})


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("vm", "vm"), ("a,b", "a"), ("gpu[003-004,9],x", "gpu003"), ("r[1-2]n[05,07-9]", "r1n05"), ("r[7]-ib", "r7-ib")],
)
def test_the_first_host(nodes: str, first: str) -> None:
    assert slurm.first_host(nodes) == first


def test_ports_of_jobs_and_steps_differ() -> None:
    ports = {slurm.meeting_port(job, step) for job in range(5000, 6250) for step in range(16)}
    assert len(ports) == 20_000 and min(ports) > 1024 and max(ports) < 32_768


def test_cores_of_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    assert slurm.cores_of_task() == 0
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "4")
    assert slurm.cores_of_task() == 0, "of the only task, which may start processes that share them"
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    assert slurm.cores_of_task() == 4
