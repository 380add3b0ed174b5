"""What there is: the entries of the JSON files beside this module, one file a publisher.

A file says once what holds for all of its entries. Your weights are one more entry, or one more file in ``FILES``.
"""

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from pycls.errors import InputError
from pycls.registry import suggestions

Colours = Literal["RGB", "BGR"]
COLOURS: tuple[Colours, ...] = ("RGB", "BGR")

FILES = ("pycls.json", "torchvision.json")
"""In the order in which an architecture's weights are preferred where only the architecture is named."""


@dataclass(frozen=True)
class Entry:
    """Published weights.

    Attributes:
        name: as a user asks for them; where one architecture has several weights, ``ARCHITECTURE@PUBLISHER-VERSION``.
        architecture: a name of ``pycls.models.zoo_names.ARCHITECTURES``.
        url: of the file.
        crop: side in pixels of the images that the net sees.
        resize: side in pixels to which the short side of an image is resized before its centre is cut out.
        params: parameters, with the classifier.
        top1_err: published top-1 error on the validation images, in percent, a single crop.
        top5_err: top-5 error, in percent.
        source: page of the publisher.
        licence: under which they are published (SPDX).
        data: images that they were trained on.
        classes: number of classes.
        colours: order in which the published weights want the colours. They are turned when they are loaded: a loaded
            model always takes RGB.
        mean: of R, G and B, for values in 0..1, which is subtracted.
        std: of R, G and B, by which is divided then.
        interpolation: of the resizing in the published evaluation.
        sha256: what is published of it: all 64 digits, the first ones, or nothing.
        config: a configuration of this net, in the repository; empty if there is none.
        options: arguments of the architecture that these weights want besides its own.
    """

    name: str
    architecture: str
    url: str
    crop: int
    resize: int
    params: int
    top1_err: float
    top5_err: float
    source: str
    licence: str
    data: str
    classes: int
    colours: Colours
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    sha256: str = ""
    config: str = ""
    options: MappingProxyType[str, Any] = field(default_factory=lambda: MappingProxyType({}))


@cache
def entries() -> MappingProxyType[str, Entry]:
    """Every entry by its name, the preferred ones of an architecture first."""
    known: dict[str, Entry] = {}
    for file in FILES:
        common = json.loads((Path(__file__).parent / file).read_text(encoding="utf-8"))
        for own in common.pop("entries"):
            facts = common | own
            facts |= {"mean": tuple(facts["mean"]), "std": tuple(facts["std"])}
            facts["options"] = MappingProxyType(facts.get("options", {}))
            assert facts["name"] not in known, f"{facts['name']} is there twice"
            known[facts["name"]] = Entry(**facts)
    return MappingProxyType(known)


def find(name: str) -> Entry:
    """The weights of this name, or the preferred ones of the architecture of this name.

    Raises:
        InputError: there are none.
    """
    known = entries()
    if name in known:
        return known[name]
    own = [entry for entry in known.values() if entry.architecture == name]
    if not own:
        hint = suggestions(name, known, "; tools/zoo.py list shows what it has")
        raise InputError(f"the Model Zoo has no weights {name!r}{hint}")
    return own[0]
