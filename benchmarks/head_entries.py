"""The heads that ``heads.py`` measures: every head, the linear head, those of pytorch-metric-learning; and the sizes."""

import argparse
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from common import Job
from torch import Tensor, nn

import pycls
from pycls.registry import CRITERIA, HEADS, SIMILARITIES


@dataclass(frozen=True)
class Size:
    """N samples of D features, K classes, and the goals there: of time, of the time of single entries, of memory."""

    n: int
    d: int
    k: int
    goal: float | None = None
    own_goals: dict[str, float | None] = field(default_factory=dict)
    memory_goal: float | None = None

    def times(self, features: int, classes: int) -> "Size":
        """A multiple of D and K."""
        return Size(self.n, features * self.d, classes * self.k)


SLOWER: dict[str, float | None] = {
    "center": 1.45, "ring": 1.45, "lws": 1.45, "lgm, diagonal": 1.45, "softmax, label smoothing": 1.3, "softmax, focal": 1.3,
    "smooth_topk": 1.6, "hard_topk": None,
}  # fmt: skip
"""Goals at a thousand classes of what is more than one cross entropy."""

SIZES = {
    "small": Size(128, 512, 1000, goal=1.25, own_goals=SLOWER),
    "wide": Size(32, 2048, 1000),
    "many": Size(64, 512, 200_000, goal=1.2, memory_goal=1.05),
    "tiny": Size(256, 500, 10),
    "million": Size(64, 512, 1_000_000),
    "gpu-small": Size(256, 2048, 1000, goal=1.15),
    "gpu-100k": Size(1024, 512, 100_000, goal=1.15),
    "gpu-1m": Size(1024, 512, 1_000_000, goal=1.15, memory_goal=1.0),
}
QUICK = Size(4, 8, 12, goal=1.25, own_goals=SLOWER)


@dataclass(frozen=True)
class Entry:
    """Something that has a loss.

    Attributes:
        make: (size, device) -> module that gives the loss of features and labels.
        beside: multiples of D and K of the plain head that it is compared with.
        peer_of: the head that it is a peer of; empty for a head of ours, for which the goals are.
    """

    make: Callable[[Size, str], nn.Module]
    beside: tuple[int, int] = (1, 1)
    peer_of: str = ""


class Plain(nn.Module):
    """nn.Linear and F.cross_entropy."""

    def __init__(self, size: Size, device: str) -> None:
        super().__init__()
        self.linear = nn.Linear(size.d, size.k, device=device)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.linear(x), y)


class Ours(nn.Module):
    """A head of pycls by its name, with its defaults."""

    def __init__(self, name: str, size: Size, device: str, options: dict[str, Any]) -> None:
        super().__init__()
        if "class_counts" in inspect.signature(HEADS.get(name)).parameters:
            options = {**options, "class_counts": torch.arange(1, size.k + 1)}
        self.head = pycls.create_head(name, in_features=size.d, num_classes=size.k, **options).to(device)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        loss = self.head(x, y).loss
        assert loss is not None
        return loss


class WithCriterion(nn.Module):
    """The linear head with another criterion."""

    def __init__(self, size: Size, device: str, name: str, **options: Any) -> None:
        super().__init__()
        similarity = SIMILARITIES.get("linear")(in_features=size.d, num_classes=size.k)
        self.head = pycls.heads.Head(similarity, None, CRITERIA.get(name)(**options)).to(device)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        loss = self.head(x, y).loss
        assert loss is not None
        return loss


class LinearCrossEntropy(Plain):
    """torch's own chunked linear layer with cross entropy, from torch 2.13 on."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        function: Any = F.linear_cross_entropy  # type: ignore[attr-defined]
        options = torch.nn.LinearCrossEntropyOptions()  # type: ignore[attr-defined]
        loss: Tensor = function(x, self.linear.weight, y, linear_bias=self.linear.bias, options=options)
        return loss


class ArcFaceFormula(nn.Module):
    """ArcFace as its formula says it, under torch.compile."""

    def __init__(self, size: Size, device: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size.k, size.d, device=device) / size.d**0.5)
        self.compiled = torch.compile(self.formula)

    def formula(self, x: Tensor, y: Tensor) -> Tensor:
        cos = F.linear(F.normalize(x), F.normalize(self.weight))
        own = cos.gather(1, y[:, None])
        sine = (1 - own.square()).clamp(min=1e-7).sqrt()
        turned = own * math.cos(0.5) - sine * math.sin(0.5)
        turned = torch.where(own > math.cos(math.pi - 0.5), turned, own - 0.5 * math.sin(0.5))
        return F.cross_entropy(64 * cos.scatter(1, y[:, None], turned), y)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        loss: Tensor = self.compiled(x, y)
        return loss


def entries(with_peers: bool = True) -> dict[str, Entry]:
    """All there is to measure, by name; a peer right after its head."""
    peers = {**_metric_learning(), **_torch_itself()} if with_peers else {}
    found: dict[str, Entry] = {}
    for name in pycls.list_heads():
        centers = 3 if name == "subcenter_arcface" else 1
        found[name] = _ours(name, (1, centers))
        if name == "lgm":
            found["lgm, diagonal"] = _ours(name, (2, 1), covariance="diagonal")
        if name == "softmax":
            found["softmax, label smoothing"] = Entry(
                lambda size, device: WithCriterion(size, device, "cross_entropy", label_smoothing=0.1)
            )
            found["softmax, focal"] = Entry(lambda size, device: WithCriterion(size, device, "focal"))
        found.update({title: entry for title, entry in peers.items() if entry.peer_of == name})
    return found


def _ours(name: str, beside: tuple[int, int], **options: Any) -> Entry:
    return Entry(lambda size, device: Ours(name, size, device, options), beside)


def _metric_learning() -> dict[str, Entry]:
    """pytorch-metric-learning's losses; none if it is not installed."""
    try:
        from pytorch_metric_learning import losses
    except ImportError:
        return {}
    kinds = {"arcface": losses.ArcFaceLoss, "cosface": losses.CosFaceLoss, "sphereface": losses.SphereFaceLoss,
             "lsoftmax": losses.LargeMarginSoftmaxLoss, "normface": losses.NormalizedSoftmaxLoss}  # fmt: skip

    def entry(name: str, kind: Any) -> Entry:
        return Entry(lambda size, device: kind(num_classes=size.k, embedding_size=size.d).to(device), peer_of=name)

    return {f"  pytorch-metric-learning's {name}": entry(name, kind) for name, kind in kinds.items()}


def _torch_itself() -> dict[str, Entry]:
    """What torch itself makes of a head."""
    found = {"  arcface's formula, torch.compile": Entry(ArcFaceFormula, peer_of="arcface")}
    if hasattr(F, "linear_cross_entropy"):
        found["  F.linear_cross_entropy"] = Entry(LinearCrossEntropy, peer_of="softmax")
    return found


@dataclass
class Problem:
    """Features, labels and a module at a size, ready to be called."""

    module: nn.Module
    size: Size
    device: str
    autocast: torch.dtype | None
    x: Tensor = field(init=False)
    y: Tensor = field(init=False)
    leaves: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(self.size.n, self.size.d, generator=generator).to(self.device)
        if self.autocast is not None:
            self.x = self.x.to(self.autocast)  # what a backbone gives in mixed precision
        self.leaves = [self.x.requires_grad_(), *self.module.parameters()]
        self.y = torch.randint(0, self.size.k, (self.size.n,), generator=generator).to(self.device)

    def call(self) -> None:
        """Forward and backward."""
        for leaf in self.leaves:
            leaf.grad = None
        with torch.autocast(self.device, dtype=self.autocast, enabled=self.autocast is not None):
            loss = self.module(self.x, self.y)
        loss.backward()

    @property
    def bytes(self) -> int:
        """Of features and weights."""
        return sum(t.numel() * t.element_size() for t in (self.x, self.y, *self.module.parameters()))


def autocast_of(arguments: argparse.Namespace) -> torch.dtype | None:
    return torch.bfloat16 if arguments.dtype == "bf16" else None


def matrix_products(size: Size, device: str, dtype: torch.dtype) -> Job:
    """The products x W^T, G W and G^T x, into memory that is there."""
    x, weight, grad = (torch.randn(shape, device=device, dtype=dtype)
                       for shape in ((size.n, size.d), (size.k, size.d), (size.n, size.k)))  # fmt: skip
    out = [torch.empty_like(t) for t in (grad, x, weight)]

    def job() -> None:
        torch.mm(x, weight.t(), out=out[0])
        torch.mm(grad, weight, out=out[1])
        torch.mm(grad.t(), x, out=out[2])

    return job


def plain_name(beside: tuple[int, int]) -> str:
    """Of the plain head of such multiples."""
    features, classes = beside
    return "linear" + (f", {features} D" if features > 1 else "") + (f", {classes} K" if classes > 1 else "")


def _plain_entry(multiples: tuple[int, int]) -> Entry:
    """The plain head of a multiple of D and K; in the memory table it makes its own features."""
    return Entry(lambda size, device: _Widened(size, multiples, device), peer_of="softmax")


class _Widened(Plain):
    """The plain head of a multiple of D and K, on features [N, D] repeated."""

    def __init__(self, size: Size, multiples: tuple[int, int], device: str) -> None:
        super().__init__(size.times(*multiples), device)
        self.multiple = multiples[0]

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return super().forward(x if self.multiple == 1 else x.repeat(1, self.multiple), y)


PLAINS = {plain_name(multiples): _plain_entry(multiples) for multiples in ((1, 1), (2, 1), (1, 3))}


def one(name: str) -> Entry:
    """The entry or the plain head of this name."""
    return {**PLAINS, **entries(with_peers=name.startswith(" "))}[name]
