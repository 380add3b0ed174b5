"""Checkpoints of Adam, a moving average and float16, whose entries are looked at before a run goes on from them."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from pycls.engine.checkpoint.checkpoints import optimizer_state
from pycls.engine.checkpoint.resumable import check_progress, check_tensors
from pycls.errors import InputError

SCALER = {"scale": 65536.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2000, "_growth_tracker": 3}


class Scaler:
    """As of float16, which only a GPU has."""

    def is_enabled(self) -> bool:
        return True


def check_resumable(state: dict[str, Any], source: str, has_ema: bool, epochs: int, steps: int, **facts: Any) -> None:
    """Both checks, as resuming makes them."""
    check_progress(state, source, has_ema, epochs, steps)
    check_tensors(state, source, has_ema=has_ema, **facts)


def run(name: type[torch.optim.Optimizer] = torch.optim.Adam, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """(a state, what else ``check_resumable`` is told) of a net in which one parameter has had no gradient."""
    net = nn.ModuleDict({"a": nn.Linear(3, 2), "unused": nn.Linear(2, 1, bias=False)})
    net["a"].bias.requires_grad_(False)
    optimizer: Any = name([p for p in net.parameters() if p.requires_grad], lr=0.1, **options)
    net["a"](torch.ones(1, 3)).sum().backward()
    optimizer.step()
    sums = {"sums": {"loss": torch.tensor(1.0, dtype=torch.float64)}, "counts": torch.tensor([4, 1, 0])}
    state = {"model": net.state_dict(), "ema": net.state_dict(), "optimizer": optimizer_state(net, optimizer), "scaler": SCALER,
             "meter": [sums, copy.deepcopy(sums)], "epoch": 1, "start": 5, "best_error": 3.5, "config": "",
             "history": [{"epoch": 1, "train": {"loss": float("inf")}, "ema": {"top1_err": 3.5}}]}  # fmt: skip
    return state, {"model": net, "has_ema": True, "optimizer": optimizer, "scaler": Scaler(), "epochs": 2, "steps": 5}


def test_sound_ones() -> None:
    for state, facts in (run(), run(torch.optim.AdamW), run(torch.optim.SGD, momentum=0.9), run(torch.optim.SGD)):
        check_resumable(copy.deepcopy(state), "file", **facts)
    assert run()[0]["optimizer"].keys() == {"a.weight", "unused.weight"} and run()[0]["optimizer"]["unused.weight"] is None
    state, facts = run(torch.optim.SGD)
    check_resumable(state | {"optimizer": {}}, "file", **facts)  # nothing to be remembered
    state["epoch"], state["start"], state["history"] = 0, 0, []
    check_resumable(state | {"best_error": None}, "file", **facts)


@pytest.mark.parametrize(("change", "message"), [
    (lambda s: s["optimizer"]["a.weight"].pop("step"), "file lacks the entry optimizer/a.weight/step"),
    (lambda s: s["optimizer"]["a.weight"].update(step=torch.zeros(1)), "a.weight/step is a tensor .1.; it should be a number"),
    (lambda s: s["optimizer"]["a.weight"].update(exp_avg=torch.zeros(3, 2)), "tensor .3, 2.; it should be a tensor .2, 3."),
    (lambda s: s["ema"].update({"a.bias": torch.zeros(3)}), "file holds the weights of another model"),
    (lambda s: s["model"].pop("a.bias"), "file holds the weights of another model: 1 names or shapes differ .it lacks a.bias"),
    (lambda s: s["optimizer"].update({"a.bias": {"step": 1}}), "has the entry optimizer/a.bias, which is no part of this run"),
    (lambda s: s["optimizer"].pop("unused.weight"), "lacks the entry optimizer/unused.weight"),
    (lambda s: s.update(ema=None), "its entry ema is null; it should be a state dict: the run keeps a moving average"),
    (lambda s: s.update(start=6), "its entry start is 6; it should be the steps done of epoch 2, a whole number from 0 to 5"),
    (lambda s: s.update(scaler={}), "lacks the entry scaler/scale"),
    (lambda s: s.update(scaler=SCALER | {"scale": float("nan")}), "scaler/scale is nan; it should be a positive number"),
    (lambda s: s.update(scaler=SCALER | {"growth_interval": 0}), "scaler/growth_interval is 0"),
    (lambda s: s["meter"][1]["sums"].clear(), "lacks the entry meter/1/sums/loss"),
    (lambda s: s["meter"][1]["sums"].update(other=torch.tensor(1.0)), "has the entry meter/1/sums/other"),
    (lambda s: s["meter"].append(None), "its entry meter/2 is null; it should be a mapping"),
    (lambda s: s["history"][0].update(ema={"top1_err": None}), "history/0/ema/top1_err is null; it should be a number"),
    (lambda s: s["history"][0].update(train={"loss": "x"}), "history/0/train is a mapping of 1; it should be numbers by name"),
    (lambda s: s["ema"].update({"a.bias": [1, 2]}), "its entry ema/a.bias is a list of 2; it should be a tensor"),
    (lambda s: s.update({"class_names": ["a\nb", 1]}), "its entry class_names is a list of 2; it should be a list of strings"),
    (lambda s: s.update({"epoch": "1\n\x1b[2J"}), r"its entry epoch is '1\\n\\x1b\[2J'; it should be"),
])  # fmt: skip
def test_unsound_ones(change: Any, message: str) -> None:
    state, facts = run()
    state = copy.deepcopy(state)
    change(state)
    with pytest.raises(InputError, match=message.replace("(", r"\(")) as error:
        check_resumable(state, "file", **facts)
    assert str(error.value).isprintable()
