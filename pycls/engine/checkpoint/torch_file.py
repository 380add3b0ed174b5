"""Weights in PyTorch's own files: pycls's checkpoints (.pyth), state dicts (.pth, .pt), and what others wrap around those.

Such a file is a pickle, a program that makes objects when it is read. It is read by a reader that makes tensors, plain
values, and NumPy's numbers and arrays, and refuses a file that asks for anything else (``torch_pickle.py``).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pycls.engine.checkpoint.torch_pickle import ARCHIVE_START, OLD_START, StoredTensor, open_torch_file
from pycls.errors import InputError

_WRAPPERS = ("model_state", "state_dict", "model")
"""Names under which a state dict is kept: by pycls, by many, and by torchvision's and DeiT's scripts."""


def is_torch_file(path: Path) -> bool:
    """Whether the file looks like PyTorch's: a zip archive, or a pickle."""
    with open(path, "rb") as file:
        start = file.read(len(OLD_START))
    header = int.from_bytes(start[:8], "little")
    if start[8:9] == b"{" and header <= path.stat().st_size - 8:  # safetensors, whose length may begin as a pickle does
        return False
    pickled = start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
    return start.startswith(ARCHIVE_START) or pickled or start == OLD_START


def load_torch_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(weights by name, whatever else of plain values the file tells, such as ``epoch`` and pycls's ``cfg``), on the CPU.

    Of a checkpoint with a moving average the one with the smaller error is taken, as pycls has noted it.

    Raises:
        DamagedFile: it is damaged.
        InputError: it asks for anything but data, or holds no weights.
    """
    with open_torch_file(path) as content:
        if not isinstance(content, Mapping):
            kind = "Tensor" if isinstance(content, StoredTensor) else type(content).__name__
            raise InputError(f"{path} holds a {kind}, no weights")
        weights, about = content, {}
        wrapper = next((name for name in _better_first(content) if isinstance(content.get(name), Mapping)), None)
        if wrapper is not None:
            weights = content[wrapper]
            about = {key: value for key, value in content.items() if isinstance(key, str) and _is_fact(key, value)}
        if not weights or not all(isinstance(n, str) and isinstance(w, StoredTensor) for n, w in weights.items()):
            raise InputError(f"{path} holds no weights: neither a state dict nor a checkpoint with {', '.join(_WRAPPERS)}")
        prefix = "module." if all(name.startswith("module.") for name in weights) else ""  # DistributedDataParallel's
        return {name.removeprefix(prefix): weight.load() for name, weight in weights.items()}, about


def _is_fact(key: str, value: object) -> bool:
    """Whether an entry of a checkpoint is told of the weights: a plain value, or the names of their classes."""
    return isinstance(value, str | int | float) or key == "class_names"


def _better_first(content: Mapping[str, Any]) -> tuple[str, ...]:
    average, plain = content.get("ema_err"), content.get("test_err")
    if isinstance(average, float | int) and isinstance(plain, float | int) and average < plain:
        return ("ema_state", *_WRAPPERS)
    return _WRAPPERS
