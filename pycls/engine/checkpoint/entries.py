"""Whether the entries of a checkpoint, and of the facts beside weights, are what a run needs.

A checksum says that a file is as it was written, not that it was written right: every entry is looked at before anything
is made of it. What is wrong is one :class:`InputError`, which names the file and the entry.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from pycls.engine.checkpoint.sharded_rows import ShardedRows
from pycls.errors import InputError

Kind = tuple[str, Callable[[Any], bool]]
"""(what a value should be, whether it is)."""


def check_checkpoint(state: Any, source: str) -> None:
    """Raises InputError unless the better weights of a checkpoint can be told and taken."""
    require(state, source, "", MAPPING)
    check(state, source, {"model": MAPPING, "ema": ("a state dict or null", lambda value: value is None or MAPPING[1](value)),
                          "history": ("a list", lambda value: isinstance(value, list)), "epoch": from_to(0)})  # fmt: skip
    for part in ("model", "ema"):
        check(state[part] or {}, source, dict.fromkeys(state[part] or {}, _TENSOR), part)
    for k, row in enumerate(state["history"]):
        place = f"history/{k}"
        require(row, source, place, MAPPING)
        check(row, source, {"epoch": from_to(1), "train": _NUMBERS}, place)
        for name in row.keys() & {"model", "ema"}:
            require(row[name], source, f"{place}/{name}", MAPPING)
            check(row[name], source, {"top1_err": _NUMBER}, f"{place}/{name}")
    check_facts(state, source)


def check_facts(about: Any, source: str) -> None:
    """Raises InputError unless what a file tells of its weights can be used; it need not tell anything."""
    require(about, source, "", MAPPING)
    check(about, source, {name: kind for name, kind in _FACTS.items() if name in about})


# --- kinds of values


def is_number(value: Any) -> bool:
    """Whether it is a finite number, and no boolean."""
    return type(value) in (int, float) and -1e300 < value < 1e300


def floats(shape: tuple[int, ...]) -> Kind:
    """Floating-point numbers of a shape; a single one may be a plain number, too."""

    def fits(value: Any) -> bool:
        if isinstance(value, ShardedRows) or (isinstance(value, Tensor) and value.is_floating_point()):
            return tuple(value.shape) == tuple(shape)
        return not shape and is_number(value)

    return f"a tensor {list(shape)} of floating-point numbers" if shape else "a number", fits


def from_to(low: int, high: int | None = None) -> Kind:
    """A whole number in a range, its ends included."""
    wanted = f"a whole number from {low}" + (f" to {high}" if high is not None else "")
    return wanted, lambda value: type(value) is int and low <= value and (high is None or value <= high)


def _list_of(what: str, one: Callable[[Any], bool]) -> Kind:
    return f"a list of {what}", lambda value: isinstance(value, list) and all(map(one, value))


TEXT: Kind = ("a string", lambda value: isinstance(value, str))
_NUMBER: Kind = ("a number", is_number)
POSITIVE: Kind = ("a positive number", lambda value: is_number(value) and value > 0)
MAPPING: Kind = ("a mapping with names", lambda value: isinstance(value, Mapping) and all(isinstance(k, str) for k in value))
_NUMBERS: Kind = ("numbers by name", lambda value: MAPPING[1](value) and all(type(v) in (int, float) for v in value.values()))
_TENSOR: Kind = ("a tensor", lambda value: isinstance(value, Tensor | ShardedRows))
SCALAR: Kind = ("one number", lambda value: (isinstance(value, Tensor) and value.ndim == 0) or is_number(value))
COUNTS: Kind = ("a tensor of 3 counts", lambda value: isinstance(value, Tensor) and value.dtype == torch.int64
                 and value.shape == (3,) and bool((value >= 0).all()))  # fmt: skip
_COLOURS: Kind = ("RGB, BGR or null", lambda value: value is None or (isinstance(value, str) and value in ("RGB", "BGR")))
_FACTS: dict[str, Kind] = {
    "epoch": from_to(0), "config": TEXT, "cfg": TEXT, "data": TEXT, "colours": _COLOURS, "top1_err": _NUMBER,
    "class_names": _list_of("strings", TEXT[1]), "class_counts": _list_of("whole numbers from 0", from_to(0)[1]),
    "mean": _list_of("numbers", is_number), "std": _list_of("numbers", is_number),
}  # fmt: skip


# --- what is said of the others


def check(entries: Mapping[str, Any], source: str, kinds: Mapping[str, Kind], place: str = "") -> None:
    """Raises InputError unless all of these are there, each of its kind; ``place`` is that of ``entries`` in the file."""
    for name, kind in kinds.items():
        full = f"{place}/{name}" if place else name
        if name not in entries:
            raise InputError(f"{source} lacks the entry {_plain(full)}")
        require(entries[name], source, full, kind)


def require(value: Any, source: str, place: str, kind: Kind) -> None:
    """Raises InputError unless the value at a place in the file is of this kind."""
    wanted, fits = kind
    if not fits(value):
        what = f"its entry {_plain(place)}" if place else "its content"
        raise InputError(f"{source}: {what} is {_shown(value)}; it should be {wanted}")


def no_others(entries: Mapping[str, Any], source: str, known: Iterable[str], place: str) -> None:
    """Raises InputError if there are others than those known."""
    others = sorted(entries.keys() - set(known))
    if others:
        raise InputError(f"{source} has the entry {_plain(f'{place}/{others[0]}')}, which is no part of this run")


def _shown(value: Any) -> str:
    if isinstance(value, Tensor | ShardedRows):
        return f"a tensor {list(value.shape)}"
    if isinstance(value, Mapping | list):
        return f"a {'list' if isinstance(value, list) else 'mapping'} of {len(value)}"
    return "null" if value is None else ascii(value)[:100]


def _plain(text: str) -> str:
    return ascii(text)[1:-1][:100]
