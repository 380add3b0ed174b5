"""``STAGE2``: what the second stage of a two-stage training has otherwise than the first.

An option of the first stage below ``STAGE2``, such as ``STAGE2.OPTIM.BASE_LR``, is the second stage's own; what is not
given there is as in the first. The second stage's options are so a tree like any other, checked by the same rules.
"""

import fnmatch
from dataclasses import dataclass
from typing import Any

from pycls.config.options import CORE
from pycls.config.unknown_keys import Given
from pycls.config.yaml_lines import ConfigValue
from pycls.errors import InputError

SECTION = "STAGE2."

MAY_DIFFER = ("HEAD.*", "OPTIM.*", "TRAIN.SAMPLER", "TRAIN.SAMPLES_PER_CLASS", "TRAIN.REPEAT_THRESHOLD", "TRAIN.BATCH_SIZE",
              "TRAIN.ACCUM_STEPS", "TRAIN.EVAL_PERIOD", "TRAIN.LABEL_SMOOTHING", "TRAIN.MIXUP_ALPHA",
              "TRAIN.CUTMIX_ALPHA")  # fmt: skip
"""Options, and patterns of them, that the second stage may have otherwise than the first."""

UNTRAINED = ("tau_norm", "ncm")
"""Methods that take no step."""

_OF_THOSE_PRESENT = {"HEAD.CRITERION.NAME": "logit_adjustment", "HEAD.CRITERION.TAU": 0.0}
"""A cross entropy that leaves out the classes without training images, so that they are never predicted."""

HEADS: dict[str, dict[str, Any]] = {
    "lws": {"HEAD.NAME": "lws"},
    "tau_norm": {"HEAD.NAME": "softmax", "HEAD.BIAS": False, **_OF_THOSE_PRESENT},
    "ncm": {"HEAD.SIMILARITY.NAME": "cosine", **_OF_THOSE_PRESENT},
}
"""The head of each method that says what it is."""


@dataclass(frozen=True)
class _InSecondStage(ConfigValue):
    """A value that was written below STAGE2."""

    def shown(self, key: str) -> str:
        return super().shown(f"{SECTION}{key}")


def split_stages(given: Given) -> tuple[Given, Given]:
    """(what concerns the first stage, or the whole run; what the second has otherwise, by its key in a tree).

    Raises:
        InputError: an option that the second stage cannot have otherwise.
    """
    whole: Given = {}
    second: Given = {}
    for key, entry in given.items():
        if not key.startswith(SECTION) or key in CORE:
            whole[key] = entry
            continue
        own = key.removeprefix(SECTION)
        if own in ("HEAD", "OPTIM", "TRAIN") and entry.value in (None, {}):
            continue
        if not any(fnmatch.fnmatchcase(own, pattern) for pattern in MAY_DIFFER):
            names = [known.removeprefix(SECTION) for known in CORE if known.startswith(SECTION)]
            raise InputError(f"{entry.unknown(key, 'the second stage')}, which has {', '.join(names)}, and of the first "
                             f"stage's options {', '.join(MAY_DIFFER)}")  # fmt: skip
        second[own] = _InSecondStage(entry.value, entry.where, entry.text)
    return whole, second


def given_of(whole: Given, second: Given, method: str) -> Given:
    """What is given for the second stage's tree: the first stage's options with the second's in their place.

    Raises:
        InputError: an option that the method leaves no choice in, or that comes without a second stage.
    """
    for key, entry in second.items():
        if method == "none" or method in UNTRAINED or (method in HEADS and key.startswith("HEAD.")):
            raise InputError(f"{entry.at(key)} has no effect: STAGE2.METHOD is {method}")
    fixed = HEADS.get(method, {}) | ({"OPTIM.MAX_EPOCH": 0} if method in UNTRAINED else {})
    own = second | {key: ConfigValue(value, "STAGE2.METHOD") for key, value in fixed.items()}
    new_head = any(key.startswith("HEAD.") for key in own)
    return {key: entry for key, entry in whole.items()
            if not key.startswith(SECTION) and not (new_head and key.startswith("HEAD"))} | own  # fmt: skip
