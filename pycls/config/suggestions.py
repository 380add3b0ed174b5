"""Suggestions for a key that is no option."""

import difflib
from collections.abc import Iterable


def suggested_keys(key: str, known: Iterable[str]) -> list[str]:
    """At most three of the dotted ``known`` keys that may be meant by ``key``, the likeliest first.

    A key that is right but for its case wins, then the same option in another section (``BASE_LR`` for
    ``OPTIM.BASE_LR``), then what ends in it (``LR``), then what is spelled much alike, in whole or in the option's own
    name.
    """
    names = sorted(set(known))
    key = key.upper()
    if key in names:
        return [key]
    own = _own_name(key)
    same = [name for name in names if _own_name(name) == own]
    if same:
        return sorted(same, key=lambda name: -_similarity(key, name))[:3]
    longer = [name for name in names if name.endswith(f"_{own}")]
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.8)
    if close and not longer:
        return close
    alike = difflib.get_close_matches(own, sorted({_own_name(name) for name in names}), n=1, cutoff=0.7)
    matches = longer or [name for name in names if _own_name(name) in alike]
    return sorted(matches, key=lambda name: -_similarity(key, name))[:3]


def did_you_mean(key: str, known: Iterable[str]) -> str:
    """The end of an error message; empty without a suggestion."""
    close = suggested_keys(key, known)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _own_name(key: str) -> str:
    return key.rpartition(".")[2]


def _similarity(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()
