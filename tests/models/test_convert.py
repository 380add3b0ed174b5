"""tools/convert_weights.py on real files: every form to every other, the model's numbers unchanged; mistakes in a line."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pycls.engine.checkpoint.state_file import save_weights
from pycls.models import create_model
from pycls.models.weight_names import from_ours, to_ours
from pycls.run.convert import main

NET = ["MODEL.TYPE", "regnet", "REGNET.DEPTH", "5", "REGNET.W0", "8", "REGNET.WA", "6.0", "REGNET.WM", "2.0",
       "REGNET.SE_ON", "True"]  # fmt: skip


@pytest.fixture
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return create_model("regnet", 7, in_channels=1, image_size=64, depth=5, w0=8, wa=6.0, wm=2.0, se_on=True)


def test_there_and_back(model: torch.nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """pycls's checkpoint -> torchvision's state dict -> ours -> pycls's again: classes and channels are seen in the file."""
    start, theirs, ours, end = (str(tmp_path / n) for n in ("a.pyth", "b.pth", "c.safetensors", "d.pyth"))
    published = from_ours(model.state_dict(), model, "pycls")
    torch.save({"epoch": 99, "model_state": published, "cfg": "MODEL: {}"}, start)
    assert main(["--to", "torchvision", start, theirs, *NET]) == 0
    assert "trunk_output.block1.block1-0.f.a.0.weight" in torch.load(theirs, weights_only=True)
    assert main(["--to", "ours", "--from", "torchvision", theirs, ours, *NET]) == 0
    model.load_state_dict({**load_file(ours), "head.steps": torch.tensor(0)})
    assert main(["--to", "pycls", ours, end, *NET]) == 0
    again = torch.load(end, weights_only=True)["model_state"]
    assert again.keys() == published.keys()
    assert all(torch.equal(again[name], published[name]) for name in published)
    assert "wrote" in capsys.readouterr().out


def test_by_architecture(tmp_path: Path) -> None:
    source, out = tmp_path / "in.pth", tmp_path / "out.safetensors"
    net = create_model("RegNetX-200MF", 3)
    torch.save(from_ours(net.state_dict(), net, "pycls"), source)
    assert main(["--to", "ours", "--from-colours", "RGB", "--arch", "RegNetX-200MF", str(source), str(out)]) == 0
    ours = load_file(out)
    for name in ("stem.conv", "s1.b1.f.a"):
        assert torch.equal(ours[f"backbone.{name}.weight"], net.state_dict()[f"backbone.{name}.weight"])


def logits(state: dict[str, Tensor], images: Tensor) -> Tensor:
    """Of a RegNetX-200MF with these weights, under our names."""
    net = create_model("RegNetX-200MF", 3, image_size=32)
    net.load_state_dict({**state, "head.steps": torch.tensor(0)})
    with torch.inference_mode():
        return torch.as_tensor(net.double().eval()(images.double()).logits)


@pytest.mark.parametrize(("dataset", "turned"), [("imagenet", True), ("cifar10", False)])
def test_the_colours_that_each_shows(dataset: str, turned: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What pycls's net says of BGR, ours says of RGB; and back again, to the bit, by way of every kind of file."""
    torch.manual_seed(0)
    net = create_model("RegNetX-200MF", 3, image_size=32)
    images = torch.randn(2, 3, 32, 32)
    start, ours, again, end = (str(tmp_path / n) for n in ("a.pyth", "b.safetensors", "c.pyth", "d.safetensors"))
    published = from_ours(net.state_dict(), net, "pycls")
    torch.save({"epoch": 99, "model_state": published, "cfg": f"TRAIN:\n  DATASET: {dataset}\n"}, start)
    as_pycls_shows_them = logits(to_ours(published, net, "pycls"), images.flip(1) if turned else images)
    for to, source, out in (("ours", start, ours), ("pycls", ours, again), ("torchvision", again, end)):
        assert main(["--to", to, "--arch", "RegNetX-200MF", source, out]) == 0
        said = capsys.readouterr().out
        assert said.endswith("BGR images\n" if to == "pycls" and turned else "RGB images\n")
    torch.testing.assert_close(logits(load_file(ours), images), as_pycls_shows_them, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(logits(load_file(ours), images.flip(1)), as_pycls_shows_them, rtol=1e-3)
    back = torch.load(again, weights_only=True)
    assert {"epoch", "model_state"} <= back.keys(), "what pycls's loader reads"
    assert all(torch.equal(back["model_state"][name], published[name]) for name in published)
    assert torch.equal(load_file(end)["stem.0.weight"], load_file(ours)["backbone.stem.conv.weight"])


def test_a_run_of_ours_tells_what_pycls_would_show(tmp_path: Path) -> None:
    net = create_model("RegNetX-200MF", 3)
    about = {"config": "TRAIN:\n  DATASET: imagenet_lt\n"}
    save_weights(tmp_path / "model.safetensors", net.state_dict(), about)
    words = ["--arch", "RegNetX-200MF", str(tmp_path / "model.safetensors"), str(tmp_path / "out.pyth")]
    own = net.backbone.stem.conv.weight
    assert main(["--to", "pycls", *words]) == 0
    assert torch.equal(torch.load(words[-1], weights_only=True)["model_state"]["stem.conv.weight"], own.flip(1))
    assert main(["--to", "pycls", "--to-colours", "RGB", *words]) == 0
    assert torch.equal(torch.load(words[-1], weights_only=True)["model_state"]["stem.conv.weight"], own)


@pytest.mark.parametrize(
    ("to", "about", "message"),
    [
        ("ours", {}, "in.pyth was trained on nothing that the file tells: give --from-colours BGR"),
        ("ours", {"cfg": "TRAIN: {DATASET: pets}"}, "in.pyth was trained on the images of pets, which pycls does not have"),
        ("pycls", {"colours": "RGB"}, "give --to-colours BGR, in which pycls shows ImageNet, or RGB"),
    ],
)
def test_the_order_of_colours_is_not_guessed(
    to: str, about: dict[str, str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = create_model("RegNetX-200MF", 3)
    torch.save({"model_state": from_ours(net.state_dict(), net, "pycls"), **about}, tmp_path / "in.pyth")
    assert main(["--to", to, "--arch", "RegNetX-200MF", str(tmp_path / "in.pyth"), str(tmp_path / "out.pyth")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.pyth").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["in.pth", "out.pth", *NET], "these weights are for another model: x"),
        (["--from", "pycls", "in.pth", "out.pth", *NET], "not in pycls's names: missing head.fc.bias"),
        (["--arch", "RegNetX-400M", "in.pth", "out.pth"], "no architecture named 'RegNetX-400M'; did you mean 'RegNetX-400MF'"),
        (["--arch", "ResNet-50", "in.pth", "out.pth", "MODEL.DEPTH", "3"], "give --arch, or --cfg and options, not both"),
        (["in.pth", "out.pth"], "whose weights are these?"),
        (["none.pth", "out.pth", *NET], "no such file: none.pth"),
        (["in.pth", "out.onnx", *NET], "out.onnx: expected a file in a folder that there is, with .safetensors"),
        (["in.pth", "out.pth", "MODEL.TYPE", "lenet5"], "these weights are for another model: x"),
    ],
)
def test_mistakes(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"x": torch.zeros(1)}, "in.pth")
    assert main(["--to", "pycls", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error
    assert not Path("out.pth").exists()
