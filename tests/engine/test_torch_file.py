"""PyTorch's files: read for weights alone, whatever else they hold or want."""

import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pycls.engine.checkpoint.state_file import load_weights
from pycls.engine.checkpoint.torch_file import is_torch_file
from pycls.errors import DamagedFile, InputError


class Calls:
    """An object that is made by a call when it is read."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.made_by = function, arguments

    def __reduce__(self) -> Any:
        return self.made_by


def checkpoint() -> dict[str, Any]:
    """What pycls saves: weights, and the state of an optimiser that has made a step."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    net(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    states = {"model_state": net.state_dict(), "optimizer_state": optimizer.state_dict()}
    return {"epoch": 99, **states, "cfg": "MODEL:\n  TYPE: x\n"}


@pytest.mark.parametrize("zipped", [True, False])
def test_pycls_checkpoints_of_all_ages(tmp_path: Path, zipped: bool) -> None:
    saved = checkpoint()
    torch.save(saved, tmp_path / "a.pyth", _use_new_zipfile_serialization=zipped)
    weights, about = load_weights(tmp_path / "a.pyth")
    assert about == {"epoch": 99, "cfg": "MODEL:\n  TYPE: x\n"}
    assert weights.keys() == saved["model_state"].keys()
    assert all(torch.equal(weights[name], saved["model_state"][name]) for name in weights)


@pytest.mark.parametrize(("ema_err", "taken"), [(22.0, 1.0), (24.0, 0.0), (None, 0.0)])
def test_the_better_of_model_and_average(tmp_path: Path, ema_err: float | None, taken: float) -> None:
    content: dict[str, Any] = {"model_state": {"w": torch.zeros(2)}, "ema_state": {"w": torch.ones(2)}, "test_err": 23.0}
    if ema_err is not None:
        content["ema_err"] = ema_err
    torch.save(content, tmp_path / "a.pyth")
    assert load_weights(tmp_path / "a.pyth")[0]["w"].tolist() == [taken, taken]


@pytest.mark.parametrize("wrapper", ["", "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_state_dicts_and_their_wrappings(tmp_path: Path, wrapper: str, prefix: str) -> None:
    state = OrderedDict({f"{prefix}fc.weight": torch.ones(2, 3), f"{prefix}fc.bias": torch.zeros(2)})
    torch.save({wrapper: state} if wrapper else state, tmp_path / "a.pth")
    assert load_weights(tmp_path / "a.pth")[0].keys() == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("evil", [
    Calls(os.system, "touch {}"), Calls(eval, "open({!r}, 'w')"), Calls(exec, "open({!r}, 'w')"), Calls(open, "{}", "w"),
    Calls(getattr, "text", "upper"), Calls(np.save, "{}", np.zeros(1)), Calls(torch.save, 1, "{}"), nn.Linear(2, 2),
], ids=["system", "eval", "exec", "open", "getattr", "numpy.save", "torch.save", "module"])  # fmt: skip
def test_code_is_refused(tmp_path: Path, form: str, evil: Any) -> None:
    mark, path = tmp_path / "was_here", tmp_path / "evil.pyth"
    if isinstance(evil, Calls):
        function, arguments = evil.made_by
        evil = Calls(function, *(a.format(str(mark)) if isinstance(a, str) else a for a in arguments))
    content = {"model_state": {"w": torch.ones(1)}, "cfg": evil}
    if form == "pickle":
        path.write_bytes(pickle.dumps({"cfg": evil}))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(InputError) as error:
        load_weights(path)
    message = str(error.value)
    assert "\n" not in message and str(path) in message and "weights_only" not in message
    assert "is refused: it asks to run" in message if form != "pickle" else "nothing of it was run" in message
    assert not mark.exists()


def test_a_pickle_of_the_oldest_kind_is_not_read_at_all(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(pickle.dumps(Calls(os.system, f"touch {tmp_path / 'was_here'}"), protocol=0))
    with pytest.raises(DamagedFile, match="no file of weights"):
        load_weights(tmp_path / "a.pt")
    assert not (tmp_path / "was_here").exists()


def test_a_program_is_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(tmp_path / "a.pt"))
    with pytest.raises(InputError, match=r"a\.pt is refused: it is compressed"):
        load_weights(tmp_path / "a.pt")


def test_names_in_an_archive_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with zipfile.ZipFile(tmp_path / "in" / "a.pth", "w") as archive:
        archive.writestr("../evil", "x")
        archive.writestr("/tmp/pycls-evil", "x")
        archive.writestr("archive/data.pkl", pickle.dumps({}))
    with pytest.raises(DamagedFile):
        load_weights(tmp_path / "in" / "a.pth")
    assert not (tmp_path / "evil").exists() and not Path("/tmp/pycls-evil").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_anywhere(tmp_path: Path, zipped: bool) -> None:
    torch.save(checkpoint(), tmp_path / "good", _use_new_zipfile_serialization=zipped)
    data = (tmp_path / "good").read_bytes()
    for length in [0, 1, 5, *range(9, len(data), len(data) // 40)]:
        (tmp_path / "bad").write_bytes(data[:length])
        with pytest.raises(InputError, match=r"bad (is damaged|is refused|holds)") as error:
            load_weights(tmp_path / "bad")
        assert "\n" not in str(error.value)


def test_a_flipped_bit_in_a_tensor(tmp_path: Path) -> None:
    saved = checkpoint()
    torch.save(saved, tmp_path / "good")
    data = bytearray((tmp_path / "good").read_bytes())
    data[data.index(saved["model_state"]["0.weight"].numpy().tobytes()) + 17] ^= 4
    (tmp_path / "bad").write_bytes(data)
    with pytest.raises(DamagedFile, match=r"bad is damaged: .* does not match its checksum"):
        load_weights(tmp_path / "bad")


@pytest.mark.parametrize(
    "content", [[1, 2], {"a": 1}, {}, {"model_state": {}}, {"model_state": {1: torch.ones(1)}}, torch.ones(2)]
)
def test_no_weights_in_it(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"a\.pth holds .*no weights"):
        load_weights(tmp_path / "a.pth")


def test_a_safetensors_file_whose_length_begins_as_a_pickle_does(tmp_path: Path) -> None:
    for size in range(300):
        save_file({"w": torch.zeros(1)}, tmp_path / "w.safetensors", {"note": "x" * (520 + size)})
        assert not is_torch_file(tmp_path / "w.safetensors")
