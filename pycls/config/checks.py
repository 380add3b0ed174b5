"""Core options that are right each by itself and cannot hold together."""

import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from pycls.config.options import CORE
from pycls.config.yaml_lines import ConfigValue
from pycls.errors import InputError
from pycls.registry import MODELS


def check(values: dict[str, Any], given: dict[str, ConfigValue]) -> None:
    """Raise :class:`InputError` for the first contradiction.

    Args:
        values: the core options' values by dotted key.
        given: what the user wrote, for the place in the message.
    """

    def start(key: str) -> str:
        return given[key].at(key) if key in given else key

    if not values["MODEL.TYPE"]:
        raise InputError(f"{start('MODEL.TYPE')} must name the backbone; there are: {', '.join(MODELS.names())}")
    _check_splits(values, start("TRAIN.EVAL_SPLIT" if "TRAIN.EVAL_SPLIT" in given else "TRAIN.SPLIT"))
    _check_steps(values, start("OPTIM.STEPS"))
    _check_batch(values, start("TRAIN.BATCH_SIZE"))
    _check_dependent(values, given)
    _check_second_stage(values, given)
    if values["MODEL.ACTIVATION_CHECKPOINTING"] and values["MODEL.COMPILE"]:
        raise InputError(f"{start('MODEL.ACTIVATION_CHECKPOINTING')} does not go with MODEL.COMPILE: torch.compile chooses "
                         "itself what to compute again")  # fmt: skip
    if values["DATA_LOADER.DECODER"] == "gpu" and values["DEVICE"] not in ("auto", "cuda"):
        raise InputError(f"{start('DATA_LOADER.DECODER')}: gpu needs a CUDA GPU, and DEVICE is {values['DEVICE']}; auto and "
                         "pillow decode anywhere")  # fmt: skip
    if values["PARALLEL.STATIC_GRAPH"] and values["TRAIN.ACCUM_STEPS"] > 1:
        raise InputError(f"{start('PARALLEL.STATIC_GRAPH')} does not go with TRAIN.ACCUM_STEPS: PyTorch's DDP cannot hold "
                         "gradients of a static graph back")  # fmt: skip
    if values["LAUNCH.MODE"] in ("slurm", "submitit_local"):
        _check_job(values, start)


def _check_splits(values: dict[str, Any], start: str) -> None:
    split, eval_split = values["TRAIN.SPLIT"], values["TRAIN.EVAL_SPLIT"]
    if split == eval_split or (split, eval_split) == ("trainval", "val"):
        remedy = "none or test" if "val" in split else "none or val"
        raise InputError(
            f"{start}: TRAIN.SPLIT {split} contains the {eval_split} images that TRAIN.EVAL_SPLIT evaluates on; set "
            f"TRAIN.EVAL_SPLIT to {remedy}"
        )


def _check_steps(values: dict[str, Any], start: str) -> None:
    steps, policy = values["OPTIM.STEPS"], values["OPTIM.LR_POLICY"]
    if steps and policy != "steps":
        raise InputError(f"{start} has no effect: OPTIM.LR_POLICY is {policy}; it belongs to steps")
    if any(later <= earlier for earlier, later in pairwise([-1, *steps])):
        raise InputError(f"{start}: expected epochs from 0 that increase, found {steps}")


DEPENDENT = {
    "DATA.LONG_TAIL.IMBALANCE": ("DATA.LONG_TAIL.PROFILE", "exponential"),
    "DATA.LONG_TAIL.LARGEST": ("DATA.LONG_TAIL.PROFILE", "pareto"),
    "DATA.LONG_TAIL.SMALLEST": ("DATA.LONG_TAIL.PROFILE", "pareto"),
    "DATA.NOISE.PAIRS": ("DATA.NOISE.KIND", "pairs"),
    "STAGE2.TAU": ("STAGE2.METHOD", "tau_norm"),
    "TRAIN.SAMPLES_PER_CLASS": ("TRAIN.SAMPLER", "class_aware"),
    "TRAIN.REPEAT_THRESHOLD": ("TRAIN.SAMPLER", "repeat_factor"),
}
"""Options that mean something for one choice of another option only."""


def _check_dependent(values: dict[str, Any], given: dict[str, ConfigValue]) -> None:
    for key, (chooser, choice) in DEPENDENT.items():
        if key in given and values[key] != CORE[key].default and values[chooser] != choice:
            raise InputError(f"{given[key].at(key)} has no effect: {chooser} is {values[chooser]}; it belongs to {choice}")
    if values["DATA.NOISE.RATE"] and values["DATA.NOISE.KIND"] == "none":
        raise InputError(f"{given['DATA.NOISE.RATE'].at('DATA.NOISE.RATE')} has no effect: DATA.NOISE.KIND is none")


def _check_second_stage(values: dict[str, Any], given: dict[str, ConfigValue]) -> None:
    if values["STAGE2.METHOD"] == "tau_norm" and values["STAGE2.TAU"] < 0 and values["TRAIN.EVAL_SPLIT"] != "val":
        key = "STAGE2.METHOD"
        raise InputError(f"{given[key].at(key)}: tau is chosen on the val part, and TRAIN.EVAL_SPLIT is "
                         f"{values['TRAIN.EVAL_SPLIT']}: give STAGE2.TAU")  # fmt: skip
    if "STAGE2.FREEZE_BN" in given and values["STAGE2.METHOD"] == "none" and not values["STAGE2.FREEZE_BN"]:
        raise InputError(f"{given['STAGE2.FREEZE_BN'].at('STAGE2.FREEZE_BN')} has no effect: STAGE2.METHOD is none")


def _check_batch(values: dict[str, Any], start: str) -> None:
    """The number of processes is NUM_PROCS or NUM_GPUS; which, on DEVICE auto, only the machine knows: both must do."""
    device, size, parts = values["DEVICE"], values["TRAIN.BATCH_SIZE"], values["TRAIN.ACCUM_STEPS"]
    by_device = {"cpu": ("NUM_PROCS",), "cuda": ("NUM_GPUS",), "mps": (), "auto": ("NUM_PROCS", "NUM_GPUS")}
    for key, processes in [("", 1), *((key, values[key]) for key in by_device[device])]:
        if size % (processes * parts):
            factors = [f"{key} {processes}"] * (processes > 1) + [f"TRAIN.ACCUM_STEPS {parts}"] * (parts > 1)
            unit = processes * parts
            near = " or ".join(str(n) for n in (size // unit * unit, -(-size // unit) * unit) if n)
            raise InputError(f"{start}: {size} cannot be divided by {' x '.join(factors)}; {near} can")


def _check_job(values: dict[str, Any], start: Callable[[str], str]) -> None:
    """A job's processes fill whole machines, and sbatch would not say whose mistake an option of its is."""
    mode, at_most = values["LAUNCH.MODE"], values["MAX_GPUS_PER_NODE"]
    if values["DEVICE"] == "mps":
        raise InputError(f"{start('LAUNCH.MODE')}: a run on mps is a run of one process on this machine, no {mode} job")
    key = "NUM_PROCS" if values["DEVICE"] == "cpu" else "NUM_GPUS"
    count = values[key]
    if count > at_most and mode == "submitit_local":
        raise InputError(f"{start(key)}: {count} processes on one machine, but MAX_GPUS_PER_NODE is {at_most}")
    if count > at_most and count % at_most:
        raise InputError(f"{start(key)}: {count} processes do not fill machines of MAX_GPUS_PER_NODE {at_most}; "
                         f"{count // at_most * at_most} or {-(-count // at_most) * at_most} do")  # fmt: skip
    for line in values["LAUNCH.SBATCH"]:
        if not re.fullmatch(r"--[a-z][a-z0-9-]+(=.+)?", line):
            raise InputError(f"{start('LAUNCH.SBATCH')}: expected options such as --reservation=night, found {line!r}")
    if values["LAUNCH.SIGNAL_DELAY"] >= 60 * values["LAUNCH.TIME_LIMIT"]:
        raise InputError(f"{start('LAUNCH.SIGNAL_DELAY')}: {values['LAUNCH.SIGNAL_DELAY']} s before the end is before the "
                         f"start: LAUNCH.TIME_LIMIT is {values['LAUNCH.TIME_LIMIT']} min")  # fmt: skip
