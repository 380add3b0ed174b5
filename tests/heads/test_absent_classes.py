"""Classes without training samples: no number of the others depends on them, and nothing is infinite or not a number."""

from typing import Any

import pytest
import torch
from torch import Tensor

import pycls
from pycls.heads.cosine import Cosine
from pycls.heads.cross_entropy import ClassBalanced, CrossEntropy
from pycls.heads.head import Head
from pycls.heads.linear import Linear
from pycls.heads.long_tail import LabelDistributionMargin, LogitAdjustment
from pycls.heads.ops import cpu_backend
from pycls.heads.parallel.shards import ClassShard, shard_classes

DIM = 4
COUNTS = [0, 7, 30, 0, 0, 2, 100, 0]
PRESENT = [k for k, count in enumerate(COUNTS) if count]
HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "balanced_softmax": ("balanced_softmax", {}),
    "logit_adjustment": ("logit_adjustment", {"tau": 0.5}),
    "without adjustment": ("logit_adjustment", {"tau": 0.0}),
    "post hoc": ("logit_adjustment", {"tau": 1.5, "post_hoc": True}),
    "ldam": ("ldam", {}),
    "ldam, re-weighted": ("ldam", {"drw_epoch": 1}),
}


@pytest.fixture(params=["compiled", "torch", "double"])
def dtype(request, monkeypatch) -> torch.dtype:
    """With compiled C, and by torch's operations in both types."""
    if request.param == "torch":
        monkeypatch.setattr(cpu_backend, "_backend", lambda: None)
    return torch.float64 if request.param == "double" else torch.float32


def batch(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(9, DIM, generator=draw, dtype=dtype) * 20, torch.randint(len(PRESENT), (9,), generator=draw)


def both(name: str, options: dict[str, Any], dtype: torch.dtype) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The head, and the one that knows nothing of the absent classes, with the same numbers otherwise."""
    head = pycls.create_head(name, DIM, len(COUNTS), class_counts=COUNTS, **options).to(dtype)
    torch.nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(2))
    fewer = pycls.create_head(name, DIM, len(PRESENT), class_counts=[COUNTS[k] for k in PRESENT], **options).to(dtype)
    with torch.no_grad():
        for key in ("weight", "bias"):
            if getattr(head, key) is not None:
                getattr(fewer, key).copy_(getattr(head, key)[PRESENT])
    head.set_epoch(1)
    fewer.set_epoch(1)
    return head, fewer


def assert_finite(head: torch.nn.Module, *values: Tensor) -> None:
    grads = [p.grad for p in head.parameters() if p.grad is not None]
    assert all(bool(v.isfinite().all()) for v in (*values, *grads, *head.state_dict().values()))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("name", ["balanced_softmax", "logit_adjustment"])
def test_the_softmax_with_the_prior_is_over_the_others(name: str, smoothing: float, dtype: torch.dtype) -> None:
    head, fewer = both(*HEADS[name], dtype)
    x, y = batch(dtype)
    head.criterion.label_smoothing = fewer.criterion.label_smoothing = smoothing
    for labels, own in ((torch.tensor(PRESENT)[y], y), ((torch.tensor(PRESENT)[y], torch.tensor(PRESENT)[y.flip(0)], 0.3),
                                                       (y, y.flip(0), 0.3))):  # fmt: skip
        head.zero_grad()
        fewer.zero_grad()
        found, wanted = head(x, labels), fewer(x, own)
        found.loss.backward()
        wanted.loss.backward()
        torch.testing.assert_close(found.loss, wanted.loss)
        torch.testing.assert_close(head.weight.grad[PRESENT], fewer.weight.grad, rtol=1e-4, atol=1e-5)
        assert not head.weight.grad[[0, 3, 4, 7]].any(), "they are as they were"
        assert_finite(head, found.loss, found.logits)


@pytest.mark.parametrize("name", HEADS)
def test_nothing_is_infinite_and_whom_the_adjustment_leaves_out_is_never_predicted(name: str, dtype: torch.dtype) -> None:
    x, y = batch(dtype)
    for training in (True, False):
        head, fewer = both(*HEADS[name], dtype)
        head.train(training)
        fewer.train(training)
        for labels in (torch.tensor(PRESENT)[y], y % 2 * 4, torch.zeros_like(y)):  # trained on, partly so, absent
            head.zero_grad()
            output = head(x, labels)
            output.loss.backward()
            assert_finite(head, output.loss, output.logits)
        if not training:
            logits = head(x).logits
            torch.testing.assert_close(logits[:, PRESENT], fewer(x).logits)
            if isinstance(head.criterion, LogitAdjustment):
                assert set(logits.argmax(dim=1).tolist()) <= set(PRESENT)
                assert (logits.softmax(dim=1)[:, [0, 3, 4, 7]] == 0).all()


def test_margins_and_weights_are_as_without_them() -> None:
    few = [COUNTS[k] for k in PRESENT]
    margins, weights = LabelDistributionMargin(COUNTS, 0.4).margins, ClassBalanced(COUNTS, 0.99).weights
    torch.testing.assert_close(margins[PRESENT], LabelDistributionMargin(few, 0.4).margins)
    torch.testing.assert_close(weights[PRESENT], ClassBalanced(few, 0.99).weights)
    assert margins[0] == margins.max() == 0.4 and weights[0] == 0
    assert weights[PRESENT].mean() == pytest.approx(1)
    assert ClassBalanced([0, 5, 5], 0.0).weights.tolist() == [0, 1, 1]


@pytest.mark.parametrize("from_epoch", [0, 5])
def test_re_weighting_with_smoothing_is_as_without_them(from_epoch: int, dtype: torch.dtype) -> None:
    x, y = batch(dtype)
    few = [COUNTS[k] for k in PRESENT]
    head = Head(Linear(DIM, len(COUNTS)), None, ClassBalanced(COUNTS, 0.99, from_epoch, 0.2)).to(dtype)
    fewer = Head(Linear(DIM, len(PRESENT)), None, ClassBalanced(few, 0.99, from_epoch, 0.2)).to(dtype)
    torch.nn.init.normal_(head.weight)
    with torch.no_grad():
        head.bias[[0, 3, 4, 7]] = -1e5  # out of the softmax, in which they are
        fewer.weight.copy_(head.weight[PRESENT])
    torch.testing.assert_close(head(x, torch.tensor(PRESENT)[y]).loss, fewer(x, y).loss)


def test_a_class_of_weight_0_does_not_count_with_smoothing_either(dtype: torch.dtype) -> None:
    head = Head(Linear(DIM, 3), None, CrossEntropy(0.1, [0.0, 1.0, 2.0])).to(dtype)
    x, _ = batch(dtype)
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2])
    output = head(x, labels)
    output.loss.backward()
    torch.testing.assert_close(output.loss, head(x[labels > 0], labels[labels > 0]).loss)
    assert_finite(head, output.loss)


def test_who_is_absent_is_saved_with_the_head() -> None:
    saved = pycls.create_head("balanced_softmax", DIM, len(COUNTS), class_counts=COUNTS)
    loaded = pycls.create_head("balanced_softmax", DIM, len(COUNTS), class_counts=[1] * len(COUNTS))
    loaded.load_state_dict(saved.state_dict())
    x, y = batch(torch.float32)
    for training in (True, False):
        found, wanted = (head.train(training)(x, torch.tensor(PRESENT)[y]) for head in (loaded, saved))
        torch.testing.assert_close(found.loss, wanted.loss)
        assert torch.equal(found.logits, wanted.logits)


def test_absent_classes_in_a_head_that_is_shared_out() -> None:
    x, y = batch(torch.float32)
    for training in (True, False):
        whole, _ = both("balanced_softmax", {}, torch.float32)
        shared, _ = both("balanced_softmax", {}, torch.float32)
        shard_classes(shared, ClassShard(len(COUNTS)))
        whole, shared = whole.train(training), shared.train(training)
        torch.testing.assert_close(shared(x, torch.tensor(PRESENT)[y]).loss, whole(x, torch.tensor(PRESENT)[y]).loss)
        torch.testing.assert_close(shared(x).logits, whole(x).logits)


@pytest.mark.parametrize(("counts", "kind", "message"), [
    ([3, -1, 2], ValueError, "none of them negative, and one is -1"),
    ([3.0, float("nan"), 2.0], ValueError, "one is nan"),
    ([3.0, float("inf"), 2.0], ValueError, "one is inf"),
    ([0, 0, 0], ValueError, "all 0: no class has training images"),
    ([], ValueError, "all 0|0 class_counts"),
    ([[1, 2, 3]], ValueError, r"one number a class, \[K\], not \[1, 3\]"),
    ([True, False, True], TypeError, "not a tensor of bool"),
    ([1, 2], ValueError, "2 class_counts for 3 classes"),
    ([1, 2, 3, 4], ValueError, "4 class_counts for 3 classes"),
])  # fmt: skip
def test_counts_that_cannot_be_are_refused(counts: list[Any], kind: type[Exception], message: str) -> None:
    for name in ("balanced_softmax", "logit_adjustment", "ldam"):
        with pytest.raises(kind, match=message):
            pycls.create_head(name, DIM, 3, class_counts=counts)
    with pytest.raises(kind, match=message):
        Head(Cosine(DIM, 3), None, ClassBalanced(counts))
