"""Optimisers, their parameter groups, and the learning rate as a function of the epoch."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from pycls.engine.checkpoint.sharded import is_dtensor


@dataclass(frozen=True)
class Schedule:
    """Learning rate at a fractional epoch, as in pycls but step by step.

    ``base_lr`` times a factor that goes from 1 down by the policy, times a linear warm-up.

    Attributes:
        base_lr: the top.
        max_epoch: the end, in epochs.
        policy: ``cos``, ``lin``, ``exp`` or ``steps``.
        exp_rate: where ``exp`` ends, as a multiple of base_lr, if ``min_lr`` is 0.
        steps: epochs at which ``steps`` multiplies by ``lr_mult``.
        lr_mult: that factor.
        min_lr: where ``cos``, ``lin`` and ``exp`` end, as a multiple of base_lr.
        warmup_epochs: length of the warm-up.
        warmup_factor: where the warm-up starts, as a multiple.
    """

    base_lr: float
    max_epoch: int
    policy: str = "cos"
    exp_rate: float = 0.1
    steps: Sequence[float] = ()
    lr_mult: float = 0.1
    min_lr: float = 0.0
    warmup_epochs: float = 0.0
    warmup_factor: float = 0.1

    def __call__(self, epoch: float) -> float:
        """The learning rate when ``epoch`` epochs (a fraction, too) have passed."""
        share = epoch / max(self.max_epoch, 1)
        if self.policy == "cos":
            factor = self.min_lr + (1 - self.min_lr) * 0.5 * (1 + math.cos(math.pi * share))
        elif self.policy == "lin":
            factor = self.min_lr + (1 - self.min_lr) * (1 - share)
        elif self.policy == "exp":
            factor = (self.min_lr or self.exp_rate) ** share
        elif self.policy == "steps":
            factor = self.lr_mult ** sum(epoch >= step for step in self.steps if step > 0)  # pycls's lists start with 0
        else:
            raise ValueError(f"no learning-rate policy is named {self.policy!r}")
        rate = self.base_lr * factor
        if epoch < self.warmup_epochs:
            done = epoch / self.warmup_epochs
            rate *= self.warmup_factor * (1 - done) + done
        return rate


@dataclass(frozen=True)
class Decay:
    """Weight decay and relative learning rate of each kind of parameter.

    Attributes:
        default: weight decay of all other parameters.
        norm: of batch and group norm's, or None for the default.
        layer_norm: of layer norm's, or None for the default.
        bias: of all other modules' biases, or None for the default.
        head: of the head's, whatever they are, or None for what they would have elsewhere.
        head_lr_mult: learning rate of the head's, as a multiple.
    """

    default: float
    norm: float | None = None
    layer_norm: float | None = None
    bias: float | None = None
    head: float | None = None
    head_lr_mult: float = 1.0

    def rate_of(self, module: nn.Module, name: str, in_head: bool) -> float:
        """The weight decay of the parameter ``name`` of ``module`` itself."""
        chosen = None
        if in_head and self.head is not None:
            chosen = self.head
        elif isinstance(module, nn.LayerNorm):
            chosen = self.layer_norm
        elif isinstance(module, NORMS):
            chosen = self.norm
        elif "bias" in name:
            chosen = self.bias
        return self.default if chosen is None else chosen


NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm)


def parameter_groups(model: nn.Module, decay: Decay, head: str = "head.") -> list[dict[str, object]]:
    """The trainable parameters, grouped by weight decay and learning-rate multiple (``lr_mult``)."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            in_head = f"{module_name}.{name}".startswith(head)
            key = (decay.rate_of(module, name, in_head), decay.head_lr_mult if in_head else 1.0)
            groups.setdefault(key, []).append(parameter)
    return [{"params": params, "weight_decay": wd, "lr_mult": mult} for (wd, mult), params in groups.items()]


def make_optimizer(
    groups: Iterable[dict[str, object]],
    name: str,
    *,
    momentum: float = 0.9,
    dampening: float = 0.0,
    nesterov: bool = True,
    betas: tuple[float, float] = (0.9, 0.999),
) -> torch.optim.Optimizer:
    """``sgd``, ``adam`` or ``adamw`` in its fused form where the device has one, else the foreach form.

    Parameters sharded by FSDP2 have the foreach form; beside others, which do not mix with them, the plain one.
    """
    groups = list(groups)
    parameters = [p for g in groups for p in g["params"]]  # type: ignore[attr-defined]
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
    shared = sum(is_dtensor(p) for p in parameters)
    form = {"fused": True} if fused and not shared else {"foreach": shared in (0, len(parameters))}
    if name == "sgd":
        nesterov = nesterov and momentum > 0 and dampening == 0
        return torch.optim.SGD(groups, lr=0.0, momentum=momentum, dampening=dampening, nesterov=nesterov, **form)
    if name in ("adam", "adamw"):
        kind = torch.optim.Adam if name == "adam" else torch.optim.AdamW
        return kind(groups, lr=0.0, betas=betas, **form)  # type: ignore[arg-type]
    raise ValueError(f"no optimiser is named {name!r}")


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Gives every group its multiple of ``lr``."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_mult"]
