"""pycls's checkpoints with NumPy's numbers wherever pycls can have them; and files that ask for more, or are forged."""

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pycls.engine.checkpoint.state_file import load_weights
from pycls.engine.checkpoint.torch_pickle import open_torch_file
from pycls.errors import DamagedFile, InputError

KINDS = [np.bool_(True), np.int8(-3), np.int16(-300), np.int32(7), np.int64(-(2**40)), np.uint8(200), np.uint16(60000),
         np.uint32(2**31), np.uint64(2**63), np.float16(0.5), np.float32(0.1), np.float64(0.1), np.longdouble(1.5),
         np.complex64(1 + 2j), np.complex128(1 - 2j), np.clongdouble(2j), np.str_("g\u00e4h"), np.bytes_(b"ab")]  # fmt: skip


def pycls_checkpoint(epoch: Any = 2) -> dict[str, Any]:
    """The entries of pycls's ``save_checkpoint`` after three epochs, with NumPy's numbers where its schedule puts them."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, nesterov=True)
    for cur_epoch in range(3):
        for group in optimizer.param_groups:
            group["lr"] = 0.5 * (1.0 + np.cos(np.pi * cur_epoch / 3)) * 0.1
            group["kinds"] = KINDS
        optimizer.zero_grad()
        net(torch.randn(2, 3, 8, 8)).square().mean().backward()
        optimizer.step()
    ema = {name: value.clone() for name, value in net.state_dict().items()}
    return {"epoch": epoch, "test_err": np.float64(31.25), "ema_err": np.float32(50), "model_state": net.state_dict(),
            "ema_state": ema, "optimizer_state": optimizer.state_dict(), "cfg": "MODEL:\n  TYPE: x\n"}  # fmt: skip


@pytest.fixture(params=["numpy._core.multiarray", "numpy.core.multiarray"])
def numpys_names(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy 2's and NumPy 1's."""
    module = pytest.importorskip("numpy._core.multiarray", reason="NumPy 2 writes both names")
    for function in (module.scalar, module._reconstruct):
        monkeypatch.setattr(function, "__module__", request.param)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("protocol", range(1, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("zipped", [True, False])
def test_numbers_of_numpy_in_every_place(tmp_path: Path, numpys_names: None, zipped: bool, protocol: int) -> None:
    saved = pycls_checkpoint(np.int64(2))
    turned = np.asfortranarray(np.eye(3, 2, dtype=">i4"))
    saved["more"] = {"dtype": np.dtype(">f4"), "array": np.arange(6.0).reshape(2, 3), "f": turned,
                     "none": np.zeros((0, 3), np.uint8), "one": np.array(3.5), np.float64(0.5): [(np.int64(1),)], "set": {1, 2},
                     "complex": 1j, "bytes": b"\xff\x00", "empty": b"", "size": torch.Size((2, 3)), "dtype2": torch.bfloat16,
                     "device": torch.device("cpu"), "ordered": OrderedDict(a=1)}  # fmt: skip
    torch.save(saved, tmp_path / "a.pyth", _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    weights, about = load_weights(tmp_path / "a.pyth")
    assert about == {"epoch": 2, "test_err": 31.25, "ema_err": 50.0, "cfg": "MODEL:\n  TYPE: x\n"}
    assert all(type(value) in (int, float, str) for value in about.values())
    assert weights.keys() == saved["model_state"].keys()
    assert all(torch.equal(weights[name], saved["model_state"][name]) for name in weights)
    with open_torch_file(tmp_path / "a.pyth") as tree:
        group = tree["optimizer_state"]["param_groups"][0]
        assert group["lr"] == saved["optimizer_state"]["param_groups"][0]["lr"] and type(group["lr"]) is float
        assert group["kinds"] == [k.item() if k.dtype.itemsize < 16 or k.dtype.kind in "cSU" else float(k) for k in KINDS]
        momentum = tree["optimizer_state"]["state"][0]["momentum_buffer"].load()
        assert torch.equal(momentum, saved["optimizer_state"]["state"][0]["momentum_buffer"])
        more = tree["more"]
        assert np.array_equal(more["array"], saved["more"]["array"]) and np.array_equal(more["f"], saved["more"]["f"])
        assert more["none"].shape == (0, 3) and more["one"].shape == () and more["one"] == 3.5 and more[0.5] == [(1,)]
        assert (more["dtype"], more["dtype2"], more["size"]) == (np.dtype(">f4"), torch.bfloat16, (2, 3))
        assert (more["set"], more["complex"], more["bytes"], more["empty"]) == ({1, 2}, 1j, b"\xff\x00", b"")
        assert (more["device"], more["ordered"]) == ("cpu", {"a": 1})


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_of_every_type_and_form(tmp_path: Path, zipped: bool) -> None:
    dtypes = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
              torch.uint8, torch.bool, torch.complex64, *([torch.uint16, torch.float8_e4m3fn] if zipped else [])]  # fmt: skip
    state = {f"{dtype}": torch.arange(6).reshape(2, 3).to(dtype) for dtype in dtypes}
    whole = torch.arange(24.0).reshape(4, 6)
    attributed = nn.Parameter(torch.ones(2))
    attributed.no_decay = True  # type: ignore[attr-defined]
    state |= {"view": whole[1:3, ::2], "turned": whole.T, "one": torch.tensor(3), "none": torch.zeros(0, 3),
              "parameter": nn.Parameter(torch.ones(3)), "attributed": attributed}  # fmt: skip
    torch.save(state, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    weights, _ = load_weights(tmp_path / "a.pth")
    assert weights.keys() == state.keys()
    for name, value in state.items():
        assert weights[name].dtype == value.dtype and weights[name].shape == value.shape
        assert torch.equal(weights[name].view(torch.uint8) if value.element_size() == 1 else weights[name],
                           value.view(torch.uint8) if value.element_size() == 1 else value)  # fmt: skip


DTYPE = b"cnumpy\ndtype\n(V%s\nI0\nI1\ntR"
STATE = b"(I3\nV<\nNNNI-1\nI-1\nI0\ntb"
F8 = DTYPE % b"f8" + STATE
NEW = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntVb\ntR"
EIGHT = b"V\\u0001aaaaaaa\n"
TENSOR = (b"ctorch._utils\n_rebuild_tensor_v2\n((Vstorage\nctorch\nFloatStorage\nV0\nVcpu\nI4\ntQ%sI00\n"
          b"ccollections\nOrderedDict\n(tRtR")  # fmt: skip
FORGED = {
    "object scalar": b"cnumpy.core.multiarray\nscalar\n(" + DTYPE % b"O8" + EIGHT + b"tR",
    "void scalar": b"cnumpy.core.multiarray\nscalar\n(" + DTYPE % b"V8" + STATE + EIGHT + b"tR",
    "fields": DTYPE % b"f8" + b"(I3\nV<\nN(Va\nt(dI-1\nI-1\nI0\ntb",
    "object flags": DTYPE % b"f8" + b"(I3\nV<\nNNNI-1\nI-1\nI63\ntb",
    "size": DTYPE % b"f8" + b"(I3\nV<\nNNNI4096\nI-1\nI0\ntb",
    "long string": DTYPE % b"U1" + b"(I3\nV<\nNNNI400\nI4\nI8\ntb",
    "descriptor for a state": DTYPE % b"f8" + b"V<f8\nb",
    "descriptor for a dtype": b"cnumpy.core.multiarray\nscalar\n(Vf8\n" + EIGHT + b"tR",
    "list of fields": b"cnumpy\ndtype\n((lp0\n(Va\nVO\nta" + b"I0\nI1\ntR",
    "object array": NEW + b"(I1\n(I1\nt" + DTYPE % b"O8" + b"I00\n" + EIGHT + b"tb",
    "negative shape": NEW + b"(I1\n(I-1\nI-1\nt" + F8 + b"I00\n" + EIGHT + b"tb",
    "huge shape": NEW + b"(I1\n(L4611686018427387904L\nL4L\nt" + F8 + b"I00\n" + EIGHT + b"tb",
    "too few bytes": NEW + b"(I1\n(I2\nt" + F8 + b"I00\n" + EIGHT + b"tb",
    "bytes by number": NEW + b"(I1\n(I1\nt" + F8 + b"I00\nL1000000000000L\ntb",
    "shape of booleans": NEW + b"(I1\n(I01\nt" + F8 + b"I00\n" + EIGHT + b"tb",
    "no content": NEW,
    "other class": NEW.replace(b"cnumpy\nndarray\n", b"cnumpy\ndtype\n"),
    "state of a number": b"cnumpy.core.multiarray\nscalar\n(" + F8 + EIGHT + b"tR(dVx\nI1\nsb",
    "state of a tensor": TENSOR % b"I0\n(I2\nt(I1\nt" + b"(I0\nI9\n(I9\nt(I1\nttb",
    "tensor too long": TENSOR % b"I0\n(I5\nt(I1\nt",
    "tensor by offset": TENSOR % b"L4611686018427387903L\n(I2\nt(I1\nt",
    "tensor before the start": TENSOR % b"I-1\n(I2\nt(I1\nt",
    "negative stride": TENSOR % b"I3\n(I2\nt(I-1\nt",
    "tensor without a shape": TENSOR % b"I0\nV2\nV1\n",
    "storage of a number": TENSOR.replace(b"ctorch\nFloatStorage\n", b"I1\n") % b"I0\n(I2\nt(I1\nt",
    "storage too long": TENSOR.replace(b"I4\n", b"I5\n") % b"I0\n(I2\nt(I1\nt",
    "storage elsewhere": TENSOR.replace(b"V0\n", b"V../../data/0\n") % b"I0\n(I2\nt(I1\nt",
    "a name alone": b"ctorch._utils\n_rebuild_tensor_v2\n",
    "state of a name": b"ctorch._utils\n_rebuild_tensor_v2\n(dVload\nI1\nsb",
    "a type called": b"ctorch\nFloatStorage\n(I4\ntR",
    "an extension": b"\x82\x01",
    "itself": b"(lp0\ng0\na",
    "far memo": b"I1\nr\xff\xff\xff\x7f\x82\x01",
}  # fmt: skip


def forge(path: Path, program: bytes) -> None:
    """A file with good weights, and this program in the place of its ``cfg``."""
    good = b"Vmodel_state\n(dVw\n" + TENSOR % b"I0\n(I2\nt(I1\nt" + b"ss"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"(d" + good[:-1] + b"sVcfg\n" + program + b"s.")
        archive.writestr("a/data/0", struct.pack("<4f", 1, 2, 3, 4))
        archive.writestr("a/byteorder", "little")


@pytest.mark.parametrize("name", FORGED)
def test_forged_numbers_and_tensors_are_refused(tmp_path: Path, name: str) -> None:
    forge(tmp_path / "good.pyth", b"Vx\n")
    assert load_weights(tmp_path / "good.pyth")[0]["w"].tolist() == [1, 2]
    forge(tmp_path / "bad.pyth", FORGED[name])
    with pytest.raises(DamagedFile, match=r"bad\.pyth is damaged, or holds .* nothing of it was run$") as error:
        load_weights(tmp_path / "bad.pyth")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("named", ["numpy.load", "numpy.core.multiarray.fromfile", "numpy.core.multiarray._vec_string",
                                   "numpy.lib.npyio.load", "torch.load", "torch._utils._import_dotted_name", "torch.hub.load",
                                   "torch.storage._load_from_bytes", "builtins.getattr", "builtins.bytearray", "os.system",
                                   "collections.defaultdict", "numpy.matrix", "torch.FloatTensor", "copyreg._reconstructor",
                                   "numpy.dtype.__class__"])  # fmt: skip
def test_what_is_asked_for_is_named(tmp_path: Path, named: str) -> None:
    module, _, name = named.rpartition(".")
    mark = tmp_path / "was_here"
    forge(tmp_path / "bad.pyth", f"c{module}\n{name}\n(V{mark}\nVw\ntR".encode())
    with pytest.raises(InputError, match=rf"bad\.pyth is refused: it asks to run {named} when it is read") as error:
        load_weights(tmp_path / "bad.pyth")
    assert "\n" not in str(error.value) and not mark.exists()


def test_a_name_cannot_write_lines(tmp_path: Path) -> None:
    program = b"Vos\r\x1b[2J" * 50 + b"\nVsystem\n\x93"
    forge(tmp_path / "bad.pyth", program)
    with pytest.raises(InputError, match=r"asks to run os\\r\\x1b\[2J") as error:
        load_weights(tmp_path / "bad.pyth")
    assert str(error.value).isprintable() and len(str(error.value)) < 400 + len(str(tmp_path))


def test_shared_parts_are_read_once(tmp_path: Path) -> None:
    """A list of two times a list of two times ... is 2^60 numbers if each is read for itself."""
    inner: Any = [1]
    for _ in range(60):
        inner = [inner, inner]
    torch.save({"model_state": {"w": torch.ones(1)}, "bomb": inner}, tmp_path / "a.pyth")
    assert load_weights(tmp_path / "a.pyth")[0].keys() == {"w"}


def rezip(path: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    change(records)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records.items():
            archive.writestr(name, data)


@pytest.mark.parametrize(("change", "message"), [
    (lambda records: records.update({"a/byteorder": b"big"}), "big-endian"),
    (lambda records: records.pop("a/data/0"), "damaged"),
    (lambda records: records.update({"a/data/0": b"1234"}), "4 bytes where 16 should be"),
    (lambda records: records.update({"b/data.pkl": b"N."}), "not one folder"),
])  # fmt: skip
def test_archives_that_do_not_fit_together(tmp_path: Path, change: Any, message: str) -> None:
    forge(tmp_path / "bad.pyth", b"Vx\n")
    rezip(tmp_path / "bad.pyth", change)
    with pytest.raises(InputError, match=message):
        load_weights(tmp_path / "bad.pyth")


def test_an_older_file_whose_sizes_are_wrong(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(4)}, buffer, _use_new_zipfile_serialization=False)
    data = buffer.getvalue()
    size = data.rindex((4).to_bytes(8, "little"))
    for wrong in (5, 2**63, 2**64 - 1):
        (tmp_path / "bad.pth").write_bytes(data[:size] + wrong.to_bytes(8, "little") + data[size + 8 :])
        with pytest.raises(DamagedFile, match="a storage of another size"):
            load_weights(tmp_path / "bad.pth")
