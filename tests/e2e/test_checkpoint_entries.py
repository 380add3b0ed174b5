"""Checkpoints whose checksum is right and whose entries cannot be: one line that names the entry, and nothing is written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from running import DIGITS, call, snapshot  # type: ignore[import-not-found]

from pycls.engine.checkpoint.snapshot import Snapshot
from pycls.engine.checkpoint.state_file import load_state, load_weights, save_state, save_weights, write_snapshot
from pycls.errors import DamagedFile, InputError

RUN = [*DIGITS, "OPTIM.MAX_EPOCH", "3"]
Change = Callable[[dict[str, Any]], Any]


def put(place: str, value: Any) -> Change:
    """Puts a value at a place of the tree; None of a value's own removes it."""
    *outer, last = place.split("/")

    def change(state: dict[str, Any]) -> None:
        inner: Any = state
        for key in outer:
            inner = inner[int(key) if isinstance(inner, list) else key]
        if value is REMOVED:
            del inner[last]
        else:
            inner[int(last) if isinstance(inner, list) else last] = value

    return change


REMOVED = object()
WEIGHT, MOMENT = "head.similarity.weight", "optimizer/head.similarity.weight/momentum_buffer"
ANYWHERE = [  # of what both a resumed run and weights need
    ("epoch", -1), ("epoch", "3"), ("epoch", 2.0), ("epoch", True), ("epoch", None), ("epoch", REMOVED),
    ("history", REMOVED), ("history", {}), ("history/0", 3), ("history/1/model/top1_err", "low"),
    ("history/1/model/top1_err", REMOVED), ("history/2/train", REMOVED), ("history/2/epoch", -2), ("model", REMOVED),
    ("model", None), ("model", [1]), (f"model/{WEIGHT}", 1.0), ("ema", REMOVED), ("ema", 1), ("class_names", "ten"),
    ("class_counts", [1, -2]), ("config", 7),
]  # fmt: skip
RESUMING = [
    ("epoch", 4), ("epoch", 2), ("epoch", 10**300), ("start", -1), ("start", 1), ("start", "0"), ("start", REMOVED),
    ("best_error", "x"), ("best_error", -1.0), ("best_error", REMOVED), ("history", []), ("optimizer", REMOVED),
    ("optimizer", []), (f"optimizer/{WEIGHT}", REMOVED), (f"optimizer/{WEIGHT}", {}), (f"optimizer/{WEIGHT}", 3),
    (MOMENT, REMOVED), (MOMENT, None), (MOMENT, torch.zeros(3)), (MOMENT, torch.zeros(10, 84, dtype=torch.int64)),
    (f"optimizer/{WEIGHT}/exp_avg", torch.zeros(10, 84)), ("optimizer/other", {"x": 1}), ("scaler", REMOVED),
    ("meter", REMOVED), ("meter", []), ("meter/0/counts", torch.zeros(2, dtype=torch.int64)), ("meter/0/sums", REMOVED),
    ("meter/0/counts", torch.tensor([0, -1, 0])), ("meter/0/counts", torch.zeros(3)), ("meter/0/sums", {"loss": "high"}),
    ("config", REMOVED), ("config", "DATA"), ("config", "a: ["),
]  # fmt: skip


def name_of(case: Any) -> str:
    return "removed" if case is REMOVED else repr(case)[:20]


def assert_refused(ended: Any, *words: str) -> None:
    assert ended.code == 2 and ended.err.startswith("error: ") and ended.err.count("\n") == 1, ended
    for word in words:
        assert word in ended.err, ended.err


@pytest.mark.parametrize(("place", "value"), ANYWHERE + RESUMING, ids=name_of)
def test_a_run_does_not_go_on_from_it(copied: Path, place: str, value: Any) -> None:
    path = copied / "checkpoints/step_000000057.safetensors"
    state = load_state(path)
    put(place, value)(state)
    path.unlink()  # best.safetensors may be the same file
    save_state(path, state)
    before = snapshot(copied)
    named = "history" if place == "epoch" and repr(value) == "2" else place  # a row too many
    assert_refused(call(*RUN, "OUT_DIR", copied), str(path.parent), named)
    assert snapshot(copied) == before


@pytest.mark.parametrize(("place", "value"), ANYWHERE, ids=name_of)
def test_it_is_no_weights(trained: Path, tmp_path: Path, place: str, value: Any) -> None:
    state = load_state(trained / "checkpoints/step_000000057.safetensors")
    put(place, value)(state)
    save_state(tmp_path / "bad.safetensors", state)
    for words in (["--mode", "test", *RUN, "TEST.WEIGHTS"], [*RUN, "TRAIN.WEIGHTS"]):
        ended = call(*words, tmp_path / "bad.safetensors", "OUT_DIR", tmp_path / "out")
        assert_refused(ended, str(tmp_path / "bad.safetensors"), place)
    assert snapshot(tmp_path / "out") == {}


@pytest.mark.parametrize(("name", "value"), [
    ("class_names", 7), ("class_names", ["a", 1]), ("class_counts", ["1"] * 10), ("class_counts", [1.0] * 10),
    ("class_counts", [1, 2]), ("class_counts", [True] * 10), ("config", {}), ("top1_err", "x"), ("mean", 0.5), ("std", ["x"]),
    ("epoch", -1), ("data", []), ("colours", "GBR"),
], ids=name_of)  # fmt: skip
def test_facts_beside_weights(trained: Path, tmp_path: Path, name: str, value: Any) -> None:
    weights, about = load_weights(trained / "model.safetensors")
    save_weights(tmp_path / "bad.safetensors", weights, about | {name: value})
    ended = call("--mode", "test", *RUN, "TEST.WEIGHTS", tmp_path / "bad.safetensors", "OUT_DIR", tmp_path / "out")
    assert_refused(ended, str(tmp_path / "bad.safetensors"), name)
    assert snapshot(tmp_path / "out") == {}


@pytest.mark.parametrize("about", [[], 3, "text", None])
def test_facts_that_are_no_mapping(tmp_path: Path, about: Any) -> None:
    save_weights(tmp_path / "bad", {"w": torch.ones(1)}, about)
    with pytest.raises(InputError, match=r"bad: its content is .*; it should be a mapping"):
        load_weights(tmp_path / "bad")


@pytest.mark.parametrize("tree", [
    "[]", "3", "{", '{"model": {"__tensor__": "nowhere"}}', '{"model": {"__tensor__": ["w"]}}', '{"model": {"__part__": "w"}}',
    '{"model": {"__map__": 3}}', '{"model": {"__map__": [[[], 1]]}}', "[" * 100_000, "1" * 5000,
], ids=lambda tree: tree[:20])  # fmt: skip
def test_a_tree_that_is_none(tmp_path: Path, tree: str) -> None:
    write_snapshot(tmp_path / "bad", Snapshot(tree, {"w": torch.ones(1)}, {}))
    for load in (load_state, load_weights):
        with pytest.raises(InputError, match=r"bad: the state in its metadata") as error:
            load(tmp_path / "bad")
        assert "\n" not in str(error.value) and not isinstance(error.value, DamagedFile)
