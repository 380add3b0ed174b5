"""Copies of many tensors at once, while a training waits for them.

By compiled C (``copying.c``) between tensors of the processor that lie in memory alike; by torch's ``copy_`` otherwise, from a
GPU, and where there is no compiler.
"""

import ctypes
import functools
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pycls.runtime.native import WITH_MEMORY, compiled

SOURCE = Path(__file__).with_name("copying.c")
_BYTES_A_THREAD = 1 << 18


class _Piece(ctypes.Structure):
    """``piece`` of copying.c."""

    _fields_ = (
        ("from_", ctypes.c_void_p), ("to", ctypes.c_void_p), ("bytes", ctypes.c_int64),
        ("check", ctypes.c_int32), ("bad", ctypes.c_int32),
    )  # fmt: skip


@torch.no_grad()
def copy_all(sources: Mapping[str, Tensor], copies: Mapping[str, Tensor], finite: Collection[str] = ()) -> str | None:
    """Fills the copies.

    Args:
        sources: tensors by name.
        copies: those of the same names, shapes and types.
        finite: the names of those that are to be finite.

    Returns:
        The first of these that has an infinity or NaN, if there is one.
    """
    pieces: list[_Piece] = []
    names: list[str] = []
    rest: list[str] = []
    wanted, function = frozenset(finite), copy_function()
    for name, source in sources.items():
        copy = copies[name]
        if function is None or not _alike(source, copy):
            copy.copy_(source, non_blocking=source.is_cuda)
            rest.append(name)
            continue
        check = name in wanted
        by_bits = check and source.dtype is torch.float32
        if check and not by_bits:
            rest.append(name)
        names.append(name)
        pieces.append(_Piece(source.data_ptr(), copy.data_ptr(), copy.nbytes, by_bits, False))
    bad = []
    if function is not None and pieces:
        given = (_Piece * len(pieces))(*pieces)
        size = sum(piece.bytes for piece in pieces)
        function(given, len(pieces), max(1, min(torch.get_num_threads(), size // _BYTES_A_THREAD)))
        bad = [name for name, piece in zip(names, given, strict=True) if piece.bad]
    bad += _not_finite({name: sources[name] for name in rest if name in wanted})
    return next((name for name in sources if name in bad), None) if bad else None


def _alike(source: Tensor, copy: Tensor) -> bool:
    """Whether a copy of the bytes is a copy of the numbers; the copy is without gaps."""
    return (
        type(source) in WITH_MEMORY and source.is_cpu and copy.is_cpu and source.dtype is copy.dtype
        and source.stride() == copy.stride() and not source.is_conj() and not source.is_neg()
    )  # fmt: skip


def _not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Those with an infinity or NaN. Their sums, which are far quicker than a look at each number, are not finite then."""
    by_device: dict[torch.device, list[str]] = {}
    for name, tensor in tensors.items():
        by_device.setdefault(tensor.device, []).append(name)
    bad = []
    for names in by_device.values():
        sums = torch.stack([tensors[name].sum().float() for name in names])
        if not bool(sums.isfinite().all()):
            bad += [name for name in names if not bool(tensors[name].isfinite().all())]
    return bad


@functools.cache
def copy_function() -> Any:
    """The compiled copy; None where there cannot be one."""
    found = compiled(SOURCE)
    if found is None:
        return None
    function = found.pycls_copy
    function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32], None
    return function
