"""Aliases: second names of options, and the options of public pycls, and of repositories made from it, that are not here.

Most of pycls's options have the same name and meaning here and need nothing. The others are in one table, ``TABLE``: what
each is called here, or why it has no effect. It is applied to what the user wrote before anything is checked, and every
row of it that is used says so in one line, so that nothing changes its meaning in silence. ``SECOND_NAMES`` are our own, and
used without a notice; second names of an option's values are in ``Option.aliases``.

The names are those of pycls's ``core/config.py`` from 2019 to 2022 (github.com/facebookresearch/pycls), of its branches'
public YAMLs, and of github.com/2han9x1a0release/RBF-Softmax.
"""

import fnmatch
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from pycls.config import schema
from pycls.config.options import CORE, Option
from pycls.config.unknown_keys import Given
from pycls.config.yaml_lines import ConfigValue
from pycls.errors import InputError
from pycls.ranges import POSITIVE


@dataclass(frozen=True)
class Alias:
    """What becomes of one option.

    Attributes:
        here: the option here; empty for none.
        why: why it has no effect; for one that is translated, what else there is to know.
        unless: what the user wrote -> why a translation has no effect in this configuration, or "".
        value: what the user wrote for it, and for all -> the value here; None for the same value.
    """

    here: str = ""
    why: str = ""
    unless: Callable[[Given], str] = lambda given: ""
    value: Callable[[ConfigValue, Given], Any] | None = None


def _plain(given: Given, key: str) -> Any:
    """The value of an option, or its default."""
    return given[key].plain() if key in given else CORE[key].default if key in CORE else None


def _is_cross_entropy(given: Given) -> str:
    if _plain(given, "MODEL.LOSS_FUN") != "cross_entropy":
        return ""
    return "the loss is the head's, which is cross entropy unless HEAD says otherwise"


def _is_linear(given: Given) -> str:
    return "" if _plain(given, "MODEL.LOGITS_TYPE") else "HEAD says which head it is"


def _head_by_logits_type(entry: ConfigValue, given: Given) -> Any:
    return "rbf_softmax" if entry.value == "rbf_logit" else entry.value


def _is_no_rbf_head(given: Given) -> str:
    name = _plain(given, "HEAD.NAME")
    return "" if name == "rbf_softmax" else f"HEAD.NAME is {name}"


def _is_not_exponential(given: Given) -> str:
    policy = _plain(given, "OPTIM.LR_POLICY")
    return "" if policy == "exp" else f"OPTIM.LR_POLICY is {policy}"


def _end_of_decay(entry: ConfigValue, given: Given) -> float:
    """``GAMMA`` is the factor of an epoch, ``EXP_RATE`` that of the whole schedule."""
    key = "OPTIM.MAX_EPOCH"
    epochs = schema.convert(given[key], CORE[key], key) if key in given else CORE[key].default
    return float(schema.convert(entry, Option(0.1, "", range=POSITIVE), "OPTIM.GAMMA") ** epochs)


_RENDEZVOUS = "processes find each other by themselves; torchrun says where those of several machines meet"

TABLE: dict[str, Alias] = {
    # --- another name
    "MODEL.LOSS_FUN": Alias("HEAD.CRITERION.NAME", unless=_is_cross_entropy),
    "MODEL.LOGITS_TYPE": Alias("HEAD.NAME", unless=_is_linear, value=_head_by_logits_type),
    "MODEL.RBF_SCALE": Alias("HEAD.SCALE", unless=_is_no_rbf_head),
    "MODEL.RBF_GAMMA": Alias("HEAD.GAMMA", "the published code took RBF_SCALE for it: HEAD.GAMMA 35 repeats its runs",
                                unless=_is_no_rbf_head),
    "EN.SE_RATIO": Alias("EN.SE_R"),
    "OPTIM.GAMMA": Alias("OPTIM.EXP_RATE", "the factor of an epoch to the power of OPTIM.MAX_EPOCH",
                            unless=_is_not_exponential, value=_end_of_decay),
    "TRAIN.START_CHECKPOINT": Alias("TRAIN.WEIGHTS"),
    "OUTPUT_DIR": Alias("OUT_DIR"),
    # --- no effect
    "MODEL.ACTIVATION_INPLACE": Alias(why="activations work in place wherever the backward pass allows it"),
    "MEM.*": Alias(why="activations work in place wherever the backward pass allows it"),
    "OPTIM.MTA": Alias(why="PyTorch's optimisers update all parameters in a few calls by themselves"),
    "FSDP.*": Alias(why="PARALLEL.MODE fsdp shards a model among the processes"),
    "DATA_LOADER.MODE": Alias(why="there is one loader"),
    "PREC_TIME.ENABLED": Alias(why="--mode time measures"),
    "PREC_TIME.BATCH_SIZE": Alias(why="--mode time takes batches of TRAIN.BATCH_SIZE"),
    "CFG_DEST": Alias(why="the options of a run are in OUT_DIR/config.yaml, those of a scaled net in OUT_DIR/scaled.yaml"),
    "LOG_DEST": Alias(why="log lines go to the terminal and to OUT_DIR/stdout.log"),
    "VERBOSE": Alias(why="there is one level of detail"),
    "DIST_BACKEND": Alias(why="it is NCCL on GPUs and gloo on CPUs"),
    "HOST": Alias(why=_RENDEZVOUS),
    "PORT": Alias(why=_RENDEZVOUS),
    "PORT_RANGE": Alias(why=_RENDEZVOUS),
    "DOWNLOAD_CACHE": Alias(why="downloads are kept where the environment variable PYCLS_CACHE says"),
}  # fmt: skip
"""Option of pycls, or a pattern of several -> what becomes of it. Applied from top to bottom."""

SECOND_NAMES = {"TEST.SAVE_CSV": "TEST.TABLES"}
"""Second name of an option -> the option, under which it is in the tree and in what is written of it."""

SECTIONS = {"resnet": "RESNET", "anynet": "ANYNET", "regnet": "REGNET", "effnet": "EN", "vit": "VIT"}
"""pycls's models and their sections, all of which are in a configuration that pycls itself wrote down."""


def translate(given: Given) -> tuple[Given, list[str]]:
    """What the user wrote in this version's words.

    Args:
        given: what the user wrote, by dotted key.

    Returns:
        The same with the options that have another name or no effect here replaced or left out, each still with its place
        and alias; and a line for each that is an option of pycls.

    Raises:
        InputError: for an option that is given by both names, by the same file or the same command line.
    """
    result, notices = dict(given), []
    if "CFG_DEST" in given and not given["CFG_DEST"].is_override:  # only pycls itself writes it into a file
        notices += _drop_sections(result)
    for old, entry, alias in _used(dict(result)):
        reason = alias.why if not alias.here else alias.unless(result)
        new = alias.here
        if not reason and new in given:
            reason = _overridden_by(old, entry, new, given[new])
            if not reason:
                notices.append(f"{given[new].at(new)} has no effect: {entry.at(old)} is the same option")
        del result[old]
        if reason:
            notices.append(f"{entry.at(old)} has no effect here: {reason}")
            continue
        result[new] = _translated(old, entry, alias, given)
        also = f" ({alias.why})" if alias.why else ""
        if old not in SECOND_NAMES:
            notices.append(f"{entry.at(old)} {_shown(entry)} is {new} {_shown(result[new])} here{also}")
    return result, notices


def describe(key: str) -> str:
    """What becomes of an option of ``TABLE`` or ``SECOND_NAMES``, in one line."""
    if key in SECOND_NAMES:
        return f"{key} is another name of {SECOND_NAMES[key]}"
    alias = TABLE[key]
    why = f"{': ' if not alias.here else '; '}{alias.why}" if alias.why else ""
    return f"{key}, an option of pycls, " + (f"is {alias.here} here" if alias.here else "has no effect here") + why


def _used(given: Given) -> Iterator[tuple[str, ConfigValue, Alias]]:
    for pattern, alias in {**TABLE, **{name: Alias(here) for name, here in SECOND_NAMES.items()}}.items():
        for key in [key for key in given if fnmatch.fnmatchcase(key, pattern) or f"{key}.*" == pattern]:
            yield key, given[key], alias


def _overridden_by(old: str, entry: ConfigValue, new: str, other: ConfigValue) -> str:
    """Why the option by its own name wins against the alias, or "" where the alias wins."""
    if entry.is_override == other.is_override:
        raise InputError(f"{entry.at(old)} and {other.at(new)} are the same option; leave one out")
    return "" if entry.is_override else f"{other.at(new)} is the same option"


def _translated(old: str, entry: ConfigValue, alias: Alias, given: Given) -> ConfigValue:
    if alias.value is None:
        return replace(entry, alias=old)
    value = alias.value(entry, given)
    return replace(entry, value=value, text=entry.text if value is entry.value else None, alias=old)


def _shown(entry: ConfigValue) -> str:
    value = entry.plain()
    return repr(value) if value in ("", None) else str(value)


def _drop_sections(result: Given) -> list[str]:
    """Leave out other models' sections, which pycls writes down with their defaults: all in one line."""
    model = _plain(result, "MODEL.TYPE")
    others = {section for name, section in SECTIONS.items() if name != model}
    dropped = {key: entry for key, entry in result.items() if key.partition(".")[0] in others}
    for key in dropped:
        del result[key]
    if not dropped:
        return []
    names = sorted({key.partition(".")[0] for key in dropped})
    where = next(iter(dropped.values())).where
    return [f"{where}: {', '.join(names)}: no effect: MODEL.TYPE is {model}"]
