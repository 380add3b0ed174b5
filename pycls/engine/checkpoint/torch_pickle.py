"""What PyTorch's files hold, read without PyTorch's reader: nothing in them is run, and nothing they name is imported.

``torch.save`` writes a pickle of the tree and the tensors' bytes beside it: as records of a zip archive (since PyTorch 1.6),
or one after another behind the pickle (before that). Tensors come back as :class:`StoredTensor`, of which nothing is in
memory until it is loaded.
"""

import contextlib
import io
import os
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from pycls.errors import DamagedFile, InputError
from pycls.runtime.unpickle import PLAIN, AsksFor, PlainUnpickler, StandIn, reveal

ARCHIVE_START = b"PK\x03\x04"
OLD_START = b"L119547037146038801333356L\n"
"""How a file of the older form in pickle protocol 1 begins: with the number that all of them begin with."""

_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001
_MOST_DIMENSIONS = 32


class _TorchDtype(StandIn):
    """``torch.float32`` and its like."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def reveal(self) -> torch.dtype:
        return self.dtype


class _StorageType(StandIn):
    """``torch.FloatStorage`` and its like: only ever named, as the type of a storage."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype


class Storage(StandIn):
    """The numbers of one tensor or several, in a file.

    Args:
        dtype: of the numbers.
        numel: how many there are.
        key: its name in the file.
    """

    def __init__(self, dtype: torch.dtype, numel: int, key: str) -> None:
        self.dtype, self.numel, self.key = dtype, numel, key
        self.read: Callable[[], bytes] | None = None
        self._bytes: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.numel * self.dtype.itemsize

    def load(self, dtype: torch.dtype) -> Tensor:
        """All of it, as numbers of a type; read once."""
        if self._bytes is None:
            raw = b"" if self.read is None else self.read()
            if len(raw) != self.nbytes:
                raise ValueError(f"{len(raw)} bytes where {self.nbytes} should be")
            self._bytes = torch.frombuffer(bytearray(raw), dtype=torch.uint8) if raw else torch.empty(0, dtype=torch.uint8)
        return self._bytes[: self.nbytes // dtype.itemsize * dtype.itemsize].view(dtype)


class StoredTensor(StandIn):
    """``_rebuild_tensor_v2`` and the older ``_rebuild_tensor``: a tensor in a file."""

    def __init__(
        self, storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any = False, hooks: Any = None,
        metadata: Any = None,
    ) -> None:  # fmt: skip
        if not isinstance(storage, Storage) or metadata:
            raise ValueError("a tensor of another kind than weights are")
        self.storage, self.offset, self.size, self.stride, self.dtype = storage, offset, size, stride, storage.dtype
        self._check(storage.numel)

    def _check(self, numel: int) -> None:
        numbers = (self.offset, *self.size, *self.stride)
        if not isinstance(self.size, tuple) or not isinstance(self.stride, tuple) or len(self.size) != len(self.stride):
            raise ValueError("a tensor of an impossible shape")
        if not all(type(n) is int and 0 <= n < 2**62 for n in numbers) or len(self.size) > _MOST_DIMENSIONS:
            raise ValueError("a tensor of an impossible shape")
        last = self.offset + sum((n - 1) * step for n, step in zip(self.size, self.stride, strict=True))
        if 0 not in self.size and last >= numel:
            raise ValueError("a tensor with more numbers than the file has")

    def reveal(self) -> "StoredTensor":
        return self

    def load(self) -> Tensor:
        """The tensor, on the CPU."""
        if 0 in self.size:
            return torch.empty(self.size, dtype=self.dtype)
        return torch.as_strided(self.storage.load(self.dtype), self.size, self.stride, self.offset)


class _TypedTensor(StoredTensor):
    """``_rebuild_tensor_v3``: its storage is bytes, and its type stands beside it."""

    def __init__(
        self, storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any, dtype: Any,
        metadata: Any = None,
    ) -> None:  # fmt: skip
        if not isinstance(storage, Storage) or not isinstance(dtype, _TorchDtype) or metadata:
            raise ValueError("a tensor of another kind than weights are")
        self.storage, self.offset, self.size, self.stride, self.dtype = storage, offset, size, stride, dtype.dtype
        self._check(storage.nbytes // self.dtype.itemsize)


class _Parameter(StandIn):
    """``_rebuild_parameter``, with or without attributes: its tensor."""

    def __new__(cls, data: Any, *_: Any) -> Any:
        if not isinstance(data, StoredTensor):
            raise ValueError("a parameter without its tensor")
        return data


class _FromType(StandIn):
    """``_rebuild_from_type_v2``: a tensor with attributes, which are no weights."""

    def __new__(cls, function: Any, kind: Any, arguments: Any, attributes: Any) -> Any:
        if kind is not _TensorClass or not isinstance(function, type) or not issubclass(function, StoredTensor):
            raise ValueError("a tensor of another kind than weights are")
        return function(*arguments)


class _TensorClass(StandIn):
    """``torch.Tensor`` and ``Parameter``: only ever named."""


class _Size(StandIn):
    """``torch.Size``."""

    def __new__(cls, sides: Any = ()) -> Any:
        return tuple(sides)


class _Device(StandIn):
    """``torch.device``: its name."""

    def __new__(cls, kind: Any, index: Any = None) -> Any:
        return f"{kind}" if index is None else f"{kind}:{index}"


class _Mapping(dict[Any, Any]):
    """``OrderedDict`` and ``Counter``. Attributes, such as a state dict's versions of modules, are no weights."""

    def __setstate__(self, state: Any) -> None:
        pass


_STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32, "ShortStorage": torch.int16,
    "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool, "UntypedStorage": torch.uint8,
    "ComplexDoubleStorage": torch.complex128, "ComplexFloatStorage": torch.complex64,
}  # fmt: skip
_DTYPES = {name: dtype for name, dtype in vars(torch).items() if isinstance(dtype, torch.dtype)}
_NAMES: Mapping[tuple[str, str], Any] = {
    **PLAIN,
    ("collections", "OrderedDict"): _Mapping,
    ("collections", "Counter"): _Mapping,
    ("torch", "Size"): _Size,
    ("torch", "device"): _Device,
    ("torch", "Tensor"): _TensorClass,
    ("torch.nn.parameter", "Parameter"): _TensorClass,
    ("torch._tensor", "_rebuild_from_type_v2"): _FromType,
    ("torch._utils", "_rebuild_tensor"): StoredTensor,
    ("torch._utils", "_rebuild_tensor_v2"): StoredTensor,
    ("torch._utils", "_rebuild_tensor_v3"): _TypedTensor,
    ("torch._utils", "_rebuild_parameter"): _Parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _Parameter,
    **{(module, name): _StorageType(dtype) for module in ("torch", "torch.cuda", "torch.storage")
       for name, dtype in _STORAGES.items()},
    **{("torch", name): _TorchDtype(dtype) for name, dtype in _DTYPES.items()},
}  # fmt: skip
"""All that a file may name: tensors and what they are made of, plain values, NumPy's numbers and arrays."""


class _Unpickler(PlainUnpickler):
    """Notes the storages that a pickle refers to, in ``storages``."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, _NAMES)
        self.storages: dict[str, Storage] = {}

    def persistent_load(self, pid: Any) -> Storage:
        """The storage that a pickle names by ("storage", type, key, device, number of elements, a view of another)."""
        what, kind, key, _, numel, *view = pid
        if what != "storage" or not isinstance(kind, _StorageType) or not isinstance(key, str) or view not in ([], [None]):
            raise ValueError("a storage of another kind than weights have")
        storage = self.storages.setdefault(key, Storage(kind.dtype, numel, key))
        if type(numel) is not int or numel < 0 or (storage.dtype, storage.numel) != (kind.dtype, numel):
            raise ValueError("a storage of an impossible size")
        return storage


@contextlib.contextmanager
def open_torch_file(path: Path) -> Iterator[Any]:
    """The tree in a file of ``torch.save``: dicts, lists, tuples, sets, plain values, arrays, and tensors as
    :class:`StoredTensor`, to be loaded while the context lasts.

    Raises:
        DamagedFile: it is damaged, or no such file. Loading may raise it too.
        InputError: it asks for anything else. Nothing in it has been run.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(4)
            file.seek(0)
            if start == ARCHIVE_START:
                with zipfile.ZipFile(file) as archive:
                    yield reveal(_read_archive(path, archive))
            else:
                yield reveal(_read_stream(file))
    except AsksFor as error:
        raise InputError(f"{path} is refused: it asks to run {error} when it is read, and weights are data; nothing of it was "
                         "run") from None  # fmt: skip
    except InputError:
        raise
    except Exception as error:  # a damaged pickle can raise nearly anything
        reason = ascii(" ".join(str(error).split()) or type(error).__name__)[1:-1][:200]
        raise DamagedFile(f"{path} is damaged, or holds something other than weights ({reason}); nothing of it was "
                          "run") from None  # fmt: skip


def _read_archive(path: Path, archive: zipfile.ZipFile) -> Any:
    """The newer form: ``NAME/data.pkl``, ``NAME/data/KEY``, ``NAME/byteorder`` and records that do not matter."""
    records = {record.filename: record for record in archive.infolist()}
    if any(record.compress_type != zipfile.ZIP_STORED for record in records.values()):
        raise InputError(f"{path} is refused: it is compressed, which no file of weights is (TorchScript programs are)")
    wrong = archive.testzip()  # PyTorch does not compare them
    if wrong is not None:
        raise DamagedFile(f"{path} is damaged: {ascii(wrong)[1:-1]} does not match its checksum")
    roots = {name.partition("/")[0] for name in records}
    root = next(iter(roots)) if len(roots) == 1 else ""
    if f"{root}/data.pkl" not in records:
        raise ValueError("not one folder with data.pkl")
    order = archive.read(f"{root}/byteorder").decode() if f"{root}/byteorder" in records else "little"
    if order != sys.byteorder:
        raise InputError(f"{path} was written on a {order}-endian machine, and this one is {sys.byteorder}-endian")
    unpickler = _Unpickler(io.BytesIO(archive.read(f"{root}/data.pkl")))
    tree = unpickler.load()
    for key, storage in unpickler.storages.items():
        record = records[f"{root}/data/{key}"]
        if record.file_size != storage.nbytes:
            raise ValueError(f"a storage of {record.file_size} bytes where {storage.nbytes} should be")
        storage.read = lambda record=record: archive.read(record)  # type: ignore[misc]
    return tree


def _read_stream(file: BinaryIO) -> Any:
    """The older form: pickles of a number, a version, facts of the machine, the tree, and the storages' names; then the
    storages, each as its number of elements (8 bytes) and these."""
    if _Unpickler(file).load() != _MAGIC or _Unpickler(file).load() != _VERSION:
        raise ValueError("not what torch.save writes")
    machine = _Unpickler(file).load()
    if not isinstance(machine, dict) or machine.get("little_endian") is not (sys.byteorder == "little"):
        raise ValueError("written on a machine with another order of bytes")
    unpickler = _Unpickler(file)
    tree = unpickler.load()
    names = _Unpickler(file).load()
    if not isinstance(names, list) or {*names} != unpickler.storages.keys():
        raise ValueError("its storages are not those of its tensors")
    end = os.fstat(file.fileno()).st_size
    place = file.tell()
    for name in names:
        storage = unpickler.storages[name]
        file.seek(place)
        if int.from_bytes(file.read(8), "little") != storage.numel or place + 8 + storage.nbytes > end:
            raise ValueError("a storage of another size than its tensors say")
        storage.read = _reader(file, place + 8, storage.nbytes)
        place += 8 + storage.nbytes
    return tree


def _reader(file: BinaryIO, place: int, size: int) -> Callable[[], bytes]:
    def read() -> bytes:
        file.seek(place)
        return file.read(size)

    return read
