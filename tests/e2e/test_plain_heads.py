"""Ordinary modules as heads: in processes of their own, since what they register stays in a process, and as a library."""

from pathlib import Path

import pytest
import torch
from running import DIGITS, Ended, finish, result, snapshot, start  # type: ignore[import-not-found]
from torch import Tensor, nn

from pycls.heads.output import head_output

HEADS = Path(__file__).with_name("plain_heads.py")
RUN = [*DIGITS, "IMPORTS", f"[{HEADS}]", "OPTIM.MAX_EPOCH", 3, "OPTIM.BASE_LR", 0.1, "TENSORBOARD", False]


def call(*words: object) -> Ended:
    return finish(start(*words))


@pytest.mark.parametrize("head", ["loss_alone", "logits_and_loss"])
def test_a_run_with_a_module_for_a_head(tmp_path: Path, head: str) -> None:
    ended = call(*RUN, "HEAD.NAME", head, "HEAD.TEMPERATURE", 0.5, "OUT_DIR", tmp_path)
    assert ended.code == 0, ended.err
    found = result(tmp_path)
    assert found["test"]["top1_err"] < 30 and found["history"][-1]["train"]["top1_err"] < 50
    tested = call("--mode", "test", "--cfg", tmp_path / "config.yaml", "OUT_DIR", tmp_path)
    assert tested.code == 0 and f"({found['test']['top1_errors']} wrong)" in tested.out, tested
    tuned = call(*RUN, "HEAD.NAME", "softmax", "TRAIN.WEIGHTS", tmp_path / "model.safetensors", "OUT_DIR", tmp_path / "tuned")
    assert tuned.code == 0 and "head re-initialised" in tuned.out, tuned
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


class Plain(nn.Linear):
    def forward(self, features: Tensor, labels: Tensor | None = None) -> Tensor:  # type: ignore[override]
        logits = super().forward(features)
        return logits if labels is None else nn.functional.cross_entropy(logits, labels)


def test_what_a_head_may_return() -> None:
    features, labels = torch.randn(4, 3), torch.tensor([0, 1, 1, 0])
    plain = Plain(3, 2)
    output = head_output(plain, features, labels)
    assert torch.equal(output.logits, plain(features)) and not output.logits.requires_grad and output.loss.requires_grad
    assert output.terms.keys() == {"Plain"}
    with pytest.raises(TypeError, match="the head Identity returns without labels neither logits"):
        head_output(nn.Identity(), torch.ones(3))
    with pytest.raises(TypeError, match="returns with labels neither a loss"):
        head_output(lambda *_: features, features, labels)  # type: ignore[arg-type]
