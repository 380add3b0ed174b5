"""Heads and batches to certify, and the comparison of a head with its reference."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from references import REFERENCES, Labels, evaluate
from torch import Tensor

import pycls

SCHEDULE = {"lambda_gamma": 0.12, "lambda_power": 1.0, "lambda_min": 5.0}
FLAT = {"lambda_base": 0.0, "lambda_gamma": 0.0, "lambda_power": 1.0, "lambda_min": 0.0}
ANNEALED = {"lambda_base": 1000.0, "lambda_gamma": 2e-5, "lambda_power": 45.0, "lambda_min": 0.0}

CASES: dict[str, list[dict[str, Any]]] = {
    "softmax": [{"bias": True}, {"bias": False}],
    "lws": [{}],
    "normface": [{"scale": 10.0}],
    "cosloss": [{}],
    "coco": [{"alpha": 6.25}],
    "lsoftmax": [{"margin": m, **FLAT} for m in (1, 2, 3, 4)] + [{"margin": 4, **ANNEALED}],
    "sphereface": [{"margin": m, **FLAT} for m in (1, 2, 3, 4)] + [{"margin": 4, "lambda_base": 1000.0, **SCHEDULE}],
    "cosface": [{"scale": 64.0, "margin": 0.35}, {"scale": 7.0, "margin": 0.2}],
    "arcface": [
        {"scale": 64.0, "margin": 0.5, "easy_margin": False},
        {"scale": 16.0, "margin": 0.5, "easy_margin": True},
        {"scale": 8.0, "margin": 1.3, "easy_margin": False},
    ],
    "combined": [
        {"scale": 64.0, "m1": 1.0, "m2": 0.3, "m3": 0.2},
        {"scale": 8.0, "m1": 1.0, "m2": 0.0, "m3": 0.0},
        {"scale": 8.0, "m1": 1.35, "m2": 0.2, "m3": 0.1},
    ],
    "subcenter_arcface": [
        {"scale": 64.0, "margin": 0.5, "num_centers": 3},
        {"scale": 10.0, "margin": 0.2, "num_centers": 1},
    ],
    "rbf_softmax": [{"scale": 35.0, "gamma": 16.0}, {"scale": 5.0, "gamma": 2.0}],
    "tvmf": [{"kappa": kappa} for kappa in (-0.3, 0.0, 4.0, 16.0, 64.0)],
    "lgm": [
        {"alpha": 0.1, "likelihood_weight": 0.1, "covariance": "identity"},
        {"alpha": 1.0, "likelihood_weight": 0.01, "covariance": "diagonal"},
        {"alpha": 0.0, "likelihood_weight": 0.0, "covariance": "identity"},
    ],
    "center": [{"weight": 0.003, "center_rate": 0.5}, {"weight": 1.0, "center_rate": 0.0}],
    "ring": [{"weight": 0.3, "variant": variant} for variant in ("l2", "l1", "relative")],
    "smooth_topk": [
        {"k": 5, "tau": 1.0, "alpha": 1.0},
        {"k": 1, "tau": 0.5, "alpha": 0.3},
        {"k": 2, "tau": 0.1, "alpha": 1.0},
    ],
    "hard_topk": [{"k": 5, "alpha": 1.0}, {"k": 1, "alpha": 0.5}, {"k": 2, "alpha": 1.0}],
    "ldam": [{"max_margin": 0.5, "scale": 30.0}],
    "logit_adjustment": [{"tau": 1.0}, {"tau": 0.5}],
    "balanced_softmax": [{}],
}
"""The options each head is certified with; class counts and a k within the classes are added by :func:`options_of`."""

ANGULAR = {"lsoftmax", "sphereface", "arcface", "combined", "subcenter_arcface"}
"""Heads with a margin on the angle, without a gradient at theta = 0 and pi, which are the only angles at D = 1."""


@dataclass
class Batch:
    """Features [N, D] and labels as the head takes them."""

    features: Tensor
    labels: Tensor | tuple[Tensor, Tensor, Any]

    @property
    def for_reference(self) -> Labels:
        """The labels as the references take them."""
        if isinstance(self.labels, Tensor):
            return self.labels.tolist()
        first, second, lam = self.labels
        return first.tolist(), second.tolist(), lam.tolist() if isinstance(lam, Tensor) else lam


def cases() -> list[tuple[str, int]]:
    """(name, number of its case) for every entry in the registry that has a reference."""
    return [(name, i) for name in pycls.list_heads() for i in range(len(CASES.get(name, ())))]


def options_of(name: str, case: int, num_classes: int) -> dict[str, Any]:
    """All options of a case, for so many classes."""
    options = dict(CASES[name][case])
    if name in ("ldam", "logit_adjustment", "balanced_softmax"):
        options["class_counts"] = [int(500 * 0.97**j) + 1 for j in range(num_classes)]
    if "k" in options:
        options["k"] = min(options["k"], max(num_classes - 1, 1))
    return options


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def matrices(head: torch.nn.Module) -> dict[str, Tensor | None]:
    """The parameters that belong to the classes, by the names the references know them by."""
    similarity = head.similarity
    return {name: getattr(similarity, name, None) for name in ("weight", "bias", "log_variance", "factor")}


def scalar_parameter(head: torch.nn.Module, name: str) -> Tensor | None:
    """The head's learned scalar: its one parameter that is none of the matrices and vectors of the contract."""
    if REFERENCES[name].scalar is None:
        return None
    known = matrices(head).values()
    rest = [p for p in head.parameters() if all(p is not k for k in known)]
    assert len(rest) == 1 and rest[0].numel() == 1, f"{name} should have one learned scalar, not {len(rest)}"
    return rest[0]


def learned(head: torch.nn.Module, name: str) -> dict[str, Tensor]:
    """Every parameter of the head, by the name the references know it by."""
    found = matrices(head)
    scalar = scalar_parameter(head, name)
    if scalar is not None:
        found[REFERENCES[name].scalar] = scalar
    result = {key: value for key, value in found.items() if isinstance(value, torch.nn.Parameter)}
    extra = [key for key, p in head.named_parameters() if all(p is not q for q in result.values())]
    assert not extra, f"{name} has parameters that its reference does not know: {extra}"
    return result


def feature_scale(name: str, options: dict[str, Any], dim: int) -> float:
    """Standard deviation of features and prototypes that puts squared distances where the head's kernel is not flat."""
    if name == "rbf_softmax":
        return math.sqrt(options["gamma"] / (2 * dim))
    return math.sqrt(2 / dim) if name == "lgm" else 1.0


def make_head(
    name: str, dim: int, num_classes: int, options: dict[str, Any], dtype: torch.dtype, seed: int
) -> torch.nn.Module:
    """A head with random parameters and centres, as after some training."""
    head = pycls.create_head(name, in_features=dim, num_classes=num_classes, **options).to(dtype)
    draw, scale = generator(seed), feature_scale(name, options, dim)
    with torch.no_grad():
        for key, value in learned(head, name).items():
            noise = torch.randn(value.shape, generator=draw, dtype=torch.float64)
            if key == "weight":
                value.copy_(noise * (scale if name in ("rbf_softmax", "lgm") else 1 / math.sqrt(dim)))
            elif key in ("scale", "radius", "factor"):
                value.add_(0.3 * noise.to(dtype))
            else:
                value.copy_(0.3 * noise)
        if name == "center":
            head.centers.copy_(torch.randn(head.centers.shape, generator=draw, dtype=torch.float64))
    return head


def set_radius(head: torch.nn.Module, value: float) -> None:
    """Gives the ring loss a radius that is not the first batch's mean norm any more."""
    radius = scalar_parameter(head, "ring")
    assert radius is not None
    with torch.no_grad():
        radius.fill_(value)


def make_batch(
    name: str, head: torch.nn.Module, options: dict[str, Any], size: int, seed: int, kind: str = "labels"
) -> Batch:
    """Features at all angles to their prototypes, with labels, labels partly -1, or a mixture (one lam or N)."""
    draw, weight = generator(1000 + seed), head.weight.detach().double()
    per_class = options.get("num_centers", 1)
    num_classes, dim = len(weight) // per_class, weight.shape[1]
    labels = torch.randint(num_classes, (size,), generator=draw)
    noise = torch.randn(size, dim, generator=draw, dtype=torch.float64) * feature_scale(name, options, dim)
    own = weight[labels * per_class] / weight[labels * per_class].norm(dim=1, keepdim=True)
    if options.get("m1", 1.0) != 1.0:
        features = own * noise.norm(dim=1, keepdim=True) + 0.3 * noise
        second = labels.clone()
    else:
        toward = torch.empty(size, 1, dtype=torch.float64).uniform_(-1.5, 1.5, generator=draw)
        reach = 0.5 if name in ("rbf_softmax", "lgm") else 1.0
        features = noise + reach * toward * own * noise.norm(dim=1, keepdim=True)
        second = torch.randint(num_classes, (size,), generator=draw)
    if kind == "missing":
        labels[::3] = -1
    features = features.to(head.weight.dtype)
    if kind == "mixture":
        return Batch(features, (labels, second, 0.3))
    if kind == "mixtures":
        return Batch(features, (labels, second, torch.rand(size, generator=draw, dtype=head.weight.dtype)))
    return Batch(features, labels)


def relative_error(got: Tensor, expected: Tensor, floor: float) -> float:
    """Largest difference over the largest expected value (or ``floor``, where everything is nearly 0)."""
    assert got.shape == expected.shape, f"shape {tuple(got.shape)} instead of {tuple(expected.shape)}"
    if got.numel() == 0:
        return 0.0
    assert bool(torch.isfinite(got).all()), "not finite"
    return float((got.double() - expected).abs().max() / expected.abs().max().clamp(min=floor))


def certify(
    name: str,
    head: torch.nn.Module,
    batch: Batch,
    options: dict[str, Any],
    step: int = 0,
    gradients: bool = True,
    floor: float = 1e-6,
) -> dict[str, float]:
    """Runs head and reference on a batch: the relative error of the loss, the logits and every gradient."""
    tensors = learned(head, name)
    exact: dict[str, Tensor] = {key: value.detach().double().requires_grad_() for key, value in tensors.items()}
    leaves: dict[str, Tensor] = dict(exact)
    if name == "center":
        exact["centers"] = head.centers.detach().double().clone()
    exact = {k: v.reshape(()) if k in ("scale", "radius") else v for k, v in exact.items()}
    x = batch.features.detach().double().requires_grad_()
    expected = evaluate(name, x, batch.for_reference, exact, options, head.training, step)

    features = batch.features.detach().clone().requires_grad_()
    head.zero_grad()
    output = head(features, batch.labels)
    errors = {
        "loss": relative_error(output.loss.detach(), expected.loss.detach(), floor),
        "logits": relative_error(output.logits.detach(), expected.logits.detach(), floor),
    }
    total = sum(term.detach().double() for term in output.terms.values())
    errors["terms"] = abs(float(total - output.loss.detach())) / max(abs(float(output.loss.detach())), floor)
    if gradients:
        output.loss.backward()
        wanted = gradients_of(expected.loss, [x, *leaves.values()])
        errors["d features"] = relative_error(gradient(features), wanted[0], floor)
        for (key, value), reference in zip(tensors.items(), wanted[1:], strict=True):
            errors[f"d {key}"] = relative_error(gradient(value), reference, floor)
    return errors


def gradient(tensor: Tensor) -> Tensor:
    """A tensor's gradient, 0 where none came."""
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad


def gradients_of(loss: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    """The reference's gradients, 0 for what the loss does not depend on."""
    if not loss.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, found, strict=True)]


def too_large(errors: dict[str, float], tolerance: float) -> dict[str, float]:
    """The errors above the tolerance (or not a number)."""
    return {key: value for key, value in errors.items() if not value <= tolerance}
