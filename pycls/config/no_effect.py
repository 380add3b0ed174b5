"""Options that a user has set and that change nothing in this run: one table of them, and a line for each.

Nothing is refused here: such an option may well be left over in a file whose other options are overridden. What is a mistake
whatever else is given is refused by :mod:`pycls.config.checks`.
"""

import fnmatch
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

from pycls.config import components, schema
from pycls.config.checks import DEPENDENT
from pycls.config.options import CORE
from pycls.config.source_scan import section_of
from pycls.config.unknown_keys import Given
from pycls.config.yaml_lines import ConfigValue
from pycls.registry import AUXILIARIES, HEADS, MODELS, Registry

Values = Mapping[str, Any]
"""The value of every option of the run, by dotted key."""
Stage = tuple[Values, Given]
Origin = Literal["person", "run", "pycls"]
Reason = Callable[[Values], str]
"""What to say of an option behind its name and place; "" where it has an effect."""


def _belongs_to(key: str, *choices: Any) -> Reason:
    """For an option that only some choices of another option make use of."""

    def reason(values: Values) -> str:
        wanted = " or ".join(map(str, choices))
        return "" if values[key] in choices else f"has no effect: {key} is {values[key]}; it belongs to {wanted}"

    return reason


def _is_off(key: str) -> Reason:
    """For an option of something that another option, False or 0, switches off."""
    return lambda values: "" if values[key] else f"has no effect: {key} is {values[key]}"


def _is_on(key: str) -> Reason:
    """For an option that another one, True or above 0, takes the place of."""
    return lambda values: f"has no effect: {key} is {values[key]}" if values[key] else ""


def _model_lacks(argument: str) -> Reason:
    """For an option that several models share."""

    def reason(values: Values) -> str:
        name = values["MODEL.TYPE"]
        component = MODELS.get(name)
        given = argument in components.given_to(MODELS, component) and schema.accepts(component, argument)
        return "" if given else f"has no effect: the model {name!r} does not use it"

    return reason


def _too_late(key: str) -> Reason:
    """For an epoch from which on something is done."""

    def reason(values: Values) -> str:
        last = values["OPTIM.MAX_EPOCH"]
        return f"has no effect: OPTIM.MAX_EPOCH is {last}" if 0 < last <= values[key] else ""

    return reason


def _late_steps(values: Values) -> str:
    last = values["OPTIM.MAX_EPOCH"]
    late = [str(step) for step in values["OPTIM.STEPS"] if step >= last]
    return f"has no effect at {', '.join(late)}: OPTIM.MAX_EPOCH is {last}" if late and last else ""


def _late_sizes(values: Values) -> str:
    last = values["OPTIM.MAX_EPOCH"]
    late = [str(epoch) for epoch, *_ in values["TRAIN.IM_SIZES"] if epoch >= last]
    return f"has no effect from epoch {', '.join(late)} on: OPTIM.MAX_EPOCH is {last}" if late and last else ""


def _long_warmup(values: Values) -> str:
    epochs, last = values["OPTIM.WARMUP_EPOCHS"], values["OPTIM.MAX_EPOCH"]
    if not 0 < last < epochs:
        return ""
    return f"is {epochs:g}, and OPTIM.MAX_EPOCH {last}: the learning rate never reaches OPTIM.BASE_LR"


def _plain_momentum(values: Values) -> str:
    """Nesterov's form is only defined with momentum and without dampening."""
    if values["OPTIM.NESTEROV"] and values["OPTIM.MOMENTUM"] and values["OPTIM.DAMPENING"]:
        return f"has no effect: OPTIM.DAMPENING is {values['OPTIM.DAMPENING']}"
    return _is_off("OPTIM.MOMENTUM")(values) if values["OPTIM.NESTEROV"] else ""


def _no_sampling(values: Values) -> str:
    drawn = values["DATA.LONG_TAIL.PROFILE"] != "none" or values["DATA.NOISE.RATE"]
    return "" if drawn else "has no effect: there is neither a long tail (DATA.LONG_TAIL.PROFILE) nor noise (DATA.NOISE.RATE)"


_SUBMITTED = ("slurm", "submitit_local")
_BY_MODE = {"LAUNCH.MAX_RETRY": ("torchrun", *_SUBMITTED), "LAUNCH.TIME_LIMIT": _SUBMITTED, "LAUNCH.SIGNAL_DELAY": _SUBMITTED,
            "LAUNCH.*": ("slurm",), "MAX_GPUS_PER_NODE": _SUBMITTED}  # fmt: skip
_ON_GPUS = _belongs_to("DEVICE", "auto", "cuda")
_SGD, _ADAM = _belongs_to("OPTIM.OPTIMIZER", "sgd"), _belongs_to("OPTIM.OPTIMIZER", "adam", "adamw")

TABLE: dict[str, tuple[Reason, ...]] = {
    **{key: (_belongs_to(*chooser),) for key, chooser in DEPENDENT.items()},
    "MODEL.ACTIVATION_FUN": (_model_lacks("activation_fun"),),
    "BN.EPS": (_model_lacks("bn_eps"),),
    "BN.MOM": (_model_lacks("bn_mom"),),
    "BN.ZERO_INIT_FINAL_GAMMA": (_model_lacks("zero_init_final_gamma"),),
    "LN.EPS": (_model_lacks("ln_eps"),),
    "BN.NUM_SAMPLES_PRECISE": (_is_off("BN.USE_PRECISE_STATS"),),
    "BN.CUSTOM_WEIGHT_DECAY": (_is_off("BN.USE_CUSTOM_WEIGHT_DECAY"),),
    "LN.CUSTOM_WEIGHT_DECAY": (_is_off("LN.USE_CUSTOM_WEIGHT_DECAY"),),
    "DATA.ROOT": (_is_on("DATA.SYNTHETIC"),),
    "DATA.DOWNLOAD": (_is_on("DATA.SYNTHETIC"),),
    "DATA.SEED": (_no_sampling,),
    "TRAIN.IM_SIZES": (_late_sizes,),
    "TRAIN.EVAL_PERIOD": (_belongs_to("TRAIN.EVAL_SPLIT", "val", "test"),),
    "OPTIM.EXP_RATE": (_belongs_to("OPTIM.LR_POLICY", "exp"), _is_on("OPTIM.MIN_LR")),
    "OPTIM.STEPS": (_late_steps,),
    "OPTIM.LR_MULT": (_belongs_to("OPTIM.LR_POLICY", "steps"), _is_off("OPTIM.STEPS")),
    "OPTIM.MIN_LR": (_belongs_to("OPTIM.LR_POLICY", "cos", "lin", "exp"),),
    "OPTIM.WARMUP_EPOCHS": (_long_warmup,),
    "OPTIM.WARMUP_FACTOR": (_is_off("OPTIM.WARMUP_EPOCHS"),),
    "OPTIM.MOMENTUM": (_SGD,),
    "OPTIM.DAMPENING": (_SGD, _is_off("OPTIM.MOMENTUM")),
    "OPTIM.NESTEROV": (_SGD, _plain_momentum),
    "OPTIM.BETA1": (_ADAM,),
    "OPTIM.BETA2": (_ADAM,),
    "OPTIM.BIAS_CUSTOM_WEIGHT_DECAY": (_is_off("OPTIM.BIAS_USE_CUSTOM_WEIGHT_DECAY"),),
    "OPTIM.EMA_ALPHA": (_is_off("OPTIM.EMA_UPDATE_PERIOD"),),
    "NUM_GPUS": (_ON_GPUS,),
    "NUM_PROCS": (_belongs_to("DEVICE", "auto", "cpu"),),
    "DETERMINISTIC": (_belongs_to("DEVICE", "auto", "cuda", "mps"),),
    "CUDNN.BENCHMARK": (_ON_GPUS, _is_on("DETERMINISTIC")),
    "DATA_LOADER.PIN_MEMORY": (_ON_GPUS,),
    "PARALLEL.STATIC_GRAPH": (_belongs_to("PARALLEL.MODE", "ddp"),),
    **{key: (_belongs_to("LAUNCH.MODE", *modes),) for pattern, modes in reversed(_BY_MODE.items())
       for key in CORE if fnmatch.fnmatchcase(key, pattern) and key != "LAUNCH.MODE"},
}  # fmt: skip
"""Core option -> why it may have no effect; the first reason that holds is shown."""

_ANNEALED = "lsoftmax sphereface multi_angle"

OF_COMPONENTS: dict[tuple[str, str], tuple[tuple[Any, ...], ...]] = {
    ("anynet regnet", "SE_R"): ((_is_off, "SE_ON"),),
    ("vit", "C_STEM_*"): ((_belongs_to, "STEM_TYPE", "conv"),),
    ("center", "CENTER_RATE"): ((_belongs_to, "UPDATE", "paper"),),
    ("cosine", "SCALE"): ((_belongs_to, "LEARNING", "fixed", "learned"),),
    ("ldam", "DRW_EPOCH"): ((_too_late, "DRW_EPOCH"),),
    ("ldam", "BETA"): ((_is_off, "DRW_EPOCH"),),
    ("class_balanced", "FROM_EPOCH"): ((_too_late, "FROM_EPOCH"),),
    (_ANNEALED, "LAMBDA_[GP]*"): ((_is_off, "LAMBDA_BASE"), (_is_on, "LAMBDA_DECAY")),
    (_ANNEALED, "LAMBDA_[DM]*"): ((_is_off, "LAMBDA_BASE"),),
}
"""Names of components, and one of their options -> why it may have no effect: a function above, an option of the same
component, and what else the function takes."""


def origin(written: Given) -> Origin:
    """Who wrote the file: a person, a run, or public pycls. The last two write down every option there is."""
    in_file = {key for key, entry in written.items() if not entry.is_override}
    return "pycls" if "CFG_DEST" in in_file else "run" if "DATA.HASH" in in_file else "person"


def notices(first: Stage, second: Stage, own: frozenset[str], by: Origin) -> list[str]:
    """A line, with the place, for each option that the user has set and that has no effect.

    Args:
        first: the values of the run's tree, and what was given for it.
        second: those of the second stage's tree; empty where it has no options of its own stage.
        own: what was given for the second stage alone.
        by: who wrote the file. What has its default in a run's file is no one's choice, and nothing is in one of pycls's.
    """
    found = dict(_without_effect(*first, by))
    later = dict(_without_effect(*second, by))
    lines = [line for key, line in found.items() if key in own or key in later or key not in second[1]]
    return lines + [line for key, line in later.items() if key in own]


def _without_effect(values: Values, given: Given, by: Origin) -> Iterator[tuple[str, str]]:
    """Key -> line."""
    for key, entry in given.items():
        if key == "HEAD.AUXILIARIES":
            yield from ((key, line) for line in _of_auxiliaries(entry, values, by))
        elif key in values:
            default, reasons = _rows(key, values)
            line = _line(entry, key, values, default, reasons, by)
            if line:
                yield key, line


def _line(entry: ConfigValue, key: str, values: Values, default: Any, reasons: Iterable[Reason], by: Origin) -> str:
    """The first reason that holds, behind the place; "" for none, or where no user chose the value."""
    if not entry.is_override and (by == "pycls" or (by == "run" and values[key] == default)):
        return ""
    note = next(filter(None, (reason(values) for reason in reasons)), "")
    return f"{entry.at(key)} {note}" if note else ""


def _rows(key: str, values: Values) -> tuple[Any, list[Reason]]:
    """The option's default and its rows in the tables."""
    if key in CORE:
        return CORE[key].default, list(TABLE.get(key, ()))
    node, _, own = key.rpartition(".")
    for registry, name, section in _components(values):
        options = components.component_options(registry, name) if section == node else {}
        if own in options:
            return options[own].default, _reasons(name, own, node)
    return None, []


def _reasons(name: str, own: str, node: str) -> list[Reason]:
    return [make(f"{node}.{sibling}", *choices)
            for (names, pattern), rows in OF_COMPONENTS.items() if name in names.split() and fnmatch.fnmatchcase(own, pattern)
            for make, sibling, *choices in rows]  # fmt: skip


def _components(values: Values) -> Iterator[tuple[Registry, str, str]]:
    """The components that have an option in the tree beside others of theirs, and their nodes."""
    name = values["MODEL.TYPE"]
    yield MODELS, name, section_of(MODELS.get(name), name)
    if values["HEAD.NAME"]:
        yield HEADS, values["HEAD.NAME"], "HEAD"
    for part, registry in components.PARTS.items():
        if values.get(f"HEAD.{part}.NAME"):
            yield registry, values[f"HEAD.{part}.NAME"], f"HEAD.{part}"


def _of_auxiliaries(entry: ConfigValue, values: Values, by: Origin) -> Iterator[str]:
    for i, (item, auxiliary) in enumerate(zip(entry.value, values["HEAD.AUXILIARIES"], strict=True)):
        node, options = f"HEAD.AUXILIARIES[{i}]", components.component_options(AUXILIARIES, auxiliary["NAME"])
        seen = {**values, **{f"{node}.{own}": value for own, value in auxiliary.items()}}
        for own, option in options.items():
            given = item.value.get(own) if isinstance(item.value, dict) else None
            reasons = _reasons(auxiliary["NAME"], own, node)
            if given is not None and (line := _line(given, f"{node}.{own}", seen, option.default, reasons, by)):
                yield line
