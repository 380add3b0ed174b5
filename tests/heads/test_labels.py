"""Labels and features as users of the library give them: every integer type is a label, all else is refused."""

import pytest
import torch
from harness import cases, gradients_of, make_batch, make_head, options_of
from torch import Tensor

import pycls
from pycls.heads.diagnostics import HeadMonitor, head_stats
from pycls.heads.head import Head
from pycls.heads.labels import INTEGERS
from pycls.heads.linear import Linear
from pycls.heads.ops import cpu_backend, topk
from pycls.heads.parallel.shards import ClassShard, shard_classes
from pycls.heads.topk_svm import SmoothTopK

SAMPLES, DIM, CLASSES = 7, 4, 5
NAMES = [name for name, case in cases() if case == 0]


@pytest.fixture(params=["compiled", "torch"])
def way(request, monkeypatch) -> str:
    """With compiled C, and by torch's operations alone."""
    if request.param == "torch":
        monkeypatch.setattr(cpu_backend, "_backend", lambda: None)
        monkeypatch.setattr(topk, "_function", lambda: None)
    return request.param


def head_of(name: str, case: int = 0, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    return make_head(name, DIM, CLASSES, options_of(name, case, CLASSES), dtype, seed=1)


def features_of(name: str) -> Tensor:
    return make_batch(name, head_of(name), options_of(name, 0, CLASSES), SAMPLES, seed=2).features


def step(name: str, features: Tensor, labels) -> list[Tensor]:
    head, x = head_of(name), features.clone().requires_grad_()
    output = head(x, labels)
    return [output.loss.detach(), *gradients_of(output.loss, [x, *(p for p in head.parameters() if p.requires_grad)])]


@pytest.mark.parametrize("name", NAMES)
def test_every_integer_type_gives_what_int64_gives(name: str, way: str) -> None:
    features, labels = features_of(name), torch.tensor([0, 1, 2, 3, 4, 1, 0])
    other = labels.flip(0)
    exact, mixed = step(name, features, labels), step(name, features, (labels, other, 0.3))
    for dtype in INTEGERS:
        assert all(map(torch.equal, step(name, features, labels.to(dtype)), exact)), dtype
    found = step(name, features, (labels.int(), other.to(torch.uint8), torch.full((SAMPLES,), 0.3)))
    for one, same in zip(found, mixed, strict=True):
        torch.testing.assert_close(one, same)


LABELS = torch.tensor([0, 1, 2, 3, 4, 1, 0])
REFUSED = {
    "bool": (LABELS > 0, TypeError, "not a tensor of bool"),
    "float": (LABELS.float(), TypeError, "class numbers, a tensor of integers .* not a tensor of float32"),
    "half": (LABELS.half(), TypeError, "not a tensor of float16"),
    "complex": (LABELS.to(torch.complex64), TypeError, "not a tensor of complex64"),
    "list": (LABELS.tolist(), TypeError, "not a list"),
    "array": (LABELS.numpy(), TypeError, "not a ndarray"),
    "soft": (torch.eye(CLASSES)[LABELS], TypeError, "not a tensor of float32"),
    "column": (LABELS[:, None], ValueError, r"one class number a sample, \[N\], not \[7, 1\]"),
    "matrix": (torch.eye(CLASSES, dtype=torch.int64)[LABELS], ValueError, r"not \[7, 5\]"),
    "number": (LABELS[0], ValueError, r"not \[\]"),
    "too few": (LABELS[:3], ValueError, "7 features but 3 labels"),
    "none of seven": (LABELS[:0], ValueError, "7 features but 0 labels"),
    "elsewhere": (LABELS.to("meta"), ValueError, "labels are on meta, but the features on cpu"),
    "too large": (LABELS + 1, ValueError, r"label 5 in a head of 5 classes: labels are 0\.\.4, or -1 for no target"),
    "far too large": (torch.full((SAMPLES,), 2**40), ValueError, "label 1099511627776"),
    "unsigned": (torch.full((SAMPLES,), 2**64 - 1, dtype=torch.uint64), ValueError, "label 9223372036854775807"),
    "ignored": (LABELS - 100, ValueError, "label -100 in a head of 5 classes"),
    "pair": ((LABELS, LABELS), TypeError, "or a mixture"),
    "mixture of float": ((LABELS, LABELS.float(), 0.5), TypeError, "labels_b are .* not a tensor of float32"),
    "mixture too short": ((LABELS[:2], LABELS, 0.5), ValueError, "7 features but 2 labels_a"),
    "mixture too large": ((LABELS, LABELS + 3, 0.5), ValueError, "label 7 in a head of 5 classes"),
    "share above 1": ((LABELS, LABELS, 1.5), ValueError, r"lam is in \[0, 1\], not 1.5"),
    "share not a number": ((LABELS, LABELS, float("nan")), ValueError, r"lam is in \[0, 1\], not nan"),
    "share below 0": ((LABELS, LABELS, torch.tensor(-0.5)), ValueError, r"lam is in \[0, 1\], not -0.5"),
    "shares": ((LABELS, LABELS, torch.full((3,), 0.5)), ValueError, r"lam is a number or one of each sample, \[7\], not \[3\]"),
    "share of truth": ((LABELS, LABELS, True), TypeError, "lam is a number .* not a bool"),
    "share of text": ((LABELS, LABELS, "0.5"), TypeError, "lam is a number .* not a str"),
    "complex share": ((LABELS, LABELS, torch.tensor(1j)), TypeError, "lam is a number .* not a tensor of complex64"),
}


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_label_is_refused(name: str, way: str) -> None:
    head, features = head_of(name), features_of(name)
    before = {key: value.clone() for key, value in head.state_dict().items()}
    for labels, kind, message in REFUSED.values():
        with pytest.raises(kind, match=message):
            head(features, labels)
    assert all(torch.equal(value, before[key]) for key, value in head.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_features_that_a_head_cannot_take_are_refused(name: str, way: str) -> None:
    head, features = head_of(name), features_of(name)
    for labels in (None, LABELS):
        for given, kind, message in (
            (features[:, :3], ValueError, r"a head of 4 features takes them as \[N, 4\], not \[7, 3\]"),
            (features[:, :, None], ValueError, r"not \[7, 4, 1\]"),
            (features[0], ValueError, r"not \[4\]"),
            (features.long(), TypeError, "not a tensor of int64"),
            (features.bool(), TypeError, "not a tensor of bool"),
            (features.to(torch.complex64), TypeError, "not a tensor of complex64"),
            (features.tolist(), TypeError, "not a list"),
            (features.to("meta"), ValueError, "the features are on meta, but the head on cpu"),
        ):
            with pytest.raises(kind, match=message):
                head(given, labels)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("name", "case"), cases())
def test_an_empty_batch_costs_nothing(name: str, case: int, training: bool, way: str) -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    for labels in (nothing, (nothing, nothing, 0.3), (nothing, nothing, torch.zeros(0))):
        for shared in (False, True):
            head = head_of(name, case).train(training)
            if shared and name in ("smooth_topk", "hard_topk"):
                continue
            if shared:
                shard_classes(head, ClassShard(CLASSES))
            before = {key: value.clone() for key, value in head.state_dict().items() if key not in ("steps", "margin.passes")}
            x = torch.zeros(0, DIM, requires_grad=True)
            output = head(x, labels)
            assert output.loss == 0 and all(term == 0 for term in output.terms.values())
            output.loss.backward()
            assert all(p.grad is None or not p.grad.any() for p in (x, *head.parameters()))
            after = head.state_dict()
            assert all(torch.equal(value, after[key]) for key, value in before.items())
            assert head(x).logits.shape == (0, CLASSES)


@pytest.mark.parametrize("k", [2, 9])
def test_an_empty_batch_of_many_places(k: int) -> None:
    head = Head(Linear(DIM, 30), None, SmoothTopK(k)).double()
    output = head(torch.zeros(0, DIM, dtype=torch.float64), torch.zeros(0, dtype=torch.int64))
    output.loss.backward()
    assert output.loss == 0 and not head.weight.grad.any()


def test_the_ring_waits_for_a_batch_with_a_target(way: str) -> None:
    ring = pycls.create_head("ring", DIM, CLASSES)
    ring(torch.zeros(0, DIM), LABELS[:0])
    ring(torch.ones(2, DIM), torch.full((2,), -1))
    assert ring.auxiliaries[0].radius == 1 and not ring.auxiliaries[0].started
    ring(torch.full((2, DIM), 3.0), LABELS[:2])
    assert ring.auxiliaries[0].radius == 6 and ring.auxiliaries[0].started


def test_telemetry_takes_what_the_head_takes() -> None:
    head = pycls.create_head("subcenter_arcface", DIM, CLASSES)
    monitor, features = HeadMonitor(head), torch.randn(SAMPLES, DIM)
    head(features, torch.full((SAMPLES,), -1))
    assert monitor.read() == {} == head_stats(head, features[:0], LABELS[:0])
    head(features, LABELS.int())
    assert monitor.read() == {key: float(value) for key, value in head_stats(head, features, LABELS).items()}
    with pytest.raises(TypeError, match="not a tensor of float32"):
        head_stats(head, features, LABELS.float())
    with pytest.raises(ValueError, match="label 5 in a head of 5 classes"):
        head_stats(head, features, LABELS + 1)


def test_a_compiled_head_takes_them_too() -> None:
    torch._dynamo.reset()
    for lam in (0.3, torch.full((SAMPLES,), 0.3)):
        head, features = head_of("arcface"), features_of("arcface")
        compiled = torch.compile(head, fullgraph=True, backend="aot_eager")
        for labels in (LABELS, LABELS.int(), (LABELS, LABELS.flip(0).to(torch.uint8), lam)):
            torch.testing.assert_close(compiled(features, labels).loss, head(features, labels).loss)
    torch._dynamo.reset()
