"""Triton's kernels, by its interpreter, beside torch's operations: run by ``test_triton.py`` with TRITON_INTERPRET=1, which
must be set before Triton is imported."""

import math
from collections.abc import Iterator
from unittest.mock import patch

import numpy
import pytest
import torch
from harness import cases, gradients_of, make_batch, make_head, options_of, relative_error

import pycls
from pycls.heads import head
from pycls.heads.ops import fused, torch_backend, triton_backend, triton_kernels
from pycls.heads.ops.backend import Choice
from pycls.heads.ops.triton_backend import TritonBackend, try_out

BACKEND = TritonBackend(triton_kernels)
HEADS = ["softmax", "lsoftmax", "normface", "arcface", "tvmf", "rbf_softmax", "lgm", "logit_adjustment"]
TOP_K = {"smooth_topk", "hard_topk"}
"""They need a gradient by every logit, and have the backward pass of torch's operations."""


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch) -> Iterator[None]:
    """So that a few samples and classes are several blocks: each program costs the interpreter milliseconds. So does each
    infinity of which NumPy would warn."""
    for name, size in (("FORWARD_BLOCK", 32), ("COLUMNS", 32), ("ROWS", 4)):
        monkeypatch.setattr(triton_backend, name, size)
    with numpy.errstate(all="ignore"):
        yield


class Spy:
    """Stands before the kernels and counts their calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def select(self, spec, columns, *others):
        """Whatever they know how to do, on a processor too."""
        known = len(columns) < 2 and spec.num_centers == 1 and spec.transform.kernel is not None
        return Choice(self if known else torch_backend.BACKEND, "")

    def __getattr__(self, name: str):
        self.calls.append(name)
        return getattr(BACKEND, name)


def one_step(module, features, labels, spy: Spy | None, products: torch.dtype | None = None) -> list[torch.Tensor]:
    """Logits, loss and all gradients; by the kernels, or with None by torch's operations."""
    select = spy.select if spy is not None else lambda *arguments: Choice(torch_backend.BACKEND, "")
    x = features.clone().requires_grad_()
    with patch.object(fused, "select", select), patch.object(head, "autocast_type", lambda x: products):
        output = module(x, labels)
        known = [p for p in module.parameters() if p.requires_grad]
        found = [output.loss.detach(), *gradients_of(output.loss, [x, *known])]
    return found if output.logits is None else [output.logits.detach(), *found]


def same(ours: list[torch.Tensor], theirs: list[torch.Tensor], tolerance: float) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == other.dtype
        assert relative_error(one, other.double(), 1e-6) < tolerance


@pytest.mark.parametrize("chunk", [0, 12])
@pytest.mark.parametrize(("name", "case"), [(name, case) for name, case in cases() if case == 0 or name == "tvmf"])
def test_it_is_what_torchs_operations_give(name: str, case: int, chunk: int) -> None:
    """33 classes and 6 samples fill no block evenly; 12 classes a chunk leave most targets in another chunk."""
    options = options_of(name, case, 33)
    torch.manual_seed(case)
    module = make_head(name, 10, 33, options, torch.float32, case)
    module.chunk = chunk
    batch = make_batch(name, module, options, 6, case)
    spy = Spy()
    module.eval()  # twice the same: neither centres nor schedules move
    ours = one_step(module, batch.features, batch.labels, spy)
    if name != "subcenter_arcface":
        assert set(spy.calls) >= ({"forward"} if name in TOP_K else {"forward", "backward"})
    same(ours, one_step(module, batch.features, batch.labels, None), 1e-5)


@pytest.mark.parametrize("chunk", [0, 12])
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("name", HEADS)
def test_in_half_precision(name: str, half: torch.dtype, chunk: int) -> None:
    """Both round the gradient by the products, of which a few numbers lie on the other side of a half."""
    options = options_of(name, 0, 33)
    module = make_head(name, 10, 33, options, torch.float32, 0)
    module.chunk = chunk
    batch = make_batch(name, module, options, 6, 0)
    spy = Spy()
    module.eval()
    ours = one_step(module, batch.features, batch.labels, spy, half)
    assert {"forward", "backward"} <= set(spy.calls)
    theirs = one_step(module, batch.features, batch.labels, None, half)
    count = 1 if chunk else 2
    same(ours[:count], theirs[:count], 1e-5)
    same(ours[count:], theirs[count:], 2 * torch.finfo(half).eps)


@pytest.mark.parametrize("chunk", [0, 12])
@pytest.mark.parametrize("offsets", [False, True], ids=["", "offsets"])
@pytest.mark.parametrize("name", ["softmax", "cosface", "tvmf", "rbf_softmax"])
def test_samples_without_a_class_offsets_and_weighted_sums(name: str, offsets: bool, chunk: int) -> None:
    torch.manual_seed(0)
    plain = make_head(name, 10, 33, options_of(name, 0, 33), torch.float32, 0)
    criteria = pycls.registry.CRITERIA
    criterion = criteria.get("cross_entropy")(0.1, [1.0 + k % 3 for k in range(33)])
    if offsets:
        criterion = criteria.get("logit_adjustment")([1 + k for k in range(33)], 0.7)
    module = pycls.heads.Head(plain.similarity, plain.margin, criterion)
    module.chunk = chunk
    y = torch.randint(33, (10,))
    y[::3] = -1
    spy = Spy()
    x = torch.randn(10, 10)
    ours = one_step(module, x, y, spy)
    assert "backward" in spy.calls
    same(ours, one_step(module, x, y, None), 1e-5)


def test_the_largest_other_logit_is_without_offset() -> None:
    module = pycls.create_head("logit_adjustment", in_features=4, num_classes=33, class_counts=[1 + k for k in range(33)])
    module.similarity.weight.data.normal_()
    module.chunk = 7
    x, y = torch.randn(9, 4), torch.randint(33, (9,))
    with patch.object(fused, "select", Spy().select):
        correct = module(x.requires_grad_(), y).correct
    logits = module.similarity.scores(module.similarity.inputs(x)).logits
    assert correct is not None and torch.equal(correct, logits.argmax(dim=1) == y)


def test_a_batch_of_one_class_and_targets_that_are_absent() -> None:
    weight, grad = torch.randn(5, 20), torch.zeros(5, 20)
    target, by = torch.tensor([3, -1, 3, 0, 3]), torch.randn(5)
    known = target.clamp(min=0)
    BACKEND.add_target_squares_grad_(grad, weight, target, by)
    torch.testing.assert_close(grad, torch.zeros(5, 20).index_add_(0, known, 2 * by[:, None] * weight[known]))
    torch.testing.assert_close(BACKEND.target_squares(weight, target), weight[known].square().sum(dim=1))


@pytest.mark.parametrize("name", ["softmax", "tvmf", "lgm"])
def test_many_blocks_and_several_steps_a_program(name: str, monkeypatch) -> None:
    monkeypatch.setattr(triton_backend, "STEPS_FROM", 0)
    module = make_head(name, 40, 100, options_of(name, 0, 100), torch.float32, 0).eval()
    batch = make_batch(name, module, {}, 19, 0)
    runs = [one_step(module, batch.features, batch.labels, Spy()) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True)), "two runs give the same bits"
    same(runs[0], one_step(module, batch.features, batch.labels, None), 1e-5)


def test_one_class_and_what_is_not_finite() -> None:
    for name in ("softmax", "arcface", "rbf_softmax", "tvmf"):
        one = pycls.create_head(name, in_features=4, num_classes=1)
        assert all(bool(v.isfinite().all()) for v in one_step(one, torch.randn(3, 4), torch.zeros(3, dtype=torch.long), Spy()))
        module = pycls.create_head(name, in_features=4, num_classes=5)
        for bad in (math.nan, math.inf):
            x = torch.randn(3, 4)
            x[1, 2] = bad
            finite = one_step(module, x, torch.tensor([0, 1, 2]), Spy())[1].isfinite()
            assert not finite or (name == "rbf_softmax" and bad == math.inf), (name, bad)


@pytest.mark.parametrize("zero", ["features", "prototypes"])
@pytest.mark.parametrize("half", [None, torch.bfloat16], ids=["f32", "bf16"])
def test_zeros(zero: str, half: torch.dtype | None) -> None:
    for name in ("softmax", "arcface", "rbf_softmax", "tvmf", "lgm"):
        module = make_head(name, 4, 5, options_of(name, 0, 5), torch.float32, 0)
        x = torch.randn(3, 4)
        (x[:2] if zero == "features" else module.weight.data[:3]).zero_()
        found = one_step(module, x, torch.tensor([0, 1, 4]), Spy(), half)
        assert all(bool(value.isfinite().all()) for value in found), name


@pytest.mark.parametrize(("kind", "kernel"), [("product", 0), ("cosine", 0), ("cosine", 2), ("distance", 0), ("distance", 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_trial_runs(kind: str, kernel: int, dtype: torch.dtype) -> None:
    try_out(BACKEND, torch.device("cpu"), dtype, kind, kernel)
