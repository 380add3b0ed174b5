"""What the labels of a list mean, as people and programs write them: whole numbers from 0 on, or names of classes."""

import re
from collections.abc import Callable, Sequence

import numpy as np

from pycls.errors import InputError

LARGEST_LABEL = 2**24 - 1
"""There are as many classes as the largest label says; a larger one is a mistake that would fill the memory."""

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
_NOTHING = {"nan", "none", "null", "na", "n/a", "#n/a", "#na", "<na>", "inf", "infinity"}
"""How programs write a value that is missing or no number, after its sign and without capitals."""


def read_labels(texts: Sequence[str], where: Callable[[int], str], may_be_names: bool, named: bool = False) -> np.ndarray:
    """Labels: int64 ``[N]`` where they are numbers (1 or, as pandas writes them, 1.0), else the names as they are.

    Where there are both they are names if at least half of them are no numbers; else those that are none are mistakes.

    Args:
        texts: as written, without blanks around them.
        where: index -> file and line, for messages.
        may_be_names: whether names are allowed at all.
        named: take numbers for names too, because the labels of the training list are names.

    Raises:
        InputError: for a label that is missing, ``NaN`` and the like, a fraction, negative, or no number among numbers.
    """
    numbers = {text: _number(text) for text in dict.fromkeys(texts)}
    for text in numbers:
        if not text or text.lstrip("+-").lower() in _NOTHING:
            what = f"the label {text!r} stands for a missing one; a class needs another name" if text else "the label is empty"
            raise InputError(f"{where(texts.index(text))}: {what}")
    words = sum(numbers[text] is None for text in texts)
    if may_be_names and (named or (words and 2 * words >= len(texts))):
        return np.array(texts)
    for text, number in numbers.items():
        if fault := _fault(number):
            among = ", as most labels here are" if number is None and may_be_names else ""
            raise InputError(f"{where(texts.index(text))}: the label {text!r} is {fault}{among}")
    return np.array([numbers[text] for text in texts], np.int64)


def _number(text: str) -> int | float | None:
    if not _NUMBER.fullmatch(text):
        return None
    return int(text) if text.lstrip("+-").isdecimal() and len(text) < 40 else float(text)


def _fault(number: int | float | None) -> str:
    if number is None or number != number // 1:
        return "no whole number"
    if number < 0:
        return "negative; labels count from 0"
    return f"too large; labels go to {LARGEST_LABEL:,}" if number > LARGEST_LABEL else ""
