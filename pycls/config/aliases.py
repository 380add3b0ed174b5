"""Other spellings: the options of public pycls, and of repositories made from it, that are not options here.

Most of pycls's options have the same name and meaning here and need nothing. The others are in one table, ``TABLE``: what
each is called here, or why it has no effect. It is applied to what the user wrote before anything is checked, and every
row that is used says so in one line, so that nothing changes its meaning in silence.

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
from pycls.config.yaml_lines import Located
from pycls.errors import InputError
from pycls.ranges import POSITIVE


@dataclass(frozen=True)
class Spelling:
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
    value: Callable[[Located, Given], Any] | None = None


def _plain(given: Given, key: str) -> Any:
    """The value of an option, or its default."""
    return given[key].plain() if key in given else CORE[key].default if key in CORE else None


def _is_cross_entropy(given: Given) -> str:
    if _plain(given, "MODEL.LOSS_FUN") != "cross_entropy":
        return ""
    return "the loss is the head's, which is cross entropy unless HEAD says otherwise"


def _is_linear(given: Given) -> str:
    return "" if _plain(given, "MODEL.LOGITS_TYPE") else "HEAD says which head it is"


def _head_by_logits_type(located: Located, given: Given) -> Any:
    return "rbf_softmax" if located.value == "rbf_logit" else located.value


def _is_no_rbf_head(given: Given) -> str:
    name = _plain(given, "HEAD.NAME")
    return "" if name == "rbf_softmax" else f"HEAD.NAME is {name}"


def _is_not_exponential(given: Given) -> str:
    policy = _plain(given, "OPTIM.LR_POLICY")
    return "" if policy == "exp" else f"OPTIM.LR_POLICY is {policy}"


def _end_of_decay(located: Located, given: Given) -> float:
    """``GAMMA`` is the factor of an epoch, ``EXP_RATE`` that of the whole schedule."""
    key = "OPTIM.MAX_EPOCH"
    epochs = schema.convert(given[key], CORE[key], key) if key in given else CORE[key].default
    return float(schema.convert(located, Option(0.1, "", range=POSITIVE), "OPTIM.GAMMA") ** epochs)


_RENDEZVOUS = "processes find each other by themselves; torchrun says where those of several machines meet"

TABLE: dict[str, Spelling] = {
    # --- another name
    "MODEL.LOSS_FUN": Spelling("HEAD.CRITERION.NAME", unless=_is_cross_entropy),
    "MODEL.LOGITS_TYPE": Spelling("HEAD.NAME", unless=_is_linear, value=_head_by_logits_type),
    "MODEL.RBF_SCALE": Spelling("HEAD.SCALE", unless=_is_no_rbf_head),
    "MODEL.RBF_GAMMA": Spelling("HEAD.GAMMA", "the published code took RBF_SCALE for it: HEAD.GAMMA 35 repeats its runs",
                                unless=_is_no_rbf_head),
    "EN.SE_RATIO": Spelling("EN.SE_R"),
    "OPTIM.GAMMA": Spelling("OPTIM.EXP_RATE", "the factor of an epoch to the power of OPTIM.MAX_EPOCH",
                            unless=_is_not_exponential, value=_end_of_decay),
    "TRAIN.START_CHECKPOINT": Spelling("TRAIN.WEIGHTS"),
    "OUTPUT_DIR": Spelling("OUT_DIR"),
    # --- no effect
    "MODEL.ACTIVATION_INPLACE": Spelling(why="activations work in place wherever the backward pass allows it"),
    "MEM.*": Spelling(why="activations work in place wherever the backward pass allows it"),
    "OPTIM.MTA": Spelling(why="PyTorch's optimisers update all parameters in a few calls by themselves"),
    "FSDP.*": Spelling(why="PARALLEL.MODE fsdp shares a model out among the processes"),
    "DATA_LOADER.MODE": Spelling(why="there is one loader"),
    "PREC_TIME.ENABLED": Spelling(why="--mode time measures"),
    "PREC_TIME.BATCH_SIZE": Spelling(why="--mode time takes batches of TRAIN.BATCH_SIZE"),
    "CFG_DEST": Spelling(why="the options of a run are in OUT_DIR/config.yaml, those of a scaled net in OUT_DIR/scaled.yaml"),
    "LOG_DEST": Spelling(why="log lines go to the terminal and to OUT_DIR/stdout.log"),
    "VERBOSE": Spelling(why="there is one level of detail"),
    "DIST_BACKEND": Spelling(why="it is NCCL on GPUs and gloo on CPUs"),
    "HOST": Spelling(why=_RENDEZVOUS),
    "PORT": Spelling(why=_RENDEZVOUS),
    "PORT_RANGE": Spelling(why=_RENDEZVOUS),
    "DOWNLOAD_CACHE": Spelling(why="downloads are kept where the environment variable PYCLS_CACHE says"),
}  # fmt: skip
"""Option of pycls, or a pattern of several -> what becomes of it. Applied from top to bottom."""

SECTIONS = {"resnet": "RESNET", "anynet": "ANYNET", "regnet": "REGNET", "effnet": "EN", "vit": "VIT"}
"""pycls's models and their sections, all of which are in a configuration that pycls itself wrote down."""


def translate(given: Given) -> tuple[Given, list[str]]:
    """What the user wrote in this version's words.

    Args:
        given: what the user wrote, by dotted key.

    Returns:
        The same with the options that ``TABLE`` knows replaced or left out, each still with its place and spelling; and a
        line for each of these.

    Raises:
        InputError: for an option that is given in both spellings, by the same file or the same command line.
    """
    result, notices = dict(given), []
    if "CFG_DEST" in given and not given["CFG_DEST"].is_override:  # only pycls itself writes it into a file
        notices += _drop_sections(result)
    for old, located, spelling in _used(dict(result)):
        reason = spelling.why if not spelling.here else spelling.unless(result)
        new = spelling.here
        if not reason and new in given:
            reason = _choose(old, located, new, given[new])
            if not reason:
                notices.append(f"{given[new].at(new)} has no effect: {located.at(old)} is the same option")
        del result[old]
        if reason:
            notices.append(f"{located.at(old)} has no effect here: {reason}")
            continue
        result[new] = _translated(old, located, spelling, given)
        also = f" ({spelling.why})" if spelling.why else ""
        notices.append(f"{located.at(old)} {_shown(located)} is {new} {_shown(result[new])} here{also}")
    return result, notices


def describe(key: str) -> str:
    """What becomes of the row ``key`` of the table, in one line."""
    spelling = TABLE[key]
    why = f"{': ' if not spelling.here else '; '}{spelling.why}" if spelling.why else ""
    return f"{key}, an option of pycls, " + (f"is {spelling.here} here" if spelling.here else "has no effect here") + why


def _used(given: Given) -> Iterator[tuple[str, Located, Spelling]]:
    for pattern, spelling in TABLE.items():
        for key in [key for key in given if fnmatch.fnmatchcase(key, pattern) or f"{key}.*" == pattern]:
            yield key, given[key], spelling


def _choose(old: str, located: Located, new: str, other: Located) -> str:
    """Why the old spelling loses against the new one, or "" where it wins."""
    if located.is_override == other.is_override:
        raise InputError(f"{located.at(old)} and {other.at(new)} are the same option; leave one out")
    return "" if located.is_override else f"{other.at(new)} is the same option"


def _translated(old: str, located: Located, spelling: Spelling, given: Given) -> Located:
    if spelling.value is None:
        return replace(located, spelled=old)
    value = spelling.value(located, given)
    return replace(located, value=value, text=located.text if value is located.value else None, spelled=old)


def _shown(located: Located) -> str:
    value = located.plain()
    return repr(value) if value in ("", None) else str(value)


def _drop_sections(result: Given) -> list[str]:
    """Leave out other models' sections, which pycls writes down with their defaults: all in one line."""
    model = _plain(result, "MODEL.TYPE")
    others = {section for name, section in SECTIONS.items() if name != model}
    dropped = {key: located for key, located in result.items() if key.partition(".")[0] in others}
    for key in dropped:
        del result[key]
    if not dropped:
        return []
    names = sorted({key.partition(".")[0] for key in dropped})
    where = next(iter(dropped.values())).where
    return [f"{where}: {', '.join(names)}: no effect: MODEL.TYPE is {model}"]
