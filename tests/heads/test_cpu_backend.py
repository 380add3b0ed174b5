"""The backend of compiled C beside the reference, which is the same arithmetic by torch's operations."""

import math
import sys
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from harness import cases, gradients_of, make_batch, make_head, options_of, relative_error
from torch import Tensor

import pycls
from pycls.heads.ops import cpu_backend, topk, torch_backend
from pycls.heads.ops.backend import select
from pycls.heads.ops.derived_weight import Prototypes
from pycls.heads.ops.fused import class_scores
from pycls.heads.ops.spec import LogitTransform, ScoreSpec
from pycls.heads.rbf_softmax import rbf_softmax

ROOT = Path(__file__).parents[2]
COMPILED = cpu_backend._backend()
pytestmark = pytest.mark.skipif(COMPILED is None, reason="there is no C compiler")
TOP_K = {"smooth_topk", "hard_topk"}
"""They need a gradient by every logit, and have the backward pass of torch's operations."""


class Spy:
    """Stands before a backend and notes what is called."""

    def __init__(self) -> None:
        self.calls: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        self.calls.add(name)
        return getattr(COMPILED, name)


def one_step(head: torch.nn.Module, features: Tensor, labels: Any, spy: Spy | None, monkeypatch) -> list[Tensor]:
    """Logits (if they are kept), loss, gradients and buffers of a step: compiled, or with None by torch's operations."""
    with monkeypatch.context() as patch:
        patch.setattr(cpu_backend, "_backend", lambda: spy)
        if spy is None:
            patch.setattr(topk, "_function", lambda: None)
        x = features.clone().requires_grad_()
        output = head(x, labels)
        found = [output.loss.detach(), *gradients_of(output.loss, [x, *(p for p in head.parameters() if p.requires_grad)])]
    found += [value.clone().float() for value in head.buffers()]
    return found if output.logits is None else [output.logits.detach(), *found]


def both(head: torch.nn.Module, features: Tensor, labels: Any, monkeypatch) -> tuple[list[Tensor], list[Tensor], set[str]]:
    """A step compiled, the same by torch's operations, and what of the backend was called."""
    before = {key: value.clone() for key, value in head.state_dict().items()}
    spy = Spy()
    ours = one_step(head, features, labels, spy, monkeypatch)
    head.load_state_dict(before)  # centres and schedules have moved
    return ours, one_step(head, features, labels, None, monkeypatch), spy.calls


def agree(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert relative_error(one, other.double(), 1e-6) < 1e-5


@pytest.mark.parametrize("chunk", [0, 7])
@pytest.mark.parametrize(("name", "case"), cases())
def test_it_is_what_torchs_operations_give(name: str, case: int, chunk: int, monkeypatch) -> None:
    """33 classes fill no vector of the processor evenly, and 7 a chunk leave most targets in another chunk."""
    options = options_of(name, case, 33)
    head = make_head(name, 10, 33, options, torch.float32, case)
    head.chunk = chunk
    batch = make_batch(name, head, options, 40, case)
    ours, theirs, called = both(head, batch.features, batch.labels, monkeypatch)
    assert called >= ({"forward"} if name in TOP_K else {"forward", "backward"})
    agree(ours, theirs)


@pytest.mark.parametrize("name", [*pycls.list_heads(), "lgm-diagonal"])
def test_steps_without_a_class_for_some_samples_or_any(name: str, monkeypatch) -> None:
    name, _, diagonal = name.partition("-")
    options = options_of(name, 1 if diagonal else 0, 33)
    for absent in (slice(0, None, 3), slice(None)):
        head = make_head(name, 10, 33, options, torch.float32, 0)
        batch = make_batch(name, head, options, 40, 0)
        labels = batch.labels.clone()
        labels[absent] = -1
        ours, theirs, called = both(head, batch.features, labels, monkeypatch)
        assert "forward" in called
        agree(ours, theirs)


@pytest.mark.parametrize("name", pycls.list_heads())
def test_more_gradients_than_that_of_the_loss(name: str, monkeypatch) -> None:
    """Logits and loss may both be used, and the loss by a factor."""
    found = []
    for compiled in (None, COMPILED):
        options = options_of(name, 0, 33)
        head = make_head(name, 10, 33, options, torch.float32, 0)
        batch = make_batch(name, head, options, 40, 0)
        monkeypatch.setattr(cpu_backend, "_backend", lambda compiled=compiled: compiled)
        x = batch.features.clone().requires_grad_()
        output = head(x, batch.labels)
        total = -3 * output.loss + output.logits.square().mean()
        found.append(gradients_of(total, [x, *(p for p in head.parameters() if p.requires_grad)]))
    agree(found[1], found[0])


@pytest.mark.parametrize("weights", [None, [1.0 + k % 3 for k in range(33)]], ids=["even", "weighted"])
@pytest.mark.parametrize("name", ["softmax", "arcface", "subcenter_arcface", "tvmf", "rbf_softmax", "lgm", "lws"])
def test_weighted_sums_of_the_logits(name: str, weights: list[float] | None, monkeypatch) -> None:
    """As label smoothing needs, of samples that partly have no class."""
    options = options_of(name, 0, 33)
    head = make_head(name, 10, 33, options, torch.float32, 0)
    head = pycls.heads.Head(head.similarity, head.margin, pycls.registry.CRITERIA.get("cross_entropy")(0.1, weights))
    batch = make_batch(name, head, options, 40, 0, "missing")
    for chunk in (0, 7):
        head.chunk = chunk
        ours, theirs, called = both(head, batch.features, batch.labels, monkeypatch)
        assert "backward" in called
        agree(ours, theirs)


@pytest.mark.parametrize(("name", "case"), [("normface", 0), ("lgm", 1), ("center", 0), ("smooth_topk", 0)])
def test_a_graph_gone_back_twice_gives_the_same_bits_twice(name: str, case: int) -> None:
    """The backward pass overwrites nothing that it needs."""
    options = options_of(name, case, 33)
    for chunk in (0, 7):
        head = make_head(name, 10, 33, options, torch.float32, 0)
        head.chunk = 0 if name in TOP_K else chunk
        batch = make_batch(name, head, options, 8, 0)
        loss = head(batch.features, batch.labels).loss
        first = torch.autograd.grad(loss, list(head.parameters()), retain_graph=True)
        second = torch.autograd.grad(loss, list(head.parameters()))
        assert all(map(torch.equal, first, second))


def test_backward_within_autocast_is_in_full_precision() -> None:
    head, x = pycls.create_head("arcface", in_features=10, num_classes=33), torch.randn(8, 10, requires_grad=True)
    loss = head(x, torch.arange(8)).loss
    exact = torch.autograd.grad(loss, [x, head.weight], retain_graph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = torch.autograd.grad(loss, [x, head.weight])
    assert all(map(torch.equal, exact, found))


def test_a_label_too_many_is_refused_before_anything_is_read() -> None:
    head = pycls.create_head("lsoftmax", in_features=10, num_classes=33)
    with pytest.raises(ValueError, match="label 33 in a head of 33 classes"):
        head(torch.randn(2, 10), torch.tensor([0, 33]))
    with pytest.raises(ValueError, match="2 features but 3 labels"):
        head(torch.randn(2, 10), torch.tensor([0, 1, 2]))


@pytest.mark.parametrize("name", ["tvmf", "subcenter_arcface", "rbf_softmax", "lgm", "center"])
def test_two_runs_give_the_same_bits(name: str, monkeypatch) -> None:
    head = make_head(name, 64, 1000, options_of(name, 0, 1000), torch.float32, 0).eval()
    x, y = torch.randn(128, 64), torch.randint(1000, (128,))
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        runs = [one_step(head, x, y, COMPILED, monkeypatch) for _ in range(3)]
    finally:
        torch.set_num_threads(threads)
    for run in runs[1:]:
        assert all(map(torch.equal, runs[0], run))


def exponentials(u: Tensor) -> Tensor:
    """exp(u) [n] as the compiled transform has it: of one-dimensional features 1 and prototypes u, as products."""
    spec = ScoreSpec("product", transform=rbf_softmax(1, 2).similarity.spec.transform)
    z = class_scores(torch.ones(1, 1), Prototypes(u[:, None].contiguous()), spec, scale=torch.ones(())).logits
    assert z is not None
    return z[0]


def test_the_exponential_is_exact_to_the_last_places() -> None:
    u = torch.cat((torch.linspace(-87.2, 88.6, 200_001), torch.linspace(-1, 1, 200_001), torch.tensor([0.0, -0.0])))
    exact = u.double().exp()
    assert float(((exponentials(u).double() - exact) / exact).abs().max()) < 2.5e-7  # two units in the last place


def test_the_exponential_has_limits() -> None:
    found = exponentials(torch.tensor([-math.inf, -1e30, -104.0, 89.0, 1e30, math.inf, math.nan]))
    assert found[:3].tolist() == [0, 0, 0] and found[3:6].tolist() == [math.inf] * 3 and bool(found[6].isnan())


@pytest.mark.parametrize(
    "name", ["softmax", "arcface", "subcenter_arcface", "rbf_softmax", "tvmf", "center", "ring", "lws", "lgm"]
)
def test_what_is_not_finite_stays_so(name: str) -> None:
    """A loss that became NaN must be seen."""
    torch.manual_seed(0)  # of few classes, the target's logit may happen to be the one that is +inf
    head = pycls.create_head(name, in_features=4, num_classes=5, **({"covariance": "diagonal"} if name == "lgm" else {}))
    for bad in (math.nan, math.inf):
        x = torch.randn(3, 4)
        x[1, 2] = bad
        finite = head(x, torch.tensor([0, 1, 2])).loss.isfinite()
        assert not finite or (name == "rbf_softmax" and bad == math.inf), bad


class Strange(LogitTransform):
    """A transform of one that the kernels have: its methods may be others."""


def test_what_is_computed_by_what_and_why() -> None:
    x, weight, column = torch.randn(4, 3), torch.randn(6, 3), torch.zeros(4, dtype=torch.int64)
    tvmf = pycls.create_head("tvmf", 3, 6).similarity.spec.transform
    for spec, columns, bias, others in (
        (ScoreSpec(), [column], None, (x, weight)), (ScoreSpec(), [], torch.zeros(6), (x, weight, None)),
        (ScoreSpec("cosine", num_centers=255), [column], None, (x, torch.randn(510, 3))),
        (ScoreSpec("distance", 0.5, transform=tvmf), [column], torch.zeros(6), (x, torch.nn.Parameter(weight))),
    ):  # fmt: skip
        assert select(spec, columns, bias, *others) == (COMPILED, "float32 on a processor")
    for reason, spec, columns, bias, others in (
        ("float32 in contiguous memory", ScoreSpec(), [column], None, (x.double(), weight.double())),
        ("float32 in contiguous memory", ScoreSpec(), [column], None, (x.t().contiguous().t(), weight)),
        ("float32 in contiguous memory", ScoreSpec(), [column], torch.zeros(12)[::2], (x, weight)),
        ("float32 in contiguous memory", ScoreSpec(), [column], None, (x.as_subclass(type("Own", (Tensor,), {})), weight)),
        ("float32 in contiguous memory", ScoreSpec(), [column], None, (x.to("meta"), weight.to("meta"))),
        ("labels are not contiguous", ScoreSpec(), [torch.zeros(8, dtype=torch.int64)[::2]], None, (x, weight)),
        ("a mixture of labels", ScoreSpec(), [column, column], None, (x, weight)),
        ("several centres of plain cosines", ScoreSpec("product", num_centers=2), [column], None, (x, weight)),
        ("several centres of plain cosines", ScoreSpec("cosine", num_centers=256), [column], None, (x, weight)),
        ("several centres of plain cosines", ScoreSpec("cosine", num_centers=2, transform=tvmf), [column], None, (x, weight)),
        ("cosines with a bias", ScoreSpec("cosine"), [column], torch.zeros(6), (x, weight)),
        ("do not have Strange", ScoreSpec(transform=Strange()), [column], None, (x, weight)),
        ("do not have Own", ScoreSpec(transform=type("Own", (type(tvmf),), {})(4.0)), [column], None, (x, weight)),
    ):  # fmt: skip
        found = select(spec, columns, bias, *others)
        assert found.backend is torch_backend.BACKEND and reason in found.reason, (reason, found)


@pytest.mark.parametrize("name", pycls.list_heads())
def test_a_head_says_what_computes_it(name: str) -> None:
    head = make_head(name, 4, 7, options_of(name, 0, 7), torch.float32, 0)
    assert head.backend == (COMPILED, "float32 on a processor")
    assert head.double().backend.backend is torch_backend.BACKEND


def test_without_a_compiler_torch_does_it(tmp_path: Path) -> None:
    code = ("import torch, pycls\n"
            "for name in ('arcface', 'center', 'ring', 'lws', 'lgm', 'smooth_topk'):\n"
            "    options = {'covariance': 'diagonal'} if name == 'lgm' else {'k': 2} if name == 'smooth_topk' else {}\n"
            "    head = pycls.create_head(name, in_features=4, num_classes=5, **options)\n"
            "    head(torch.ones(2, 4), torch.tensor([0, 1])).loss.backward()\n"
            "print(head.backend.reason)")  # fmt: skip
    done = forked.run(
        [sys.executable, "-c", code],
        env={"PATH": str(tmp_path), "PYTHONPATH": str(ROOT), "PYCLS_CACHE": str(tmp_path / "cache"), "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout == "there is no C compiler\n", done


def test_the_terms_are_as_exact_as_the_loss() -> None:
    """Beside a likelihood of 400 a cross entropy of 1e-6 is not what is left of their sum."""
    head = pycls.create_head("lgm", in_features=8, num_classes=3, alpha=0.0, likelihood_weight=100.0)
    y = torch.tensor([0, 1, 2, 0])
    with torch.no_grad():
        head.weight.copy_(14**0.5 * torch.eye(3, 8))
        x = head.weight[y] + 1
    found, expected = head(x, y).terms, head.double()(x.double(), y).terms
    assert expected["likelihood"] > 100 and 1e-7 < expected["cross_entropy"] < 1e-5
    for term, value in expected.items():
        torch.testing.assert_close(found[term].double(), value, rtol=1e-4, atol=1e-30)
