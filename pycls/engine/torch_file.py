"""Weights in PyTorch's own files: pycls's checkpoints (.pyth), state dicts (.pth, .pt), and what others wrap around those.

Such a file is a pickle, a program that makes objects when it is read. It is read by PyTorch's reader for weights alone,
which makes tensors, numbers, strings and containers of them and refuses a file that asks for anything else.
"""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pycls.errors import DamagedFile, InputError

_WRAPPERS = ("model_state", "state_dict", "model")
"""Names under which a state dict is kept: by pycls, by many, and by torchvision's and DeiT's scripts."""


def is_torch_file(path: Path) -> bool:
    """Whether the file looks like PyTorch's: a zip archive, or a pickle."""
    with open(path, "rb") as file:
        start = file.read(4)
    return start == b"PK\x03\x04" or (start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05")


def load_torch_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(weights by name, whatever else of plain values the file tells, such as ``epoch`` and pycls's ``cfg``), on the CPU.

    Of a checkpoint with a moving average the one with the smaller error is taken, as pycls has noted it.

    Raises:
        DamagedFile: it is damaged.
        InputError: it asks to run code, or holds no weights.
    """
    content = _read(path)
    weights, about = content, {}
    wrapper = next((name for name in _better_first(content) if isinstance(content.get(name), Mapping)), None)
    if wrapper is not None:
        weights = content[wrapper]
        about = {key: value for key, value in content.items() if isinstance(value, str | int | float) or key == "class_names"}
    if not weights or not all(isinstance(n, str) and isinstance(w, Tensor) for n, w in weights.items()):
        raise InputError(f"{path} holds no weights: neither a state dict nor a checkpoint with {', '.join(_WRAPPERS)}")
    prefix = "module." if all(name.startswith("module.") for name in weights) else ""  # DistributedDataParallel's
    return {name.removeprefix(prefix): weight for name, weight in weights.items()}, about


def _better_first(content: Mapping[str, Any]) -> tuple[str, ...]:
    average, plain = content.get("ema_err"), content.get("test_err")
    if isinstance(average, float | int) and isinstance(plain, float | int) and average < plain:
        return ("ema_state", *_WRAPPERS)
    return _WRAPPERS


def _read(path: Path) -> Mapping[str, Any]:
    _check_archive(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can make its reader raise anything
        # its own advice, to switch the protection off, is not passed on
        if asked := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise InputError(f"{path} is refused: it asks to run {asked[1]} when it is read, and weights are data") from None
        raise DamagedFile(f"{path} is damaged, or holds something other than weights; nothing of it was run") from None
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds a {type(content).__name__}, no weights")
    return content


def _check_archive(path: Path) -> None:
    """Compares each record of a zip archive with its CRC-32, which PyTorch does not."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
                raise InputError(f"{path} is refused: it is compressed, which no file of weights is (TorchScript programs are)")
            wrong = archive.testzip()
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise DamagedFile(f"{path} is damaged ({error})") from None
    if wrong is not None:
        raise DamagedFile(f"{path} is damaged: {wrong} does not match its checksum")
