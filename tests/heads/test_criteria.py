"""Every criterion in the registry, on the logits of a linear head, against its per-sample reference."""

import inspect
from typing import Any

import pytest
import reference_criteria as criteria
import reference_similarities as similarities
import torch
from harness import gradient, gradients_of, relative_error
from references import Reference, evaluate

from pycls.heads import Head
from pycls.registry import CRITERIA, SIMILARITIES

COUNTS = [100, 40, 12, 5, 2]

REFERENCES: dict[str, Reference] = {
    "cross_entropy": Reference(similarities.linear),
    "class_balanced": Reference(similarities.linear),
    "bce": Reference(similarities.linear, criterion=criteria.bce),
    "focal": Reference(similarities.linear, criterion=criteria.focal),
    "smooth_topk": Reference(similarities.linear, criterion=criteria.smooth_topk),
    "hard_topk": Reference(similarities.linear, criterion=criteria.hard_topk),
    "logit_adjustment": Reference(similarities.linear, training_criterion=criteria.adjusted),
    "balanced_softmax": Reference(similarities.linear, training_criterion=criteria.balanced),
}

CASES: dict[str, list[dict[str, Any]]] = {
    "cross_entropy": [{}, {"label_smoothing": 0.1}, {"label_smoothing": 0.999},
                      {"class_weights": [0.5, 2.0, 1.0, 3.0, 0.1]},
                      {"class_weights": [0.5, 2.0, 1.0, 3.0, 0.1], "label_smoothing": 0.2}],
    "class_balanced": [{"beta": 0.9999}, {"beta": 0.9, "label_smoothing": 0.1}, {"beta": 0.9, "from_epoch": 3}],
    "bce": [{}],
    "focal": [{"gamma": 2.0}, {"gamma": 0.5}, {"gamma": 0.0}],
    "smooth_topk": [{"k": 3, "tau": 0.5, "alpha": 1.0}],
    "hard_topk": [{"k": 3, "alpha": 1.0}],
    "logit_adjustment": [{"tau": 1.0}],
    "balanced_softmax": [{}],
}

DTYPES = [pytest.param(torch.float64, 1e-9, id="f64"), pytest.param(torch.float32, 2e-5, id="f32")]
BY_CASE = [(name, i) for name in CRITERIA.names() for i in range(len(CASES.get(name, ())))]


def effective_numbers(options: dict[str, Any]) -> dict[str, Any]:
    """Class-balanced weights (1 - beta) / (1 - beta^n), of mean 1; none before their epoch (Cui et al. 2019, eq. 4)."""
    if "beta" not in options or options.get("from_epoch"):
        return {}
    raw = [(1 - options["beta"]) / (1 - options["beta"] ** n) for n in COUNTS]
    return {"class_weights": [w * len(raw) / sum(raw) for w in raw]}


def composed(name: str, options: dict[str, Any], dtype: torch.dtype) -> torch.nn.Module:
    """A linear similarity with this criterion."""
    component = CRITERIA.get(name)
    supplied = {"in_features": 4, "num_classes": 5, "class_counts": COUNTS}
    wanted = inspect.signature(component).parameters
    criterion = component(**options, **{key: value for key, value in supplied.items() if key in wanted})
    linear = SIMILARITIES.get("linear")(in_features=4, num_classes=5)
    head = Head(linear, None, criterion).to(dtype)
    with torch.no_grad():
        head.weight.copy_(torch.randn(5, 4, generator=torch.Generator().manual_seed(0)))
        head.bias.copy_(torch.randn(5, generator=torch.Generator().manual_seed(1)))
    return head


@pytest.mark.parametrize("name", CRITERIA.names())
def test_every_criterion_has_a_reference(name):
    assert name in REFERENCES and CASES.get(name), f"the criterion {name} has no reference in {__file__}"


@pytest.mark.parametrize("spread", [1.0, 30.0, 3e3], ids=["ordinary", "large", "huge"])
@pytest.mark.parametrize("kind", ["labels", "missing", "mixture"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize(("name", "case"), BY_CASE)
def test_value_and_gradient(name, case, dtype, tolerance, training, kind, spread):
    options = CASES[name][case]
    head = composed(name, options, dtype).train(training)
    draw = torch.Generator().manual_seed(2)
    features = (spread * torch.randn(6, 4, generator=draw, dtype=torch.float64)).to(dtype).requires_grad_()
    first, second = torch.tensor([0, 1, 2, 3, 4, 2]), torch.tensor([4, 1, 0, 2, 2, 1])
    if kind == "missing":
        first[1::2] = -1
    labels = (first, second, 0.3) if kind == "mixture" else first
    output = head(features, labels)
    output.loss.backward()

    p = {key: getattr(head, key).detach().double().requires_grad_() for key in ("weight", "bias")}
    x = features.detach().double().requires_grad_()
    plain = (first.tolist(), second.tolist(), 0.3) if kind == "mixture" else first.tolist()
    expected = evaluate(REFERENCES[name], x, plain, p, {**options, **effective_numbers(options), "class_counts": COUNTS},
                        training)  # fmt: skip
    # the float32 gradient of saturated classes is rounding of the features' size
    floor = 1e-6 * spread
    assert relative_error(output.loss.detach(), expected.loss.detach(), floor) <= tolerance
    got = (features, head.weight, head.bias)
    for tensor, reference in zip(got, gradients_of(expected.loss, [x, *p.values()]), strict=True):
        assert relative_error(gradient(tensor), reference, floor) <= tolerance
