"""A tree of tensors and plain values as one safetensors file: checksummed, written whole or not at all, never unpickled.

The tensors are the file's tensors; the rest of the tree is JSON in its metadata, with the tensors' names in their places.
The metadata also holds a SHA-256 over all of it, so that a flipped bit anywhere is found when the file is read.

Of a sharded state each process writes its rows of the tensors into its own file, a part; the file of the state, which is
written after them, then has the parts' names and checksums beside what is not sharded. Parts lie in the same folder.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors
import torch
from safetensors import SafetensorError
from torch import Tensor

from pycls.engine.checkpoint.entries import check_checkpoint, check_facts
from pycls.engine.checkpoint.sharded_rows import ShardedRows
from pycls.engine.checkpoint.snapshot import MAP, PART, TENSOR, Snapshot, take
from pycls.engine.checkpoint.torch_file import is_torch_file, load_torch_weights
from pycls.errors import DamagedFile, InputError
from pycls.runtime.files import atomic_write

FORMAT = "pycls-state-1"
PART_FORMAT = "pycls-part-1"
_DTYPES = {
    torch.float64: "F64", torch.int64: "I64", torch.float32: "F32", torch.int32: "I32", torch.float16: "F16",
    torch.bfloat16: "BF16", torch.int16: "I16", torch.uint8: "U8", torch.int8: "I8", torch.bool: "BOOL",
}  # fmt: skip
_PLAIN = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}


def save_state(path: str | Path, state: Mapping[str, Any]) -> None:
    """Writes a tree of dicts, lists, tensors, numbers, strings, booleans and None.

    Raises:
        RunError: the disk is full or refuses otherwise; what was at ``path`` before is intact.
    """
    write_snapshot(path, take(state))


def write_snapshot(path: str | Path, snapshot: Snapshot, parts: Sequence[Path] = ()) -> None:
    """Writes what :func:`pycls.engine.checkpoint.snapshot.take` copied. Raises as :func:`save_state` does.

    Args:
        path: the file.
        snapshot: the tree, and the tensors that are not sharded.
        parts: where :func:`write_part` has written the sharded ones, by rank.
    """
    tensors, tree = snapshot.tensors, snapshot.tree
    listed = json.dumps([[part.name, _read(part)[0].get("sha256")] for part in parts]) if parts else ""
    metadata = {"format": FORMAT, "state": tree, "sha256": _digest(tensors, tree + listed)}
    if parts:
        metadata["parts"] = listed
    atomic_write(path, lambda file: _write(file, tensors, metadata))


def write_part(path: Path, rows: Mapping[str, Tensor]) -> None:
    """Writes a process's own rows. Raises as :func:`save_state` does."""
    metadata = {"format": PART_FORMAT, "sha256": _digest(rows, path.name)}
    atomic_write(path, lambda file: _write(file, rows, metadata))


def load_state(path: str | Path, whole: bool = True, share: tuple[int, int] = (0, 1)) -> dict[str, Any]:
    """Reads and verifies what :func:`save_state` or :func:`write_snapshot` wrote; all tensors on the CPU.

    Args:
        path: the file.
        whole: whether sharded tensors are made whole; else they are :class:`ShardedRows`, of which nothing is in memory.
        share: (k, n): of the parts the k-th of every n is verified, and others do the rest.

    Raises:
        DamagedFile: it or a part of it is truncated, changed, missing, or never such a file.
        InputError: no such file.
    """
    state = _state(path, *_read(path), share)
    return _whole(state) if whole else state


def parts_of(path: Path) -> list[str]:
    """Names of the parts of a state; none of what cannot be read."""
    try:
        return [str(name) for name, _ in json.loads(_read(path)[0].get("parts", "[]"))]
    except (ValueError, TypeError):  # DamagedFile is one, and so is what a flipped bit may lead to
        return []


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


def _state(
    path: str | Path, metadata: Mapping[str, str], tensors: Mapping[str, Tensor], share: tuple[int, int] = (0, 1)
) -> dict[str, Any]:
    """The tree in a file of :func:`write_snapshot`, verified as :func:`load_state` says."""
    listed = metadata.get("parts", "")
    if metadata.get("format") != FORMAT:
        raise DamagedFile(f"{path} is a safetensors file, but not a checkpoint of a pycls run")
    if metadata.get("sha256") != _digest(tensors, metadata.get("state", "") + listed):
        raise DamagedFile(f"{path} is damaged: its contents do not match its checksum")
    try:
        sharded = _read_parts(Path(path), json.loads(listed), share) if listed else {}
        state = _unpack(json.loads(metadata["state"]), tensors, sharded)
    except DamagedFile:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise _no_tree(path, "state", error) from None
    if not isinstance(state, dict):
        raise InputError(f"{path}: the state in its metadata is a {type(state).__name__}; it should be a mapping with names")
    return state


def _no_tree(path: str | Path, name: str, error: Exception) -> InputError:
    """Of metadata that its checksum fits, and which is not what we write."""
    reason = ascii(" ".join(str(error).split()) or type(error).__name__)[1:-1][:100]
    return InputError(f"{path}: the {name} in its metadata cannot be read ({reason}); it should be as pycls writes it")


def _read_parts(path: Path, listed: list[tuple[str, str]], share: tuple[int, int]) -> dict[str, ShardedRows]:
    """The sharded tensors in the parts of a file, which are verified in turn."""
    parts = []
    for k, (name, sha256) in enumerate(listed):
        part = path.parent / Path(name).name
        if not part.is_file():
            raise DamagedFile(f"{path} is incomplete: its part {part.name} is not beside it")
        metadata, rows = _read(part)
        changed = k % share[1] == share[0] and sha256 != _digest(rows, part.name)
        if changed or metadata.get("format") != PART_FORMAT or metadata.get("sha256") != sha256:
            raise DamagedFile(f"{part} is damaged: its contents do not match the checksum in {path.name}")
        parts.append(rows)
    sharded = {}
    for name in parts[0]:
        pieces = [rows[name] for rows in parts if name in rows]
        if len(pieces) < len(parts) or len({(piece.dtype, piece.ndim > 0, piece.shape[1:]) for piece in pieces}) > 1:
            raise DamagedFile(f"{path} is damaged: its parts do not fit together")
        sharded[name] = ShardedRows(pieces)
    return sharded


def _whole(value: Any) -> Any:
    """A tree with whole tensors in the place of the sharded ones."""
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return value[:] if isinstance(value, ShardedRows) else value


def _digest(tensors: Mapping[str, Tensor], tree: str) -> str:
    total = hashlib.sha256(tree.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"\0{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        total.update(_bytes(tensor))
    return total.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    """A tensor's values in the plain order of its dimensions; a copy only if they lie in another order.

    NumPy makes it, in this thread alone: PyTorch would take the training's cores for it.
    """
    return np.ascontiguousarray(tensor.view(_PLAIN[tensor.itemsize]).numpy()).reshape(-1).view(np.uint8).data


def _write(file: BinaryIO, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """The safetensors format, tensor by tensor, so that there is no second copy of them all: the header's length, the
    header, and the values without gaps, the widest types first, so that each is aligned."""
    header: dict[str, Any] = {"__metadata__": metadata}
    names, end = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name)), 0
    for name in names:
        start, end = end, end + tensors[name].nbytes
        header[name] = {"dtype": _DTYPES[tensors[name].dtype], "shape": list(tensors[name].shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in names:
        file.write(_bytes(tensors[name]))


def _unpack(value: Any, tensors: Mapping[str, Tensor], sharded: Mapping[str, ShardedRows]) -> Any:
    if isinstance(value, dict):
        if TENSOR in value:
            return tensors[value[TENSOR]]
        if PART in value:
            return sharded[value[PART]]
        if MAP in value:
            return {key: _unpack(item, tensors, sharded) for key, item in value[MAP]}
        return {key: _unpack(item, tensors, sharded) for key, item in value.items()}
    return [_unpack(item, tensors, sharded) for item in value] if isinstance(value, list) else value


def save_weights(path: str | Path, weights: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Writes weights under their own names, for any tool that reads safetensors; ``about`` is kept as JSON beside them."""
    tensors = {name: weight.detach().cpu() for name, weight in weights.items()}
    text = json.dumps(about, sort_keys=True)
    metadata = {"format": "pt", "pycls": text, "sha256": _digest(tensors, text)}
    atomic_write(path, lambda file: _write(file, tensors, metadata))


def load_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(weights, what is known of them) from a file of weights or a checkpoint (its best weights); all on the CPU.

    Ours are safetensors; so may others' be, or PyTorch's own files, of which nothing is run.

    Raises:
        DamagedFile: truncated, changed, or never such a file.
        InputError: no such file, one that asks to run code, or one with an entry that cannot be.
    """
    path = Path(path)
    if path.is_file() and is_torch_file(path):
        weights, about = load_torch_weights(path)
        check_facts(about, str(path))
        return weights, about
    metadata, tensors = _read(path)
    if metadata.get("format") == FORMAT:
        state = _state(path, metadata, tensors)
        check_checkpoint(state, str(path))
        return _whole(state[better_weights(state)]), state
    text = metadata.get("pycls", "{}")
    if "sha256" in metadata and metadata["sha256"] != _digest(tensors, text):
        raise DamagedFile(f"{path} is damaged: its contents do not match its checksum")
    try:
        about = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _no_tree(path, "pycls", error) from None
    check_facts(about, str(path))
    return tensors, about


def better_weights(state: Mapping[str, Any]) -> str:
    """``"ema"`` or ``"model"``: which of a checkpoint's two did better when it was evaluated; the average if none was."""
    if state["ema"] is None:
        return "model"
    row = state["history"][-1] if state["history"] else {}
    if "model" in row and "ema" in row:
        return "ema" if row["ema"]["top1_err"] < row["model"]["top1_err"] else "model"
    return "ema"
