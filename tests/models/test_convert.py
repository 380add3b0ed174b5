"""tools/convert_weights.py on real files: every form to every other, the model's numbers unchanged; mistakes in a line."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pycls.convert import main
from pycls.models import create_model
from pycls.models.weight_names import from_ours

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
    assert main(["--to", "ours", "--arch", "RegNetX-200MF", str(source), str(out)]) == 0
    assert torch.equal(load_file(out)["backbone.s1.b1.f.a.weight"], net.backbone.s1.b1.f.a.weight)


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
