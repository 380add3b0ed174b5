"""Checkpoints in parts, in each of which a process has its rows: here the processes are objects of one."""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pycls.engine.checkpoint import checkpoints as checkpoints_module
from pycls.engine.checkpoint.checkpoints import Checkpoints
from pycls.engine.checkpoint.sharded_rows import ShardedRows
from pycls.engine.checkpoint.snapshot import LocalShard, take
from pycls.engine.checkpoint.state_file import load_state, load_weights, parts_of, write_part, write_snapshot
from pycls.errors import DamagedFile, RunError
from pycls.runtime.distributed import Ranks

SIZES = ([3, 2], [2, 3], [0, 5], [5, 0], [1, 0, 4], [2, 1, 1, 1], [0, 0])


def rows_of(step: int) -> Tensor:
    return torch.arange(10.0).view(5, 2) + 100 * step


def state_of(step: int, rank: int, sizes: Sequence[int] = (3, 2)) -> dict[str, Any]:
    """A state of which this process has its rows of two tensors; the others lie as they please in memory."""
    rows = rows_of(step)[: sum(sizes)].split(list(sizes))[rank]
    model = {"weight": LocalShard(rows), "bias": torch.full((2,), float(step))}
    return {"model": model, "ema": None, "epoch": step, "history": [],
            "optimizer": {"weight": {"moment": LocalShard(rows.t().contiguous().t().bfloat16())}}}  # fmt: skip


@pytest.fixture(autouse=True)
def same_tag(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The two processes of a pair get the same one, as by rank 0's word."""
    count = itertools.count()
    monkeypatch.setattr(checkpoints_module, "broadcast_object", lambda _: f"{next(count) // 2:08x}")
    yield


def save(folder: Path, step: int, best: bool = False, keep: int = 2) -> None:
    pair = [Checkpoints(folder, keep) for _ in range(2)]
    for rank, checkpoints in enumerate(pair):
        checkpoints.save(step, state_of(step, rank), best, Ranks(rank, 2))
    for checkpoints in pair:
        checkpoints.wait()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_rows_come_back_in_any_cut(tmp_path: Path, sizes: list[int]) -> None:
    parts = [tmp_path / f"part{rank}" for rank in range(len(sizes))]
    for rank, part in enumerate(parts):
        write_part(part, take(state_of(1, rank, sizes), shards_only=rank > 0).shards)
    write_snapshot(tmp_path / "main", take(state_of(1, 0, sizes)), parts)
    assert parts_of(tmp_path / "main") == [part.name for part in parts]
    expected = rows_of(1)[: sum(sizes)]
    found = load_state(tmp_path / "main")
    assert torch.equal(found["model"]["weight"], expected) and found["model"]["bias"].tolist() == [1, 1]
    moment = found["optimizer"]["weight"]["moment"]
    assert moment.dtype == torch.bfloat16 and torch.equal(moment, expected.bfloat16()) and found["epoch"] == 1
    split = load_state(tmp_path / "main", whole=False)["model"]["weight"]
    assert isinstance(split, ShardedRows) and split.shape == expected.shape and split.ndim == 2 and len(split) == sum(sizes)
    for low, high in itertools.combinations_with_replacement(range(sum(sizes) + 1), 2):
        assert torch.equal(split[low:high], expected[low:high])
    weights, about = load_weights(tmp_path / "main")
    assert torch.equal(weights["weight"], expected) and about["epoch"] == 1


def test_another_process_copies_no_more_than_its_part() -> None:
    memory: dict[str, Tensor] = {}
    snapshot = take(state_of(1, 1), memory, shards_only=True)
    assert snapshot.tensors == {} and sorted(snapshot.shards) == sorted(memory) == ["model/weight", "optimizer/weight/moment"]


def test_the_newest_and_the_best_keep_their_parts_and_nobody_else(tmp_path: Path) -> None:
    for step in range(1, 6):
        if step == 3:
            for name in ("part_000000002_deadbeef_0_of_3.safetensors", "part_of_me.safetensors"):
                (tmp_path / name).write_bytes(b"of a save that was killed, or somebody's")
        save(tmp_path, step, best=step == 2)
    mains = [tmp_path / f"{name}.safetensors" for name in ("best", "step_000000004", "step_000000005")]
    assert len({name for main in mains for name in parts_of(main)}) == 6
    assert names(tmp_path) == sorted({"part_of_me.safetensors", *(main.name for main in mains),
                                      *(name for main in mains for name in parts_of(main))})  # fmt: skip
    for main, step in zip(mains, (2, 4, 5), strict=True):
        assert torch.equal(load_state(main)["model"]["weight"], rows_of(step))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path, Path], object]] = {
    "flipped": lambda part, other: flip(part),
    "truncated": lambda part, other: part.write_bytes(part.read_bytes()[:-1]),
    "empty": lambda part, other: part.write_bytes(b""),
    "missing": lambda part, other: part.unlink(),
    "another's": lambda part, other: part.write_bytes(other.read_bytes()),
}


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_part_is_found(tmp_path: Path, kind: str, rank: int, caplog: pytest.LogCaptureFixture) -> None:
    for step in (1, 2):
        save(tmp_path, step)
    parts, others = ([tmp_path / name for name in parts_of(Checkpoints(tmp_path, 2).path(step))] for step in (2, 1))
    DAMAGE[kind](parts[rank], others[rank])
    state = Checkpoints(tmp_path, 2).newest()
    assert state is not None and state["epoch"] == 1 and torch.equal(state["model"]["weight"][:], rows_of(1))
    (line,) = caplog.messages
    assert parts[rank].name in line and line.endswith("going back to the checkpoint before it")
    save(tmp_path, 2)
    assert load_state(tmp_path / "step_000000002.safetensors")["epoch"] == 2
    assert not parts[0].exists() and not parts[1].exists(), "the next attempt has parts of its own"


def test_the_processes_share_the_checking(tmp_path: Path) -> None:
    save(tmp_path, 1)
    path = tmp_path / "step_000000001.safetensors"
    flip(tmp_path / parts_of(path)[1])
    load_state(path, share=(0, 2))
    for share in ((1, 2), (0, 1)):
        with pytest.raises(DamagedFile, match="_1_of_2"):
            load_state(path, share=share)


def test_parts_are_looked_for_beside_their_file_only(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    part = tmp_path / "part"
    write_part(part, take(state_of(1, 0)).shards)
    write_snapshot(tmp_path / "main", take(state_of(1, 0)), [part])
    data = (tmp_path / "main").read_bytes()
    (tmp_path / "in/main").write_bytes(data)
    with pytest.raises(DamagedFile, match=r"in/main is incomplete: its part part is not beside it"):
        load_state(tmp_path / "in/main")


def test_parts_that_do_not_fit_are_no_checkpoint(tmp_path: Path) -> None:
    parts = [tmp_path / "a", tmp_path / "b"]
    for part, shape in zip(parts, ((2, 3), (2, 4)), strict=True):
        write_part(part, {"model/weight": torch.zeros(shape)})
    write_snapshot(tmp_path / "main", take({"model": {"weight": LocalShard(torch.zeros(2, 3))}}), parts)
    with pytest.raises(DamagedFile, match="do not fit together"):
        load_state(tmp_path / "main")


def test_without_the_others_parts_there_is_no_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 1)
    late = Checkpoints(tmp_path, 2, timeout_s=0.1)
    late.save(2, state_of(2, 0), True, Ranks(0, 2))
    with pytest.raises(RunError, match=r"no process wrote .*part_000000002_\w+_1_of_2.safetensors within 0 s \(RUNTIME"):
        late.wait()
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="gloo"), Checkpoints(tmp_path, 2) as alone:
        alone.save(3, state_of(3, 0), True, Ranks(0, 2))
        raise RuntimeError("[../gloo/transport/tcp/pair.cc:1] Connection closed by peer [127.0.0.1]:1")
    assert time.monotonic() - began < 10
    assert Checkpoints(tmp_path, 2).steps() == [1] and not (tmp_path / "best.safetensors").exists()


def test_a_process_that_cannot_write_says_so(tmp_path: Path) -> None:
    (tmp_path / "part_000000001_00000000_1_of_2.safetensors").mkdir()  # nothing can be renamed to this
    with pytest.raises(RunError, match=r"cannot write .*_1_of_2"), Checkpoints(tmp_path, 2) as checkpoints:
        checkpoints.save(1, state_of(1, 1), False, Ranks(1, 2))
