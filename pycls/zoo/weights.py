"""Weights by name, URL or file name, and how they get into a model."""

import logging
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from pycls import class_names
from pycls.engine.checkpoint.state_file import load_weights
from pycls.errors import InputError
from pycls.runtime.download import is_url, shown
from pycls.zoo.catalogue import Colours, Entry, entries, find
from pycls.zoo.store import fetch

logger = logging.getLogger(__name__)

_ENDINGS = (".safetensors", ".pyth", ".pth", ".pt", ".bin", ".ckpt")
_PYCLS_COLOURS: dict[str, Colours] = {"imagenet": "BGR", "cifar": "RGB"}


@dataclass(frozen=True)
class Weights:
    """Weights that were read, and what is known of them.

    Attributes:
        state: tensors by name, as in the file.
        source: what was asked for, for people.
        colours: the order in which these weights want the colours of an image; None if nothing says it.
        data: images that they were trained on; empty if nothing says it.
        entry: the zoo's, if they are the zoo's.
        about: what else the file tells.
    """

    state: dict[str, Tensor]
    source: str
    colours: Colours | None = None
    data: str = ""
    entry: Entry | None = None
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def split(self) -> str:
        """The part of ``data`` that they were trained on; empty if nothing says it."""
        return str(self.about.get("split") or _option(self.about, "SPLIT"))

    @property
    def class_names(self) -> list[str] | None:
        """Of their classes, from the first on; None if nothing tells them. Raises InputError for what are no names."""
        return names_in(self.about.get("class_names"), sys.maxsize, self.source)


def load(source: str | Path) -> Weights:
    """Reads a file, or what is fetched from a URL or for a name of the zoo. Nothing in it is run.

    Args:
        source: a file of weights or checkpoint (ours, pycls's, PyTorch's, safetensors), a URL of one, or a name such as
            ``RegNetX-400MF`` or ``ResNet-50@torchvision-v2``. A file goes before a name.

    Raises:
        InputError: there is no such thing, or it holds no weights.
        RunError: it cannot be fetched.
    """
    text, entry = str(source), None
    if is_url(text):
        entry = next((known for known in entries().values() if known.url == text), None)
        path, text = fetch(text, entry.sha256 if entry else ""), shown(text)
    elif Path(source).exists() or text.endswith(_ENDINGS):
        path = Path(source)
    else:
        try:
            entry = find(text)
        except InputError as error:
            raise InputError(f"no such file: {text}; and {error}") from None
        path = fetch(entry.url, entry.sha256)
    state, about = load_weights(path)
    data = entry.data if entry else about.get("data") or _option(about, "DATASET")
    colours = entry.colours if entry else about.get("colours") or ("RGB" if is_ours(state) else pycls_colours(data))
    return Weights(state, text, colours, data, entry, about)


def names_in(about: object, count: int, source: str) -> list[str] | None:
    """The names of ``count`` classes that a file tells; None where it tells none. Raises InputError for what are none."""
    try:
        return class_names.checked(about, count)
    except ValueError as error:
        raise InputError(f"{source}: {error}") from None


def is_ours(state: Iterable[str]) -> bool:
    """Whether these are our names of weights; ours want RGB."""
    return any(name.startswith("backbone.") for name in state)


def pycls_colours(data: str) -> Colours | None:
    """The order in which pycls shows a net the images of a data set: ImageNet's as OpenCV reads them, CIFAR's as they
    are in its files. None for others, which pycls does not have."""
    return next((order for name, order in _PYCLS_COLOURS.items() if data.lower().startswith(name)), None)


def _option(about: dict[str, Any], key: str) -> str:
    """An option of TRAIN in the configuration in a checkpoint; empty if there is none."""
    training = options_in(about).get("TRAIN")
    return str(training.get(key) or "") if isinstance(training, dict) else ""


def options_in(about: dict[str, Any]) -> dict[str, Any]:
    """The configuration in pycls's checkpoint (``cfg``) or in ours (``config``); empty if there is none that can be read."""
    text = about.get("cfg") or about.get("config")
    try:
        options = yaml.safe_load(text) if isinstance(text, str) else None
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return options if isinstance(options, dict) else {}
