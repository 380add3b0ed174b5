"""Reads pickles of plain data and NumPy arrays without running anything that is in them.

A pickle is a program: it names functions and calls them. This reader imports nothing that a file names. It knows the
handful of names that arrays are made of, answers each with a stand-in of its own, and refuses every other. NumPy's own
objects are not handed out either: the state of a ``numpy.dtype`` is trusted by NumPy, and a forged one can make it take
the bytes of an array for pointers.
"""

import io
import math
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np

from pycls.errors import InputError


class _StandIn:
    """The stand-ins are classes, and none takes a state unless it says so: a pickle can set attributes otherwise."""

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a state where there is none")


class _Dtype(_StandIn):
    """``numpy.dtype`` of booleans and numbers; of its state only the byte order counts."""

    def __init__(self, code: str, align: bool = False, copy: bool = True) -> None:
        if not re.fullmatch(r"b1|[iu][1248]|f[248]", code):
            raise pickle.UnpicklingError(f"an array of type {code!r}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        self.dtype = self.dtype.newbyteorder(state[1]) if state[1] in ("<", ">") else self.dtype


class _Array(_StandIn):
    """``_reconstruct``: an empty array, whose state then says all about it."""

    value: np.ndarray

    def __init__(self, subtype: Any, shape: Any, code: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self.value = _make_array(data, dtype, shape, "F" if fortran else "C")


class _FromBuffer(_Array):
    """``_frombuffer``: an array of pickle protocol 5."""

    def __init__(self, data: Any, dtype: Any, shape: Any, order: str) -> None:
        self.value = _make_array(data, dtype, shape, order)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a state where there is none")


class _Scalar(_StandIn):
    """``scalar``: one number."""

    def __new__(cls, dtype: Any, data: Any) -> Any:
        return _make_array(data, dtype, (1,), "C")[0]


class _Encode(_StandIn):
    """``_codecs.encode``, as Python 3 writes bytes in old protocols. Latin-1 only: other codecs are code to import."""

    def __new__(cls, text: str, codec: str) -> Any:
        if codec not in ("latin1", "latin-1"):
            raise pickle.UnpicklingError(f"text encoded as {codec!r}")
        return text.encode("latin1")


class _Ndarray(_StandIn):
    """``numpy.ndarray``: only ever named, as the type to reconstruct."""


def _make_array(data: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
    if not isinstance(dtype, _Dtype):
        raise pickle.UnpicklingError("an array of unknown type")
    raw = data.encode("latin1") if isinstance(data, str) else bytes(data)
    if len(raw) != math.prod(shape) * dtype.dtype.itemsize:
        raise pickle.UnpicklingError(f"an array {list(shape)} of {dtype.dtype} in {len(raw)} bytes")
    return np.frombuffer(raw, dtype.dtype).reshape(shape, order="F" if order == "F" else "C").copy()


_ALLOWED: dict[tuple[str, str], type] = {
    ("numpy", "ndarray"): _Ndarray,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _Encode,
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


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, path: Path) -> None:
        super().__init__(io.BytesIO(data), encoding="latin1")
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise InputError(
                f"{self.path} asks for {module}.{name}, which is no part of plain data: it was not run, and the file "
                "is not read; put the official file in its place"
            )
        return _ALLOWED[module, name]


def _reveal(value: Any) -> Any:
    """The same structure with arrays in the place of their stand-ins."""
    if isinstance(value, dict):
        return {_reveal(key): _reveal(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_reveal, value))
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, _StandIn) or (isinstance(value, type) and issubclass(value, _StandIn)):
        raise pickle.UnpicklingError("parts of an array without the array")
    return value


def read_pickle(path: Path) -> Any:
    """The content of a pickle of dicts, lists, strings, numbers and arrays; Python 2's strings are read as Latin-1.

    Raises :class:`InputError` if the file names anything else, or is damaged.
    """
    try:
        return _reveal(_Unpickler(path.read_bytes(), path).load())
    except InputError:
        raise
    except Exception as error:  # a damaged pickle can raise nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path} cannot be read ({reason}); put the official file in its place") from error
