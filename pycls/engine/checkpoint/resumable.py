"""Whether a run can go on from a checkpoint: its entries, before anything is made of them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from pycls.engine.checkpoint.checkpoints import check_model_state
from pycls.engine.checkpoint.entries import (
    COUNTS,
    MAPPING,
    POSITIVE,
    SCALAR,
    TEXT,
    check,
    check_checkpoint,
    floats,
    from_to,
    is_number,
    no_others,
    require,
)
from pycls.engine.checkpoint.sharded import whole_shapes
from pycls.errors import InputError

_MEMORY: dict[type[torch.optim.Optimizer], tuple[str, ...]] = {
    torch.optim.SGD: ("momentum_buffer",), torch.optim.Adam: ("exp_avg", "exp_avg_sq", "step"),
    torch.optim.AdamW: ("exp_avg", "exp_avg_sq", "step"),
}  # fmt: skip
"""What an optimiser remembers of each parameter."""


def check_progress(state: Mapping[str, Any], source: str, has_ema: bool, epochs: int, steps: int) -> None:
    """Raises InputError unless a run of this configuration can be where the state says that it is.

    Args:
        state: a checkpoint's tree, as ``Trainer.state_dict`` makes it.
        source: its file, for the message.
        has_ema: whether there is a moving average.
        epochs: of the whole training.
        steps: of an epoch.
    """
    check_checkpoint(state, source)
    check(state, source, {"epoch": from_to(0, epochs), "config": TEXT})
    last = steps if state["epoch"] < epochs else 0
    check(state, source, {
        "start": (f"the steps done of epoch {state['epoch'] + 1}, {from_to(0, last)[0]}", from_to(0, last)[1]),
        "best_error": ("a number from 0, or null", lambda value: value is None or (is_number(value) and value >= 0)),
        "ema": ("a state dict: the run keeps a moving average" if has_ema else "a state dict or null",
                lambda value: value is not None or not has_ema),
        "history": (f"a list of one row for each of {state['epoch']} epochs", lambda value: len(value) == state["epoch"]),
        "optimizer": MAPPING, "scaler": MAPPING,
        "meter": ("a list of one row a process", lambda value: isinstance(value, list) and bool(value)),
    })  # fmt: skip


def check_tensors(
    state: Mapping[str, Any], source: str, model: nn.Module, has_ema: bool, optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> None:  # fmt: skip
    """Raises InputError unless the state, of which :func:`check_progress` has found nothing wrong, fits model and optimiser.

    Args:
        state: a checkpoint's tree.
        source: its file, for the message.
        model: of the run.
        has_ema: whether there is a moving average.
        optimizer: of the run.
        scaler: of the run.
    """
    for part in ("model", "ema") if has_ema else ("model",):
        check_model_state(model, state[part], source)
    _check_optimizer(state["optimizer"], source, model, optimizer)
    if scaler.is_enabled():
        check(state["scaler"], source, {"scale": POSITIVE, "growth_factor": POSITIVE, "backoff_factor": POSITIVE,
                                       "growth_interval": from_to(1), "_growth_tracker": from_to(0)}, "scaler")  # fmt: skip
    for k, row in enumerate(state["meter"]):
        place = f"meter/{k}"
        require(row, source, place, MAPPING)
        check(row, source, {"sums": MAPPING, "counts": COUNTS}, place)
        check(row["sums"], source, dict.fromkeys(state["meter"][0]["sums"], SCALAR), f"{place}/sums")
        no_others(row["sums"], source, state["meter"][0]["sums"], f"{place}/sums")


def _check_optimizer(state: Mapping[str, Any], source: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Every trained parameter has its entry, null if it has had no gradient yet, and no other has one."""
    shapes = whole_shapes(model)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    memory = _MEMORY[type(optimizer)]
    if isinstance(optimizer, torch.optim.SGD) and not any(group["momentum"] for group in optimizer.param_groups):
        memory, trained = (), [name for name in trained if state.get(name) is not None]
    for name in trained:
        place = f"optimizer/{name}"
        if name not in state:
            raise InputError(f"{source} lacks the entry {place}")
        if state[name] is None:
            continue
        require(state[name], source, place, MAPPING)
        check(state[name], source, {key: floats(() if key == "step" else shapes[name]) for key in memory}, place)
        no_others(state[name], source, memory, place)
    no_others({name: entry for name, entry in state.items() if entry is not None}, source, trained, "optimizer")
