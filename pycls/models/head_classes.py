"""The head's weights of the classes that a model shares with others' weights; new ones for its other classes."""

import logging
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from pycls import class_names as names
from pycls.heads.class_rows import ClassTensors, class_tensors
from pycls.zoo.weights import names_in

logger = logging.getLogger(__name__)

State = Mapping[str, Tensor]
PREFIX = "head."


def head_for_classes(
    head: nn.Module, given: State, about: object, class_names: Sequence[str] | None, source: str, trained_on: str, data: str
) -> tuple[dict[str, Tensor], list[str] | None]:
    """The state for a model's head, and the names of its classes as far as they are known.

    Rows go to the classes of their names; where no class is known the head keeps its own weights. What is made of the counts
    of the classes stays the model's own either way. Lines of the log say what was done.

    Args:
        head: the model's, with its first weights.
        given: the weights' head, by names without the prefix.
        about: what the file tells as its ``class_names``.
        class_names: of the model's classes, from the first on; None where nothing tells them.
        source: the weights, for messages.
        trained_on: the data set that the weights were trained on; empty if nothing says it.
        data: the data set of the model; empty if nothing says it.

    Raises:
        InputError: the file's names cannot be those of its classes.
    """
    own = dict(head.state_dict())
    tensors = class_tensors(head)
    count = _classes_of(own, given, tensors)
    if count is None:
        _log_new(source, "(different head type)" if given else "(these weights have none)")
        return own, _named(class_names)
    theirs, classes = names_in(about, count, source), _classes(own, tensors)
    usual = theirs is None and class_names is not None and len(class_names) == count
    if usual and class_names is not None:
        theirs = names.usual_order(trained_on, class_names)
    if theirs is None or class_names is None:
        places, note = _by_position(count, classes, theirs, class_names, trained_on, data)
    else:
        numbers = names.only_numbers_agree(class_names, theirs, data, trained_on)
        places, note = _by_name(theirs, class_names, count, classes, numbers)
        note += "; they have no names in its file, and are taken to be in ImageNet's usual order" if usual else ""
    if places is not None and places != list(range(count)) and (tensors is None or tensors.undeclared):
        which = f"its part does not declare the rows of {tensors.undeclared[0]} (class_rows)" if tensors else "it has no parts"
        places, note = None, f"{note}, and rows of this head cannot be moved: {which}"
    if places is None:
        _log_new(source, f"because {note}")
        return own, _named(class_names)
    logger.info("%s: head weights kept: %s", source, note)
    if tensors is None:
        return dict(given), _named(class_names) or theirs
    return tensors.moved(own, dict(given), places), _named(class_names) or theirs


def number_of_classes(head: nn.Module) -> int:
    """K of a head."""
    return _classes(head.state_dict(), class_tensors(head))


def _log_new(source: str, why: str) -> None:
    logger.info("%s: backbone weights kept, head re-initialised %s", source, why)


def _named(class_names: Sequence[str] | None) -> list[str] | None:
    return None if class_names is None else list(class_names)


def _classes_of(own: State, given: State, tensors: ClassTensors | None) -> int | None:
    """How many classes the given head has; None for a different head type."""
    if tensors is None:
        return _classes(own, tensors) if _shapes(own) == _shapes(given) else None
    if own.keys() != given.keys():
        return None
    counts = set()
    for name in own.keys() - tensors.priors:
        ours, theirs, rows = own[name].shape, given[name].shape, tensors.learned.get(name)
        if rows is None and ours != theirs and name not in tensors.undeclared:
            return None
        if rows is not None:
            if len(ours) != len(theirs) or ours[1:] != theirs[1:] or theirs[0] % rows:
                return None
            counts.add(theirs[0] // rows)
    return counts.pop() if len(counts) == 1 else None


def _shapes(state: State) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


def _classes(own: State, tensors: ClassTensors | None) -> int:
    """How many classes a head has."""
    if tensors is not None and tensors.learned:
        name, rows = next(iter(tensors.learned.items()))
        return len(own[name]) // rows
    return max((len(value) for value in own.values() if value.ndim), default=0)


def _by_position(
    count: int, classes: int, theirs: Sequence[str] | None, ours: Sequence[str] | None, trained_on: str, data: str
) -> tuple[list[int | None] | None, str]:
    """Where nothing names the classes of one of the two: (places, or None for a new head, and what to say)."""
    if count != classes:
        return None, f"it has {count} classes, and there are {classes} now"
    unnamed = "the model's are" if theirs is not None else "these weights' are" if ours is not None else "both are"
    if ours is not None and data and trained_on.lower() not in ("", data.lower()):
        return None, f"its classes are those of {trained_on}, and {data} has others ({names.shown(ours)})"
    return list(range(count)), f"of its {count} classes {unnamed} not named, and class k is taken to be class k of the other"


def _by_name(
    theirs: Sequence[str], ours: Sequence[str], count: int, classes: int, numbers: bool
) -> tuple[list[int | None] | None, str]:
    """Where both are named: (places, or None for a new head, and what to say)."""
    assumed = "; the names are numbers only, and a number is taken to be the same class in both" if numbers else ""
    if list(theirs) == list(ours) and count == classes:
        return list(range(count)), f"the same {len(ours)} classes{assumed}"
    places = [*names.places(ours, theirs), *[None] * (classes - len(ours))]
    new = [name for name, place in zip(ours, places, strict=False) if place is None]
    known = sum(place is not None for place in places)
    if not known:
        return None, (f"none of its {len(theirs)} classes ({names.shown(theirs)}) is among the {len(ours)} now "
                      f"({names.shown(ours)}){names.near_miss(ours, theirs)}")  # fmt: skip
    if known == classes == count:
        return places, f"the same {known} classes in another order, each with its own weights{assumed}"
    note = f"{known} of its {count} classes by their names{assumed}"
    if new:
        note += f"; {len(new)} of the {classes} now are new, with new weights: {names.shown(new)}{names.near_miss(new, theirs)}"
    return places, note
