"""Reads pickles of plain data and NumPy's numbers and arrays without running anything that is in them.

A pickle is a program: it names functions and calls them. This reader imports nothing that a file names. It knows the
handful of names that plain data is made of, answers each with a stand-in, and refuses every other. NumPy's own
objects are not handed out either: the state of a ``numpy.dtype`` is trusted by NumPy, and a forged one can make it take
the bytes of an array for pointers.
"""

import io
import math
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pycls.errors import InputError


class AsksFor(Exception):
    """A pickle names something that is no part of the data that is read; the text is that name, printable, on one line."""


class StandIn:
    """What is handed to a pickle in the place of what it names.

    The stand-ins are classes, and none takes a state unless it says so: a pickle can set attributes otherwise.
    """

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a state where there is none")

    def reveal(self) -> Any:
        """What it stands for."""
        raise pickle.UnpicklingError("parts of an object without the object")


class _Dtype(StandIn):
    """``numpy.dtype`` of booleans, numbers and strings; of its state only the byte order counts."""

    def __init__(self, code: Any, align: Any = False, copy: Any = True) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"b1|[iu][1248]|f(2|4|8|12|16)|c(8|16|24|32)|[SU]\d{1,4}", code):
            raise pickle.UnpicklingError(f"a NumPy type {str(code)[:40]!r}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        sizes = (-1, -1) if self.dtype.kind not in "SU" else (self.dtype.itemsize, 4 if self.dtype.kind == "U" else 1)
        plain = isinstance(state, tuple) and len(state) == 8 and all(part is None for part in state[2:5])
        if not plain or state[0] != 3 or state[1] not in ("<", ">", "|", "=") or state[5:7] != sizes or state[7] not in (0, 8):
            raise pickle.UnpicklingError("a NumPy type that is none of plain numbers")
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])

    def reveal(self) -> np.dtype:
        return self.dtype


class _Array(StandIn):
    """``_reconstruct``: an empty array, whose state then says all about it."""

    value: np.ndarray | None = None

    def __init__(self, subtype: Any, shape: Any, code: Any) -> None:
        if subtype is not _Ndarray or shape != (0,):
            raise pickle.UnpicklingError("an array that is no plain one")

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self.value = _make_array(data, dtype, shape, "F" if fortran else "C")

    def reveal(self) -> np.ndarray:
        if self.value is None:
            raise pickle.UnpicklingError("an array without its content")
        return self.value


class _FromBuffer(_Array):
    """``_frombuffer``: an array of pickle protocol 5."""

    def __init__(self, data: Any, dtype: Any, shape: Any, order: Any) -> None:
        self.value = _make_array(data, dtype, shape, order)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a state where there is none")


class _Scalar(StandIn):
    """``scalar``: one number or string, which becomes Python's own."""

    def __init__(self, dtype: Any, data: Any) -> None:
        value = _make_array(data, dtype, (), "C", kinds="biufcSU")
        longs = {"f": float, "c": complex}  # of more than double precision there is no number in Python
        self.value = longs.get(value.dtype.kind, np.ndarray.item)(value)

    def reveal(self) -> bool | int | float | complex | str | bytes:
        return self.value


class _Encode(StandIn):
    """``_codecs.encode``, as Python 3 writes bytes in old protocols. Latin-1 only: other codecs are code to import."""

    def __new__(cls, text: str, codec: str) -> Any:
        if codec not in ("latin1", "latin-1"):
            raise pickle.UnpicklingError(f"text encoded as {str(codec)[:40]!r}")
        return text.encode("latin1")


class _Bytes(StandIn):
    """``bytes``, which Python 3 names in old protocols for those without content."""

    def __new__(cls) -> Any:
        return b""


class _Set(StandIn):
    """``set`` and ``frozenset`` of old protocols."""

    def __new__(cls, items: Any = ()) -> Any:
        return set(items)


class _Complex(StandIn):
    """``complex``, which has no own opcode in a pickle."""

    def __new__(cls, real: float, imaginary: float) -> Any:
        return complex(real, imaginary)


class _Ndarray(StandIn):
    """``numpy.ndarray``: only ever named, as the type to reconstruct."""


def _make_array(data: Any, dtype: Any, shape: Any, order: Any, kinds: str = "biufc") -> np.ndarray:
    if not isinstance(dtype, _Dtype) or dtype.dtype.kind not in kinds:
        raise pickle.UnpicklingError("an array of something other than numbers")
    if not isinstance(shape, tuple) or not all(type(side) is int and side >= 0 for side in shape):
        raise pickle.UnpicklingError("an array of an impossible shape")
    if not isinstance(data, str | bytes | bytearray):
        raise pickle.UnpicklingError("an array without its numbers")
    raw = data.encode("latin1") if isinstance(data, str) else bytes(data)
    if len(raw) != math.prod(shape) * dtype.dtype.itemsize:
        raise pickle.UnpicklingError(f"an array {list(shape)} of {dtype.dtype} in {len(raw)} bytes")
    if not raw:
        return np.zeros(shape, dtype.dtype)
    return np.frombuffer(raw, dtype.dtype).reshape(shape, order="F" if order == "F" else "C").copy()


PLAIN: Mapping[tuple[str, str], type[StandIn]] = {
    ("numpy", "ndarray"): _Ndarray,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _Encode,
    **{
        (builtins, name): stand_in
        for builtins in ("builtins", "__builtin__")  # Python 3's and Python 2's
        for name, stand_in in (("bytes", _Bytes), ("set", _Set), ("frozenset", _Set), ("complex", _Complex))
    },
    **{
        (f"numpy.{core}.{module}", name): stand_in
        for core in ("core", "_core")  # where NumPy 1 and NumPy 2 keep them
        for module, name, stand_in in (
            ("multiarray", "_reconstruct", _Array),
            ("multiarray", "scalar", _Scalar),
            ("numeric", "_frombuffer", _FromBuffer),
        )
    },
}
"""(module, name) -> the stand-in for it: all that a pickle of plain data may name."""


class PlainUnpickler(pickle._Unpickler):
    """Python's own reader, in Python: the one in C makes a table as long as the largest number that a file gives an object.

    Args:
        file: a binary file; one pickle of it is read.
        names: what may be named, and what is handed out for it.
    """

    def __init__(self, file: BinaryIO, names: Mapping[tuple[str, str], Any] = PLAIN) -> None:
        super().__init__(file, encoding="latin1")
        self._names = names

    def find_class(self, module: str, name: str) -> Any:
        """Raises :class:`AsksFor` for every other name."""
        if (module, name) not in self._names:
            raise AsksFor(ascii(f"{module}.{name}")[1:-1][:100])
        return self._names[module, name]


def reveal(value: Any, done: dict[int, Any] | None = None) -> Any:
    """The same structure with what is stood for in the place of its stand-ins; what is in it twice stays one object.

    Raises :class:`pickle.UnpicklingError` for parts of objects, and for what contains itself.
    """
    done = {} if done is None else done
    if isinstance(value, StandIn):
        if id(value) not in done:
            done[id(value)] = value.reveal()
        return done[id(value)]
    if isinstance(value, type):
        raise pickle.UnpicklingError("parts of an object without the object")
    if not isinstance(value, dict | list | tuple | set | frozenset):
        return value
    if id(value) not in done:
        done[id(value)] = _OPEN
        if isinstance(value, dict):
            done[id(value)] = {reveal(key, done): reveal(item, done) for key, item in value.items()}
        else:
            done[id(value)] = type(value)([reveal(item, done) for item in value])
    elif done[id(value)] is _OPEN:
        raise pickle.UnpicklingError("something that contains itself")
    return done[id(value)]


_OPEN = object()


def read_pickle(path: Path) -> Any:
    """The content of a pickle of dicts, lists, strings, numbers and arrays; Python 2's strings are read as Latin-1.

    Raises :class:`InputError` if the file names anything else, or is damaged.
    """
    try:
        return reveal(PlainUnpickler(io.BytesIO(path.read_bytes())).load())
    except AsksFor as error:
        raise InputError(
            f"{path} asks for {error}, which is no part of plain data: it was not run, and the file "
            "is not read; put the official file in its place"
        ) from None
    except Exception as error:  # a damaged pickle can raise nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path} cannot be read ({reason}); put the official file in its place") from error
