"""When a class of one list of names is a class of another: what weights, data sets and runs compare their classes by."""

import re
from collections.abc import Sequence
from typing import Any

_SHOWN = 3
_ANY_CLASSES = ("image_folder", "image_list", "webdataset")
"""Data sets whose name does not tell what their classes are."""


def places(wanted: Sequence[str], known: Sequence[str]) -> list[int | None]:
    """The number of each wanted class among the known ones.

    Classes are the same by their names, or by the WordNet id that both names begin with.

    Args:
        wanted: names.
        known: names, in the order of their numbers.

    Returns:
        A number for each of ``wanted``; None where ``known`` lacks the name, or either has it more than once.
    """
    ours, theirs = [identity(name) for name in wanted], [identity(name) for name in known]
    number, unique = {name: k for k, name in enumerate(theirs)}, set(_once(ours)) & set(_once(theirs))
    return [number[name] if name in unique else None for name in ours]


def identity(name: str) -> str:
    """What tells a class from others: the WordNet id that its name begins with, or else the whole name."""
    return name.split()[0] if is_wordnet(name) else name


def is_wordnet(name: str) -> bool:
    """Whether the name begins with a WordNet id, as those of ImageNet do."""
    return re.match(r"n\d{8}\b", name) is not None


def usual_order(trained_on: str, names: Sequence[str]) -> list[str] | None:
    """The names in the order in which weights for a data set that do not name their classes have them, where that is known: of
    ImageNet, by WordNet id. None where it is not.

    Args:
        trained_on: the data set that the weights are for.
        names: of a data set; they are the same classes.
    """
    return sorted(names) if trained_on.lower().startswith("imagenet") and all(map(is_wordnet, names)) else None


def only_numbers_agree(ours: Sequence[str], theirs: Sequence[str], data: str, trained_on: str) -> bool:
    """Whether both lists are plain numbers, and the names of the two data sets do not tell that a number is the same class."""
    known = data == trained_on != "" and data not in _ANY_CLASSES
    return are_numbers(ours) and are_numbers(theirs) and not known


def are_numbers(names: Sequence[str]) -> bool:
    """Whether the names are the labels 0, 1, 2, ... themselves, and so tell nothing of the classes."""
    return list(names) == [str(k) for k in range(len(names))]


def shown(names: Sequence[str]) -> str:
    """A few of the names, for a message."""
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def near_miss(wanted: Sequence[str], known: Sequence[str]) -> str:
    """A remark on the first two names that differ in case, blanks or punctuation only; empty if there are none."""
    by_letters = {_letters(name): name for name in known}
    for name in wanted:
        other = by_letters.get(_letters(name), name)
        if other != name and _letters(name):
            return f" ({name!r} and {other!r} differ only in how they are written)"
    return ""


def checked(value: Any, most: int) -> list[str] | None:
    """The names in what a file tells as its ``class_names``; None where it tells none.

    Args:
        value: what was read.
        most: classes that there are; fewer may be named, from the first on.

    Raises:
        ValueError: these cannot be the names of so many classes.
    """
    if value is None or value == []:
        return None
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise ValueError("its class_names are no list of names")
    if len(value) > most:
        raise ValueError(f"its class_names are {len(value)}, and it has {most} classes")
    return list(value)


def _once(names: Sequence[str]) -> list[str]:
    seen: dict[str, int] = {}
    for name in names:
        seen[name] = seen.get(name, 0) + 1
    return [name for name, count in seen.items() if count == 1]


def _letters(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).casefold()
