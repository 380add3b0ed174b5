"""Files of state: every value comes back, and no change of a byte goes unnoticed."""

import math
import random
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pycls.engine.checkpoint import checkpoints as checkpoints_module
from pycls.engine.checkpoint.checkpoints import Checkpoints, load_model_state, model_state
from pycls.engine.checkpoint.snapshot import Snapshot
from pycls.engine.checkpoint.state_file import better_weights, load_state, load_weights, save_state, save_weights
from pycls.errors import DamagedFile, InputError, RunError

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
          torch.uint8, torch.bool]  # fmt: skip


def equal(ours: Any, theirs: Any) -> bool:
    if isinstance(theirs, torch.Tensor):
        return ours.dtype == theirs.dtype and ours.shape == theirs.shape and torch.equal(ours, theirs)
    if isinstance(theirs, dict):
        return sorted(ours, key=str) == sorted(theirs, key=str) and all(equal(ours[k], theirs[k]) for k in theirs)
    if isinstance(theirs, list | tuple):
        return len(ours) == len(theirs) and all(map(equal, ours, theirs))
    return type(ours) is type(theirs) and ours == theirs


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_of_every_type_come_back(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    whole = (torch.randn(3, 4, 2, 2) * 50).to(dtype)
    state = {"whole": whole, "scalar": whole[0, 0, 0, 0], "empty": whole[:0], "view": whole[:, 1::2], "turned": whole.mT,
             "last": whole.contiguous(memory_format=torch.channels_last)}  # fmt: skip
    save_state(tmp_path / "a", state)
    assert equal(load_state(tmp_path / "a"), state)


def test_trees_come_back(tmp_path: Path) -> None:
    state = {"none": None, "flags": [True, False], "numbers": {"i": 2**60, "f": 0.1 + 0.2, "e": 1e-320, "minus": -0.0},
             "text": "Ünï \"quoted\"\n", "nested": [{"a": [torch.ones(2), {"b": torch.zeros(1)}]}, [], {}],
             "by number": {3: torch.ones(1), 7: "seven"}, "a/b": 1, "a": {"b": torch.ones(3)}}  # fmt: skip
    save_state(tmp_path / "a", state)
    assert equal(load_state(tmp_path / "a"), state)
    save_state(tmp_path / "b", {"loss": math.inf, "worse": math.nan})
    found = load_state(tmp_path / "b")
    assert found["loss"] == math.inf and math.isnan(found["worse"])
    with pytest.raises(TypeError, match="a/1: a set"):
        save_state(tmp_path / "c", {"a": [1, {2}]})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_what_was_saved_does_not_change_with_the_model(tmp_path: Path) -> None:
    weight = torch.zeros(3)
    save_state(tmp_path / "a", {"one": weight, "two": weight})
    weight += 1
    assert load_state(tmp_path / "a")["two"].tolist() == [0, 0, 0]


def positions(size: int) -> list[int]:
    """All of the header's beginning, and a sample of everything."""
    return [*range(16), *random.Random(size).sample(range(size), 300), size - 1]


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_state(tmp_path / "good", {"model": {"weight": torch.randn(20, 20)}, "epoch": 3, "history": [{"loss": 0.25}] * 20})
    data = (tmp_path / "good").read_bytes()
    bad = tmp_path / "bad"
    for place in positions(len(data)):
        flipped = bytearray(data)
        flipped[place] ^= 1 << place % 8
        bad.write_bytes(flipped)
        with pytest.raises(DamagedFile, match="bad"):
            load_state(bad)


def test_every_length_is_found(tmp_path: Path) -> None:
    save_state(tmp_path / "good", {"weight": torch.randn(10)})
    data = (tmp_path / "good").read_bytes()
    for length in range(0, len(data), 7):
        (tmp_path / "bad").write_bytes(data[:length])
        with pytest.raises(DamagedFile):
            load_state(tmp_path / "bad")
    (tmp_path / "bad").write_bytes(data + b"\0")
    with pytest.raises(DamagedFile):
        load_state(tmp_path / "bad")


def test_flipped_weights_are_found(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_weights(tmp_path / "good", {"weight": torch.randn(30, 30), "bias": torch.randn(30)}, {"top1_err": 2.5})
    weights, about = load_weights(tmp_path / "good")
    assert about == {"top1_err": 2.5} and weights["weight"].shape == (30, 30)
    data = (tmp_path / "good").read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    for place in [*range(8), *random.Random(1).sample(range(header, len(data)), 200)]:
        flipped = bytearray(data)
        flipped[place] ^= 1 << place % 8
        (tmp_path / "bad").write_bytes(flipped)
        with pytest.raises(DamagedFile):
            load_weights(tmp_path / "bad")


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    for load in (load_state, load_weights):
        with pytest.raises(InputError, match="no such file"):
            load(tmp_path / "none")
    save_weights(tmp_path / "weights", {"w": torch.ones(1)}, {})
    with pytest.raises(DamagedFile, match="not a checkpoint"):
        load_state(tmp_path / "weights")


def test_the_better_weights() -> None:
    def state(model: float, ema: float) -> dict[str, Any]:
        return {"ema": {}, "history": [{"model": {"top1_err": model}, "ema": {"top1_err": ema}}]}

    assert better_weights(state(2.0, 1.0)) == "ema"
    assert better_weights(state(1.0, 2.0)) == better_weights(state(1.0, 1.0)) == "model"
    assert better_weights({"ema": None, "history": []}) == "model"
    assert better_weights({"ema": {}, "history": []}) == better_weights({"ema": {}, "history": [{"train": {}}]}) == "ema"


# --- the folder of checkpoints


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    assert checkpoints.steps() == [] and checkpoints.newest() is None and checkpoints.best() is None
    for step in range(1, 6):
        checkpoints.save(step, {"step": step}, best=step == 2)
    checkpoints.wait()
    assert checkpoints.steps() == [4, 5] and load_state(tmp_path / "c/best.safetensors") == {"step": 2}
    assert checkpoints.newest() == {"step": 5}
    (tmp_path / "c/step_1.safetensors").write_text("someone else's")
    with checkpoints:
        checkpoints.save(6, {"step": 6}, best=True)
    assert checkpoints.steps() == [5, 6] and (tmp_path / "c/step_1.safetensors").exists()
    assert load_state(tmp_path / "c/best.safetensors") == {"step": 6}


def test_damaged_ones_are_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (1, 2, 3):
        checkpoints.save(step, {"step": step}, best=False)
    checkpoints.wait()
    checkpoints.path(3).write_bytes(b"no")
    assert checkpoints.newest() == {"step": 2}
    assert "step_000000003" in caplog.text and "going back to the checkpoint before it" in caplog.text
    checkpoints.save(2, {"step": 2}, best=False)
    checkpoints.wait()
    assert checkpoints.steps() == [1, 2], "the run has got round the damaged one"
    for step in (1, 2):
        checkpoints.path(step).write_bytes(b"no")
    with pytest.raises(InputError, match="every checkpoint"):
        checkpoints.newest()


def test_what_is_saved_is_the_state_of_that_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, may_write = threading.Event(), threading.Event()
    write = checkpoints_module.write_snapshot

    def slowly(path: Path, snapshot: Snapshot, parts: Sequence[Path]) -> None:
        begun.set()
        assert may_write.wait(10)
        write(path, snapshot, parts)

    monkeypatch.setattr(checkpoints_module, "write_snapshot", slowly)
    checkpoints = Checkpoints(tmp_path, keep=2)
    weight, history = torch.arange(6.0).view(1, 2, 3, 1).to(memory_format=torch.channels_last), [{"loss": 1.0}]
    state = {"weight": weight, "half": weight.bfloat16(), "none": torch.zeros(0), "history": history}
    checkpoints.save(1, state, best=False)
    assert begun.wait(10) and checkpoints.steps() == [], "the loop goes on before anything is written"
    memory = [tensor.data_ptr() for tensor in checkpoints._memory.values()]
    weight.zero_()
    history.append({"loss": 0.5})
    may_write.set()
    checkpoints.save(2, state, best=False)
    checkpoints.wait()
    assert [tensor.data_ptr() for tensor in checkpoints._memory.values()] == memory, "the memory is used again"
    first, second = (load_state(checkpoints.path(step)) for step in (1, 2))
    assert torch.equal(first["weight"], torch.arange(6.0).view(1, 2, 3, 1)) and first["history"] == [{"loss": 1.0}]
    assert first["half"].dtype == torch.bfloat16 and first["none"].shape == (0,)
    assert not second["weight"].any() and len(second["history"]) == 2


def test_what_the_disk_refuses_is_said_once_and_costs_nothing(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(1, {"step": 1}, best=True)
    checkpoints.wait()
    checkpoints.path(2).mkdir()  # nothing can be renamed to this
    checkpoints.save(2, {"step": 2}, best=True)
    with pytest.raises(RunError, match=r"cannot write .*step_000000002"):
        checkpoints.save(3, {"step": 3}, best=False)
    checkpoints.path(2).rmdir()
    checkpoints.raise_error()
    checkpoints.save(3, {"step": 3}, best=False)
    checkpoints.wait()
    assert checkpoints.steps() == [1, 3] and load_state(tmp_path / "best.safetensors") == {"step": 1}


def test_weights_of_another_model_are_refused() -> None:
    small, large = nn.Linear(2, 3), nn.Linear(2, 4)
    with pytest.raises(InputError, match=r"a.file holds .* 2 names or shapes differ \(its bias is \[3\], not \[4\]\)"):
        load_model_state(large, model_state(small), "a.file")
    with pytest.raises(InputError, match="lacks bias"):
        load_model_state(small, {"weight": small.weight}, "a.file")
    with pytest.raises(InputError, match="has scale"):
        load_model_state(small, {**model_state(small), "scale": torch.ones(1)}, "a.file")
