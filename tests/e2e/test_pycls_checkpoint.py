"""A checkpoint as pycls writes it after three epochs with its cosine schedule: tested, fine-tuned, and converted."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejson
import torch
from running import DIGITS, call, result, snapshot  # type: ignore[import-not-found]
from torch import Tensor

from pycls.engine.checkpoint.state_file import save_weights
from pycls.models import create_model
from pycls.models.weight_names import from_ours
from pycls.registry import DATASETS
from pycls.run.convert import main as convert

NET = ["MODEL.TYPE", "resnet", "MODEL.DEPTH", "8"]
RUN = [*DIGITS, *NET, "OPTIM.MAX_EPOCH", "1", "TENSORBOARD", "False"]
Published = tuple[dict[str, Tensor], dict[str, Any]]
CFG = "MODEL:\n  TYPE: resnet\n  DEPTH: 8\nOPTIM:\n  LR_POLICY: cos\nTRAIN:\n  DATASET: digits\n"


@pytest.fixture(scope="module")
def published() -> Published:
    """(weights under our names, what pycls's ``save_checkpoint`` would write of the same)."""
    import pycls.data  # noqa: F401 (registers them)

    torch.manual_seed(0)
    data = DATASETS.get("digits")("", "train")
    model = create_model("resnet", 10, depth=8, in_channels=1, image_size=8)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    images = (data.images.float() / (255 if data.images.dtype == torch.uint8 else 1) - data.mean[0]) / data.std[0]
    for epoch in range(3):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * 0.5 * (1.0 + np.cos(np.pi * epoch / 3))  # a numpy.float64
        for ids in torch.randperm(len(images)).split(128):
            optimizer.zero_grad()
            model(images[ids], data.labels[ids]).loss.backward()
            optimizer.step()
    ours = {name: value.detach().clone() for name, value in model.state_dict().items()}
    theirs, state = from_ours(ours, model, "pycls"), optimizer.state_dict()
    state["param_groups"][0] |= {"momentum": np.float32(0.9), "dampening": np.int64(0), "nesterov": np.bool_(True),
                                 "initial_lr": np.array(0.1), "steps": np.arange(3), "dtype": np.dtype("f4")}  # fmt: skip
    ema = {name: torch.zeros_like(value) for name, value in theirs.items()}
    return ours, {"epoch": np.int64(2), "test_err": np.float64(9.5), "ema_err": np.float32(90), "model_state": theirs,
                  "ema_state": ema, "optimizer_state": state, "cfg": CFG}  # fmt: skip


def assess(weights: Path, out: Path) -> dict[str, Any]:
    ended = call("--mode", "test", *RUN, "TEST.WEIGHTS", weights, "OUT_DIR", out)
    assert ended.code == 0, ended.err
    return dict(simplejson.loads((out / "test.json").read_text()))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("zipped", "module"), [(True, "numpy.core.multiarray"), (False, "numpy._core.multiarray")])
def test_it_is_tested_fine_tuned_and_converted(
    published: Published, tmp_path: Path, zipped: bool, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = published
    numpys = pytest.importorskip("numpy._core.multiarray", reason="NumPy 2 writes both names")
    path = tmp_path / "model_epoch_0003.pyth"
    with monkeypatch.context() as patch:
        patch.setattr(numpys.scalar, "__module__", module)
        patch.setattr(numpys._reconstruct, "__module__", module)
        torch.save(theirs, path, _use_new_zipfile_serialization=zipped)
    assert module.encode() in path.read_bytes()
    save_weights(tmp_path / "same.safetensors", ours, {})
    expected = assess(tmp_path / "same.safetensors", tmp_path / "a")["test"]
    found = assess(path, tmp_path / "b")
    assert found["test"] == expected and found["epoch"] == 2 and expected["top1_err"] < 50
    converted = tmp_path / "ours.safetensors"
    assert convert(["--to", "ours", str(path), str(converted), *NET]) == 0
    assert assess(converted, tmp_path / "c")["test"] == expected
    ended = call(*RUN, "TRAIN.WEIGHTS", path, "OPTIM.BASE_LR", 1e-3, "OUT_DIR", tmp_path / "tuned")
    assert ended.code == 0 and result(tmp_path / "tuned")["test"]["top1_err"] < expected["top1_err"] + 2, ended.err


class _Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_one_that_asks_for_more_is_refused_and_nothing_in_it_runs(
    published: Published, tmp_path: Path, zipped: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    mark, path, out = tmp_path / "was_here", tmp_path / "evil.pyth", tmp_path / "out.safetensors"
    torch.save(published[1] | {"optimizer_state": {"lr": _Evil(mark)}}, path, _use_new_zipfile_serialization=zipped)
    commands = (["--mode", "test", *RUN, "TEST.WEIGHTS", path], [*RUN, "TRAIN.WEIGHTS", path])
    errors = [call(*words, "OUT_DIR", tmp_path / "run") for words in commands]
    assert [ended.code for ended in errors] == [2, 2] and convert(["--to", "ours", str(path), str(out), *NET]) == 2
    for text in (*(ended.err for ended in errors), capsys.readouterr().err):
        assert text.startswith("error: ") and text.count("\n") == 1
        assert f"{path} is refused: it asks to run {os.system.__module__}.system when it is read" in text
    assert not mark.exists() and not out.exists() and snapshot(tmp_path / "run") == {}
