"""Finite differences of whole heads, in float64."""

import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.func import functional_call

from pycls.heads import Head

D, K, N = 4, 5, 6


def batch() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(N, D, generator=draw, dtype=torch.float64), torch.tensor([0, 3, 1, 4, 2, -1])


def randomised(head: Head) -> Head:
    """In float64, with parameters other than where they start."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in head.double().parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
    return head


def check_gradients(head: Head, what: str = "loss", labels=None) -> None:
    """By finite differences, of the features and of every parameter; all of them get one."""
    x, y = batch()
    names, values = zip(*head.named_parameters(), strict=True)
    leaves = [v.detach().clone().requires_grad_() for v in (x, *values)]

    def function(x: Tensor, *values: Tensor) -> Tensor:
        given = (x, y if labels is None else labels) if what == "loss" else (x,)
        return getattr(functional_call(head, dict(zip(names, values, strict=True)), given), what)

    assert gradcheck(function, leaves)
    for name, grad in zip(("features", *names), torch.autograd.grad(function(*leaves).sum(), leaves, allow_unused=True),
                          strict=True):  # fmt: skip
        assert grad is not None and grad.abs().max() > 0, name
