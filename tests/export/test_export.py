"""Files that programs without pycls can run: the model's logits, for any number of images."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pycls
from pycls.cli import main as train
from pycls.errors import InputError, RunError
from pycls.models import Classifier, create_model
from pycls.registry import HEADS, MODELS
from pycls.run import export as module
from pycls.run.export import Logits, export, main

ROOT = Path(__file__).parents[2]
COUNTED = ("balanced_softmax", "ldam", "logit_adjustment")
SMALL: dict[str, dict[str, Any]] = {
    "anynet": {"image_size": 32, "stem_w": 16, "depths": (1, 2), "widths": (16, 32), "strides": (1, 2), "se_on": True,
               "bot_muls": (0.5, 1.0), "group_ws": (8, 8)},
    "densenet": {"image_size": 32, "depth": 40},
    "effnet": {"image_size": 32},
    "lenet5": {"image_size": 8},
    "regnet": {"image_size": 32, "se_on": True, "depth": 4},
    "resnet": {"image_size": 32, "depth": 20},
    "timm": {"image_size": 32, "name": "resnet10t"},
    "torchvision": {"image_size": 32, "name": "mobilenet_v3_small"},
    "vit": {"image_size": 32, "num_layers": 2, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 64},
    "wrn": {"image_size": 32, "depth": 10},
}  # fmt: skip


def trained(name: str = "lenet5", head: str = "softmax", **options: Any) -> Classifier:
    """Logits of the size of 1, so that a difference shows."""
    torch.manual_seed(0)
    counts = {"class_counts": torch.arange(1, 11)} if head in COUNTED else None
    model = create_model(name, 10, head, counts, **{**SMALL.get(name, {}), **options}).eval()
    for key, buffer in model.named_buffers():
        if key.endswith("running_var"):
            buffer.uniform_(0.1, 0.5)
    with torch.no_grad():
        model.head.similarity.weight.normal_()
    return model


@pytest.mark.parametrize("head", [name for name in HEADS.names() if HEADS.get(name).__module__.startswith("pycls.")])
def test_every_head_is_a_graph_for_any_number_of_images(head: str) -> None:
    counts = {"class_counts": torch.arange(1, 11)} if head in COUNTED else {}
    torch.manual_seed(0)
    made = pycls.create_head(head, in_features=12, num_classes=10, **counts).eval()
    with torch.no_grad():
        made.similarity.weight.normal_()
        if made.similarity.bias is not None:
            made.similarity.bias.normal_()
    model = Logits(Classifier(nn.Flatten(), made))
    dynamic = {"images": {0: torch.export.Dim("batch")}}
    graph = torch.export.export(model, (torch.randn(2, 3, 2, 2),), dynamic_shapes=dynamic).module()
    for n in (1, 2, 5):
        images = torch.randn(n, 3, 2, 2)
        expected = model(images)
        assert expected.std() > 1e-3
        torch.testing.assert_close(graph(images), expected, rtol=1e-5, atol=1e-5)


def test_a_run_becomes_onnx(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="pip install 'pycls-heads[export]'")
    run = ["--cfg", str(ROOT / "configs/digits/lenet5_softmax.yaml"), "DEVICE", "cpu", "NUM_THREADS", "1"]
    assert train([*run, "TENSORBOARD", "False", "OPTIM.MAX_EPOCH", "1", "OUT_DIR", str(tmp_path / "run")]) == 0
    out = tmp_path / "new" / "model.onnx"
    assert main(["--cfg", str(tmp_path / "run/config.yaml"), "--to", "onnx", str(out)]) == 0
    assert f"wrote {out}; largest difference to the model on random images: " in capsys.readouterr().out
    assert os.listdir(out.parent) == ["model.onnx"]
    session = runtime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    assert [(i.name, i.shape[1:]) for i in session.get_inputs()] == [("images", [1, 8, 8])]
    model, channels, size = module.build_trained(module.config.load(str(tmp_path / "run/config.yaml")), "")
    images = torch.randn(7, channels, size, size)
    with torch.inference_mode():
        expected = model.eval()(images).logits
    found = torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_an_exported_program(tmp_path: Path) -> None:
    model = trained("resnet")
    assert export(model, 3, 32, tmp_path / "model.pt2", "torch.export") <= 1e-4
    program = torch.export.load(tmp_path / "model.pt2").module()
    images = torch.randn(4, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(program(images), model(images).logits)


@pytest.mark.slow
@pytest.mark.parametrize("to", module.FORMATS)
@pytest.mark.parametrize("name", [name for name in MODELS.names() if MODELS.get(name).__module__.startswith("pycls.")])
def test_every_backbone(tmp_path: Path, name: str, to: str) -> None:
    pytest.importorskip("onnxruntime", reason="pip install 'pycls-heads[export]'")
    if name == "timm":
        pytest.importorskip("timm", reason="pip install 'pycls-heads[timm]'")
    model = trained(name)
    channels = 1 if name.startswith(("lenet", "lsoftmax")) else 3
    assert export(model, channels, SMALL.get(name, {}).get("image_size", 28), tmp_path / "model", to) <= 1e-4


class Sorts(nn.Module):
    """What a graph cannot express."""

    feature_dim = 12

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) * (1.0 if float(images.sum()) > 0 else 2.0)


def test_what_cannot_be_exported_is_a_line(tmp_path: Path) -> None:
    model = Classifier(Sorts(), pycls.create_head("softmax", in_features=12, num_classes=3))
    with pytest.raises(RunError, match="Sorts with its head cannot be exported: ") as error:
        export(model, 3, 2, tmp_path / "model.pt2", "torch.export")
    assert "\n" not in str(error.value) and os.listdir(tmp_path) == []


def test_a_file_that_differs_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = module._load_program

    def load(path: Path) -> module.Runner:
        run = honest(path)
        return lambda images: run(images) + 1e-3

    monkeypatch.setattr(module, "_load_program", load)
    with pytest.raises(RunError, match=r"the torch\.export file differs from the model by .*e-0\d, more than 0\.0001"):
        export(trained(), 1, 8, tmp_path / "model.pt2", "torch.export")
    assert os.listdir(tmp_path) == []


def test_nan_differs(tmp_path: Path) -> None:
    model = trained()
    with torch.no_grad():
        model.head.similarity.weight[0, 0] = torch.nan
    with pytest.raises(RunError, match="differs from the model by nan"):
        export(model, 1, 8, tmp_path / "model.pt2", "torch.export")


def test_a_package_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(InputError, match=r"onnx.*: pip install 'pycls-heads\[export\]'"):
        export(trained(), 1, 8, tmp_path / "model.onnx", "onnx")


def test_mistakes_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(ROOT / "configs/digits/lenet5_softmax.yaml")
    assert main(["--cfg", config, str(tmp_path / "x"), "OUT_DIR", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: no checkpoint in ")
    assert main(["--cfg", config, "--weights", "none.pyth", str(tmp_path / "x")]) == 2
    assert capsys.readouterr().err == "error: no such file: none.pyth\n"
    assert main(["--cfg", "none.yaml", str(tmp_path / "x")]) == 2
    assert "no such file: none.yaml" in capsys.readouterr().err
