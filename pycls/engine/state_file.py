"""A tree of tensors and plain values as one safetensors file: checksummed, written whole or not at all, never unpickled.

The tensors are the file's tensors; the rest of the tree is JSON in its metadata, with the tensors' names in their places.
The metadata also holds a SHA-256 over all of it, so that a flipped bit anywhere is found when the file is read.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from pycls.engine.torch_file import is_torch_file, load_torch_weights
from pycls.errors import DamagedFile, InputError
from pycls.runtime.files import atomic_write

FORMAT = "pycls-state-1"
_TENSOR = "__tensor__"
_MAP = "__map__"


def save_state(path: str | Path, state: Mapping[str, Any]) -> None:
    """Writes a tree of dicts, lists, tensors, numbers, strings, booleans and None.

    Raises:
        RunError: the disk is full or refuses otherwise; what was at ``path`` before is intact.
    """
    tensors: dict[str, Tensor] = {}
    tree = json.dumps(_pack(state, "", tensors), sort_keys=True)
    metadata = {"format": FORMAT, "state": tree, "sha256": _digest(tensors, tree)}
    data = safetensors.torch.save(tensors, metadata)
    atomic_write(path, lambda file: file.write(data))


def load_state(path: str | Path) -> dict[str, Any]:
    """Reads and verifies what :func:`save_state` wrote; all tensors on the CPU.

    Raises:
        DamagedFile: truncated, changed, or never such a file.
        InputError: no such file.
    """
    return _state(path, *_read(path))


def _read(path: str | Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a safetensors file, not verified yet."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    try:
        with safetensors.safe_open(path, "pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise DamagedFile(f"{path} is damaged, or no file of weights ({error})") from None


def _state(path: str | Path, metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The tree in a file of :func:`save_state`, verified."""
    if metadata.get("format") != FORMAT:
        raise DamagedFile(f"{path} is a safetensors file, but not a checkpoint of a pycls run")
    if metadata.get("sha256") != _digest(tensors, metadata.get("state", "")):
        raise DamagedFile(f"{path} is damaged: its contents do not match its checksum")
    state = _unpack(json.loads(metadata["state"]), tensors)
    assert isinstance(state, dict)
    return state


def _digest(tensors: Mapping[str, Tensor], tree: str) -> str:
    total = hashlib.sha256(tree.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"\0{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        if tensor.numel():
            total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def _pack(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """The JSON form of a tree; its tensors are added to ``tensors`` under their places."""
    if isinstance(value, Tensor):
        # a copy, contiguous in the plain order: the file's form, and not a view that training goes on to change
        tensors[place] = value.detach().to("cpu", copy=True).contiguous(memory_format=torch.contiguous_format)
        return {_TENSOR: place}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return {key: _pack(item, f"{place}/{key}" if place else key, tensors) for key, item in value.items()}
        return {_MAP: [[key, _pack(item, f"{place}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [_pack(item, f"{place}/{i}", tensors) for i, item in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{place}: a {type(value).__name__} cannot be saved")


def _unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if _TENSOR in value:
            return tensors[value[_TENSOR]]
        if _MAP in value:
            return {key: _unpack(item, tensors) for key, item in value[_MAP]}
        return {key: _unpack(item, tensors) for key, item in value.items()}
    return [_unpack(item, tensors) for item in value] if isinstance(value, list) else value


def save_weights(path: str | Path, weights: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Writes weights under their own names, for any tool that reads safetensors; ``about`` is kept as JSON beside them."""
    tensors = {n: w.detach().to("cpu").contiguous(memory_format=torch.contiguous_format) for n, w in weights.items()}
    text = json.dumps(about, sort_keys=True)
    metadata = {"format": "pt", "pycls": text, "sha256": _digest(tensors, text)}
    data = safetensors.torch.save(tensors, metadata)
    atomic_write(path, lambda file: file.write(data))


def load_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(weights, what is known of them) from a file of weights or a checkpoint (its best weights); all on the CPU.

    Ours are safetensors; so may others' be, or PyTorch's own files, of which nothing is run.

    Raises:
        DamagedFile: truncated, changed, or never such a file.
        InputError: no such file, or one that asks to run code.
    """
    path = Path(path)
    if path.is_file() and is_torch_file(path):
        return load_torch_weights(path)
    metadata, tensors = _read(path)
    if metadata.get("format") == FORMAT:
        state = _state(path, metadata, tensors)
        return state[better_weights(state)], state
    text = metadata.get("pycls", "{}")
    if "sha256" in metadata and metadata["sha256"] != _digest(tensors, text):
        raise DamagedFile(f"{path} is damaged: its contents do not match its checksum")
    return tensors, json.loads(text)


def better_weights(state: Mapping[str, Any]) -> str:
    """``"ema"`` or ``"model"``: which of a checkpoint's two did better when it was evaluated; the average if none was."""
    if state["ema"] is None:
        return "model"
    row = state["history"][-1] if state["history"] else {}
    if "model" in row and "ema" in row:
        return "ema" if row["ema"]["top1_err"] < row["model"]["top1_err"] else "model"
    return "ema"
