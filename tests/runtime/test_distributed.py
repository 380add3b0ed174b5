"""The process group, with real processes."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pycls.errors import InputError
from pycls.runtime import distributed
from pycls.runtime.distributed import Ranks

pytestmark = pytest.mark.timeout(60)

COLLECTIVES = """
import torch
from pycls.runtime.distributed import agree, all_reduce_sum, barrier, broadcast_object, destroy, largest
from pycls.runtime.distributed import init_process_group_from_env
ranks = init_process_group_from_env(torch.device("cpu"), timeout_s=30)
assert ranks.rank == rank
big = 2**53 + 1
counts = all_reduce_sum(torch.tensor([big if rank == 0 else 0, 1]))
assert counts.tolist() == [big, ranks.world_size], counts
assert agree(rank == 1) == (ranks.world_size > 1) and not agree(False)
assert largest(7 + rank) == 6 + ranks.world_size
assert broadcast_object({"from": rank}) == {"from": 0}
barrier()
destroy()
print(f"{rank} of {ranks.world_size}", flush=True)
"""


@pytest.mark.parametrize("num_procs", [1, 3])
def test_collectives_over_processes(launch: Callable[..., "subprocess.Popen[str]"], num_procs: int) -> None:
    process = launch(num_procs, COLLECTIVES)
    out, err = process.communicate(timeout=45)
    assert process.returncode == 0, err
    assert sorted(out.splitlines()) == [f"{rank} of {num_procs}" for rank in range(num_procs)]


def test_torchrun(tmp_path: Path, env: dict[str, str]) -> None:
    script = tmp_path / "worker.py"
    script.write_text("import os\nrank = int(os.environ['RANK'])\n" + COLLECTIVES)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=45)
    assert done.returncode == 0, done.stderr
    assert sorted(re.findall(r"\d of \d", done.stdout)) == ["0 of 2", "1 of 2"]  # their lines may run into one another


@pytest.fixture
def no_launch(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_a_single_process_has_no_group(no_launch: pytest.MonkeyPatch) -> None:
    assert distributed.init_process_group_from_env(torch.device("cpu"), 30) == Ranks(0, 1, 0, 1)
    assert not torch.distributed.is_initialized()
    tensor = torch.tensor([3])
    assert distributed.all_reduce_sum(tensor) is tensor
    assert distributed.agree(True) and not distributed.agree(False)
    assert distributed.broadcast_object("x") == "x"
    distributed.barrier()
    distributed.destroy()


def test_sums_that_could_overflow_are_refused() -> None:
    for dtype in (torch.int32, torch.uint8, torch.bool):
        with pytest.raises(ValueError, match="int64"):
            distributed.all_reduce_sum(torch.ones(2, dtype=dtype))


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "2"}, "RANK is missing"),
        ({"WORLD_SIZE": "two", "RANK": "0"}, "WORLD_SIZE is 'two'"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "contradict"),
        ({"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "2"}, "contradict"),
    ],
)
def test_a_senseless_environment(no_launch: pytest.MonkeyPatch, variables: dict[str, str], message: str) -> None:
    for name, value in variables.items():
        no_launch.setenv(name, value)
    with pytest.raises(InputError, match=message):
        distributed.ranks_from_env()


def test_mps_is_for_one_process(no_launch: pytest.MonkeyPatch) -> None:
    no_launch.setenv("WORLD_SIZE", "2")
    no_launch.setenv("RANK", "1")
    with pytest.raises(InputError, match="one process"):
        distributed.init_process_group_from_env(torch.device("mps"), 30)
