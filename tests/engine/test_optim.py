"""Schedules against pycls's formulas; who gets which weight decay and learning rate."""

import math

import pytest
import torch
from torch import nn

from pycls.engine.checkpoint.checkpoints import load_optimizer_state, optimizer_state
from pycls.engine.optim import Decay, Schedule, make_optimizer, parameter_groups, set_lr


def by_pycls(policy: str, epoch: float, base: float, end: int, low: float, warmup: float, start: float) -> float:
    """pycls/core/optimizer.py, restated: the policy's factor, then the warm-up's."""
    if policy == "steps":
        factor = 0.1 ** max(i for i, step in enumerate([0, 3, 6]) if epoch >= step)
    elif policy == "exp":
        factor = low ** (epoch / end)
    else:
        falling = (1 + math.cos(math.pi * epoch / end)) / 2 if policy == "cos" else 1 - epoch / end
        factor = low + (1 - low) * falling
    ramp = start + (1 - start) * epoch / warmup if epoch < warmup else 1.0
    return base * factor * ramp


@pytest.mark.parametrize("policy", ["cos", "lin", "exp", "steps"])
@pytest.mark.parametrize("steps", [[0, 3, 6], [3, 6]])
def test_schedules_are_pyclss(policy: str, steps: list[int]) -> None:
    schedule = Schedule(0.4, 10, policy, steps=steps, lr_mult=0.1, min_lr=0.02, warmup_epochs=2.5, warmup_factor=0.3)
    for k in range(101):
        wanted = by_pycls(policy, k / 10, 0.4, 10, 0.02, 2.5, 0.3)
        assert schedule(k / 10) == pytest.approx(wanted, rel=1e-12), (policy, k)


def test_ends_of_a_schedule() -> None:
    assert Schedule(0.1, 5)(0) == 0.1 and Schedule(0.1, 5)(5) == pytest.approx(0, abs=1e-17)
    assert Schedule(0.1, 5, "exp", exp_rate=0.01)(5) == pytest.approx(0.001)
    assert Schedule(0.1, 0)(0) == 0.1, "no epoch at all"
    with pytest.raises(ValueError, match="'cosine'"):
        Schedule(0.1, 5, "cosine")(0)


def model() -> nn.Module:
    net = nn.Module()
    net.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))
    net.head = nn.Module()
    net.head.similarity = nn.Linear(3, 5)
    net.head.scale = nn.Parameter(torch.tensor(3.0))
    net.head.fixed = nn.Parameter(torch.tensor(1.0), requires_grad=False)
    net.header = nn.Linear(1, 1)  # not the head
    return net


def groups_by_name(net: nn.Module, decay: Decay) -> dict[str, tuple[float, float]]:
    names = {parameter: name for name, parameter in net.named_parameters()}
    return {names[p]: (g["weight_decay"], g["lr_mult"]) for g in parameter_groups(net, decay) for p in g["params"]}  # type: ignore


def test_groups_by_default_are_one() -> None:
    net = model()
    assert len(parameter_groups(net, Decay(5e-4))) == 1
    found = groups_by_name(net, Decay(5e-4))
    assert set(found) == {name for name, p in net.named_parameters() if p.requires_grad}
    assert set(found.values()) == {(5e-4, 1.0)}


def test_batch_norm_and_head_have_their_own() -> None:
    found = groups_by_name(model(), Decay(5e-4, norm=0.0, head=0.1, head_lr_mult=10.0))
    assert found.pop("body.1.weight") == found.pop("body.1.bias") == (0.0, 1.0)
    assert {found.pop(f"head.{name}") for name in ("scale", "similarity.weight", "similarity.bias")} == {(0.1, 10.0)}
    assert set(found.values()) == {(5e-4, 1.0)} and "header.weight" in found
    assert groups_by_name(model(), Decay(5e-4, head=0.0))["head.scale"] == (0.0, 1.0), "0 is not 'as the others'"


@pytest.mark.parametrize(
    ("decay", "wanted"),
    [
        (Decay(0.1, norm=0.2), {"1.weight": 0.2, "1.bias": 0.2, "4.weight": 0.2, "4.bias": 0.2}),
        (Decay(0.1, layer_norm=0.0), {"2.weight": 0.0, "2.bias": 0.0}),
        (Decay(0.1, bias=0.3), {"0.bias": 0.3, "3.in_proj_bias": 0.3, "3.out_proj.bias": 0.3, "head.bias": 0.3}),
        (Decay(0.1, bias=0.3, head=0.4),
         {"0.bias": 0.3, "3.in_proj_bias": 0.3, "3.out_proj.bias": 0.3, "head.bias": 0.4, "head.weight": 0.4}),
    ],
)  # fmt: skip
def test_weight_decay_by_kind_as_in_pycls(decay: Decay, wanted: dict[str, float]) -> None:
    """pycls tells them by "bn", "ln" and "bias" in their names; biases of norms are the norms'."""
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.LayerNorm(2), nn.MultiheadAttention(2, 1), nn.GroupNorm(1, 2))
    net.add_module("head", nn.Linear(2, 2))
    found = {name: wd for name, (wd, _) in groups_by_name(net, decay).items()}
    assert found == {name: wanted.get(name, 0.1) for name, _ in net.named_parameters()}


def test_learning_rates_keep_their_ratio() -> None:
    optimizer = make_optimizer(parameter_groups(model(), Decay(0.0, head_lr_mult=10.0)), "sgd")
    set_lr(optimizer, 0.3)
    assert sorted(group["lr"] for group in optimizer.param_groups) == pytest.approx([0.3, 3.0])


def test_names() -> None:
    parameters = parameter_groups(model(), Decay(0.0))
    kinds = {name: type(make_optimizer(parameters, name)) for name in ("sgd", "adam", "adamw")}
    assert kinds == {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    with pytest.raises(ValueError, match="'lamb'"):
        make_optimizer(parameters, "lamb")


def steps(net: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for k in range(first, last):
        set_lr(optimizer, 0.1 / (k + 1))
        generator = torch.Generator().manual_seed(k)
        for parameter in net.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator) if parameter.requires_grad else None
        optimizer.step()


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_optimizer_state_comes_back(name: str, momentum: float) -> None:
    torch.manual_seed(0)
    straight = model()
    resumed = model()
    resumed.load_state_dict(straight.state_dict())
    first, second = (make_optimizer(parameter_groups(net, Decay(1e-3, head=0.0)), name, momentum=momentum)
                     for net in (straight, resumed))  # fmt: skip
    steps(straight, first, 0, 6)
    steps(resumed, second, 0, 3)
    state, third = optimizer_state(resumed, second), None
    copied = model()
    copied.load_state_dict(resumed.state_dict())
    copied = copied.to(memory_format=torch.channels_last)
    third = make_optimizer(parameter_groups(copied, Decay(1e-3, head=0.0)), name, momentum=momentum)
    load_optimizer_state(copied, third, state)
    steps(copied, third, 3, 6)
    for ours, theirs in zip(copied.parameters(), straight.parameters(), strict=True):
        assert torch.equal(ours, theirs)
