"""Ordinary modules as heads, through the command line and as a library."""

from pathlib import Path

import plain_heads  # type: ignore[import-not-found]
import pytest
import torch
from running import DIGITS, call, result, snapshot  # type: ignore[import-not-found]

import pycls
from pycls.heads.output import head_output

RUN = [*DIGITS, "IMPORTS", f"[{plain_heads.__file__}]", "OPTIM.MAX_EPOCH", 3, "OPTIM.BASE_LR", 0.1, "TENSORBOARD", False]


@pytest.mark.parametrize("head", ["loss_alone", "logits_and_loss"])
def test_a_run_with_a_module_for_a_head(tmp_path: Path, head: str) -> None:
    ended = call(*RUN, "HEAD.NAME", head, "HEAD.TEMPERATURE", 0.5, "OUT_DIR", tmp_path)
    assert ended.code == 0, ended.err
    found = result(tmp_path)
    assert found["test"]["top1_err"] < 30 and found["history"][-1]["train"]["top1_err"] < 50
    tested = call("--mode", "test", "--cfg", tmp_path / "config.yaml", "OUT_DIR", tmp_path)
    assert tested.code == 0 and f"({found['test']['top1_errors']} wrong)" in tested.out, tested
    tuned = call(*RUN, "HEAD.NAME", "softmax", "TRAIN.WEIGHTS", tmp_path / "model.safetensors", "OUT_DIR", tmp_path / "tuned")
    assert tuned.code == 0 and "newly initialised" in tuned.out, tuned
    assert call("--mode", "info", *RUN, "HEAD.NAME", head).code == 0


@pytest.mark.parametrize(("options", "key"), [
    (["HEAD.MARGIN_WARMUP", 5], "HEAD.MARGIN_WARMUP 5"), (["HEAD.CHUNK", 2], "HEAD.CHUNK 2"),
    (["TRAIN.LABEL_SMOOTHING", 0.1], "TRAIN.LABEL_SMOOTHING 0.1"),
    (["HEAD.CRITERION.NAME", "focal"], "HEAD.CRITERION.NAME focal"),
    (["TEST.OPEN_SET", "digits"], "TEST.OPEN_SET digits"),
])  # fmt: skip
def test_what_only_a_head_of_parts_has(tmp_path: Path, options: list[object], key: str) -> None:
    ended = call(*RUN, "HEAD.NAME", "loss_alone", *options, "OUT_DIR", tmp_path / "out")
    assert ended.code == 2 and f"error: {key}: the head loss_alone (Plain) is not composed of parts" in ended.err, ended
    assert not snapshot(tmp_path / "out")


def test_what_a_head_may_return() -> None:
    features, labels = torch.randn(4, 3), torch.tensor([0, 1, 1, 0])
    plain = pycls.create_head("loss_alone", 3, 2)
    output = head_output(plain, features, labels)
    assert torch.equal(output.logits, plain(features)) and not output.logits.requires_grad and output.loss.requires_grad
    assert output.terms.keys() == {"Plain"}
    for kind, given in (("logits", None), ("a loss", labels)):
        with pytest.raises(TypeError, match=kind):
            head_output(torch.nn.Identity() if given is None else lambda *_: features, torch.ones(3), given)  # type: ignore[arg-type]
