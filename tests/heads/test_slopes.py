"""The derivatives that margins, criteria and transforms give by hand, and the node that chains them: by finite differences."""

import inspect
import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

import pycls
from pycls.heads.ops.loss import TargetStep, margin_softmax, moved_logit, transformed
from pycls.heads.ops.spec import LogitTransform
from pycls.heads.parts import Margin, SoftmaxCriterion, Target
from pycls.registry import CRITERIA, MARGINS, SIMILARITIES

K, N = 5, 6
COUNTS = torch.tensor([50, 20, 10, 4, 1])
LABELS = torch.tensor([0, 3, 1, 4, 2, 2])
WEIGHTS = [0.5, 2.0, 1.0, 3.0, 0.1]

MARGIN_OPTIONS = {
    "multi_angle": [{"margin": m, "lambda_base": base} for m in (1, 2, 3, 4) for base in (0.0, 5.0)],
    "additive_angle": [{"margin": 0.5}, {"margin": 1.3}, {"easy_margin": True}],
    "combined": [{"m2": 0.3, "m3": 0.2}, {"m1": 1.35, "m2": 0.2, "m3": 0.1}, {"m1": 3.0}],
}
CRITERION_OPTIONS = {
    "cross_entropy": [{}, {"label_smoothing": 0.1}, {"label_smoothing": 0.99}, {"class_weights": WEIGHTS},
                      {"class_weights": WEIGHTS, "label_smoothing": 0.2}],
    "class_balanced": [{"beta": 0.9}, {"beta": 0.9, "label_smoothing": 0.1}, {"beta": 0.9, "from_epoch": 1}],
    "focal": [{"gamma": 2.0}, {"gamma": 0.5}, {"gamma": 0.0}],
    "logit_adjustment": [{"tau": 0.7}, {"post_hoc": True}],
}  # fmt: skip
MARGINS_BY_CASE = [(name, options) for name in MARGINS.names() for options in MARGIN_OPTIONS.get(name, [{}])]
SOFTMAX = [name for name in CRITERIA.names()
           if inspect.isclass(CRITERIA.get(name)) and issubclass(CRITERIA.get(name), SoftmaxCriterion)]  # fmt: skip
CRITERIA_BY_CASE = [(name, options) for name in SOFTMAX for options in CRITERION_OPTIONS.get(name, [{}])]
SCALES: list[tuple[str, dict]] = [("linear", {}), ("tvmf", {"kappa": 4.0}), ("rbf", {"gamma": 2.0, "scale": 3.0})]
"""A similarity of each transform: of products or cosines, of cosines with a learned scale, of distances."""


def of(registry, name: str, options: dict):
    component = registry.get(name)
    wanted = inspect.signature(component).parameters
    given = {"in_features": 4, "num_classes": K, "class_counts": COUNTS}
    return component(**{key: value for key, value in given.items() if key in wanted}, **options).double()


def drawn(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def measured(domain: str, seed: int = 0) -> Tensor:
    """Cosines, away from the kinks of every margin here, or squared distances: [N]."""
    if domain == "distance":
        return (drawn(N, seed=seed).square() + 0.5).requires_grad_()
    return torch.tensor([-0.93, -0.6, -0.2, 0.1, 0.55, 0.9], dtype=torch.float64).roll(seed).requires_grad_()


@pytest.mark.parametrize(("name", "options"), MARGINS_BY_CASE, ids=str)
def test_slope_of_a_margin(name: str, options: dict) -> None:
    margin = of(MARGINS, name, options)
    assert margin.is_closed_form
    value = measured(margin.domain)
    moved, slope = margin.value_and_slope(value.detach(), LABELS, Target())
    result = margin(value, LABELS)
    assert torch.equal(result, moved) and moved.data_ptr() != value.data_ptr()
    (by_autograd,) = torch.autograd.grad(result.sum(), value)
    assert torch.equal(by_autograd, slope)
    assert gradcheck(lambda v: margin(v, LABELS), [value])


@pytest.mark.parametrize(("name", "options"), CRITERIA_BY_CASE, ids=str)
def test_slopes_of_a_criterion(name: str, options: dict) -> None:
    criterion = of(CRITERIA, name, options)
    assert criterion.is_closed_form
    for spread in (1.0, 8.0):
        vectors = [(spread * drawn(N, seed=seed)).requires_grad_() for seed in range(3)]
        total = vectors[2] if criterion.uses_total else None
        given = [value.detach() for value in vectors]
        kept = [value.clone() for value in given]
        value, *slopes = criterion.value_and_grads(*given[:2], None if total is None else given[2], LABELS, K)
        assert all(map(torch.equal, given, kept)), "arguments are not overwritten"
        assert (slopes[2] is None) == (total is None)
        losses = criterion(*vectors[:2], total, LABELS, K)
        assert torch.equal(losses, value)
        used = vectors if criterion.uses_total else vectors[:2]
        for ours, theirs in zip(slopes, torch.autograd.grad(losses.sum(), used), strict=False):
            assert torch.equal(ours, theirs)
        assert gradcheck(lambda t, o, s, c=criterion: c(t, o, s if c.uses_total else None, LABELS, K), vectors)


@pytest.mark.parametrize("name", ["cross_entropy", "class_balanced"])
def test_smoothed_and_weighted_it_is_the_formula(name: str) -> None:
    """Of all logits, by torch: the mean over the labels' weights is the head's matter."""
    criterion = of(CRITERIA, name, {"label_smoothing": 0.3})
    weights = torch.tensor(WEIGHTS, dtype=torch.float64)
    criterion.weights = weights
    logits = (3 * drawn(N, K)).requires_grad_()
    target = logits.gather(1, LABELS[:, None])[:, 0]
    others = logits.scatter(1, LABELS[:, None], -torch.inf).logsumexp(dim=1)
    ours = criterion(target, others, (logits * weights).sum(dim=1), LABELS, K) * weights[LABELS]
    theirs = torch.nn.functional.cross_entropy(logits, LABELS, weights, label_smoothing=0.3, reduction="none")
    torch.testing.assert_close(ours, theirs)
    for one, other in zip(torch.autograd.grad(ours.sum(), logits), torch.autograd.grad(theirs.sum(), logits), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", sorted({pycls.create_head(n, 4, K, **({"class_counts": COUNTS} if "class_counts" in
                                        inspect.signature(pycls.registry.HEADS.get(n)).parameters else {})).similarity.name
                                        for n in pycls.list_heads()}))  # fmt: skip
def test_slopes_of_a_transform(name: str) -> None:
    """And the score behind a logit, where cosines need it."""
    similarity = of(SIMILARITIES, name, {})
    transform, scale = similarity.spec.transform, similarity.logit_scale()
    score = measured("cosine")
    if scale is None:
        assert gradcheck(lambda u: transformed(u, None, transform), [score])
    else:
        given = scale.detach().double().requires_grad_()
        assert gradcheck(lambda u, s: transformed(u, s, transform), [score, given])
    with torch.no_grad():
        known = score.detach().clone()
        logits = transformed(known, scale, transform)
        assert torch.equal(known, score), "scores are not overwritten"
        if similarity.spec.kind == "cosine":
            torch.testing.assert_close(transform.score_of(logits.clone(), scale), known)


class Plain(Margin):
    """Some margin's formula by autograd alone."""

    def __init__(self, margin: Margin) -> None:
        super().__init__()
        self.inner, self.domain = margin, margin.domain  # type: ignore[misc]

    def forward(self, value: Tensor, labels: Tensor, target: Target | None = None) -> Tensor:
        return self.inner(value, labels, target)


class PlainCriterion(SoftmaxCriterion):
    """Some criterion's, likewise."""

    def __init__(self, criterion: SoftmaxCriterion) -> None:
        super().__init__()
        self.inner, self.uses_total = criterion, criterion.uses_total  # type: ignore[misc]

    def forward(self, *arguments) -> Tensor:
        return self.inner(*arguments)


@pytest.mark.parametrize("margin", [None, "additive_cosine", "multi_angle"])
@pytest.mark.parametrize("factor", ["number", "0-dim", "vector"])
@pytest.mark.parametrize(("similarity", "options"), SCALES, ids=str)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("warmup", [None, 0.4])
def test_one_node_is_the_chain_of_its_steps(margin, factor, similarity, options, smoothing, warmup) -> None:
    """Values and gradients by everything, with offsets, class weights and a part of the margin: by finite differences, and
    the same by autograd's own nodes."""
    criterion = of(CRITERIA, "cross_entropy", {"label_smoothing": smoothing, "class_weights": WEIGHTS})
    edge = None if margin is None else of(MARGINS, margin, {"lambda_base": 2.0} if margin == "multi_angle" else {})
    body = of(SIMILARITIES, similarity, options)
    scale = None if body.logit_scale() is None else body.logit_scale().detach().requires_grad_()
    share = drawn(N, seed=9).abs()
    strength = None if warmup is None or edge is None else torch.tensor(warmup, dtype=torch.float64)
    weights = torch.tensor(WEIGHTS, dtype=torch.float64)[LABELS] if smoothing else None

    def step(part) -> TargetStep:
        return TargetStep(part, body.spec.transform, Target(), LABELS, K, strength, share, 0.3 * drawn(N, seed=8), weights)

    score, others, total = measured("cosine", 2), drawn(N, seed=5).requires_grad_(), drawn(N, seed=6).requires_grad_()
    known = {"number": 1.7, "0-dim": torch.tensor(1.7, dtype=torch.float64).requires_grad_(),
             "vector": (1.2 + drawn(N, seed=7).square()).requires_grad_()}[factor]  # fmt: skip
    shift = (0.1 * drawn(N, seed=4)).requires_grad_() if factor == "vector" else 0.1
    total = total if smoothing else None
    inputs = [score, others, total, scale, known, shift]
    chosen = [k for k, value in enumerate(inputs) if isinstance(value, Tensor)]
    if edge is None:  # neither factor nor shift is used
        chosen = [k for k in chosen if k < 4]

    def loss(*values: Tensor, margin=edge, criterion=criterion) -> Tensor:
        given = list(inputs)
        for k, value in zip(chosen, values, strict=True):
            given[k] = value
        return margin_softmax(step(margin), criterion, *given)

    leaves = [inputs[k] for k in chosen]
    assert gradcheck(loss, leaves)
    value = loss(*leaves)
    assert type(value.grad_fn).__name__.startswith("MarginSoftmax")
    ours = torch.autograd.grad(2.5 * value, leaves)
    for parts in ({"margin": None if edge is None else Plain(edge)}, {"criterion": PlainCriterion(criterion)}):
        if parts.get("margin", edge) is None and "margin" in parts:
            continue
        other = loss(*leaves, **parts)
        assert not type(other.grad_fn).__name__.startswith("MarginSoftmax")
        torch.testing.assert_close(value, other)
        for one, two in zip(ours, torch.autograd.grad(2.5 * other, leaves), strict=True):
            torch.testing.assert_close(one, two)


def test_a_shift_for_all_samples_may_be_learned() -> None:
    shift = torch.tensor(0.2, dtype=torch.float64).requires_grad_()
    step = TargetStep(of(MARGINS, "multi_angle", {"lambda_base": 0.0}), LogitTransform(), Target(), LABELS, K, None)
    criterion = of(CRITERIA, "cross_entropy", {})
    score, others = 0.5 * measured("cosine"), drawn(N)
    assert gradcheck(lambda s: margin_softmax(step, criterion, score.detach(), others, None, None, 1.3, s), [shift])


def test_the_targets_logit_with_its_margin_is_that_of_the_node() -> None:
    margin, criterion = of(MARGINS, "additive_cosine", {}), of(CRITERIA, "cross_entropy", {})
    step = TargetStep(margin, LogitTransform(), Target(), LABELS, K, None)
    score, others = measured("cosine").detach(), drawn(N)
    logit = moved_logit(step, score, None, 4.0, 0.0)
    expected = torch.nn.functional.softplus(others - logit).sum()
    torch.testing.assert_close(margin_softmax(step, criterion, score, others, None, None, 4.0, 0.0), expected)
    torch.testing.assert_close(logit, 4 * (score / 4 - margin.value))


def test_confident_targets_keep_their_digits() -> None:
    """A loss of 1e-30 has a gradient of 1e-30, not 0; one of 1e4 is exact."""
    for name in SOFTMAX:
        criterion = of(CRITERIA, name, {})
        target = torch.tensor([70.0, -1e4], dtype=torch.float64)
        losses, by_target, by_others, _ = criterion.value_and_grads(target, torch.zeros(2, dtype=torch.float64), None,
                                                                    LABELS[:2], K)  # fmt: skip
        power = 3 if name == "focal" else 1
        assert float(losses[0]) == pytest.approx(math.exp(-70 * power), rel=1e-12) and float(losses[1]) == 1e4
        assert float(by_target[0]) == pytest.approx(-power * math.exp(-70 * power), rel=1e-12)
        assert torch.equal(by_target, -by_others)
