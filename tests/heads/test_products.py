"""Half-precision products: what they are exact in, and what they round. On a processor they are used by these tests alone."""

import pytest
import torch
from harness import gradients_of, make_batch, make_head, options_of, relative_error
from torch import Tensor

import pycls
from pycls.heads.ops.derived_weight import Prototypes
from pycls.heads.ops.fused import class_scores
from pycls.heads.ops.products import add_product, autocast_type, product
from pycls.heads.ops.spec import ScoreSpec

HALVES = [torch.bfloat16, torch.float16]
# every head has its own cases elsewhere; here what differs in the pass, and three centres a class
HEADS = ["softmax", "lsoftmax", "normface", "arcface", "subcenter_arcface", "tvmf", "rbf_softmax", "lgm", "smooth_topk"]


@pytest.fixture
def half_everywhere(monkeypatch):
    """Heads multiply in this type, on whatever device."""

    def use(dtype: torch.dtype | None) -> None:
        monkeypatch.setattr("pycls.heads.head.autocast_type", lambda x: dtype)

    return use


def step(head: torch.nn.Module, x: Tensor, labels) -> tuple[list[Tensor], list[Tensor]]:
    """(Loss and, if they are kept, logits), gradients by features and parameters."""
    x = x.detach().clone().requires_grad_()
    output = head(x, labels)
    values = [output.loss.detach()] + ([] if output.logits is None else [output.logits.detach()])
    return values, gradients_of(output.loss, [x, *head.parameters()])


def rounded(values: Tensor, half: torch.dtype) -> Tensor:
    return values.to(half).to(values.dtype)


@pytest.mark.parametrize("chunk", [0, 9])
@pytest.mark.parametrize("kind", ["labels", "missing", "mixture"])
@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("name", HEADS)
def test_values_are_those_of_the_rounded_vectors(name, half, kind, chunk, half_everywhere) -> None:
    """Against float64 on the rounded features and prototypes: values to float32's precision, gradients to the half's."""
    options = options_of(name, 0, 25)
    head = make_head(name, 16, 25, options, torch.float32, 0).eval()
    head.chunk = 0 if name == "smooth_topk" else chunk
    batch = make_batch(name, head, options, 20, 0, kind)
    exact = make_head(name, 16, 25, options, torch.float64, 0).eval()
    with torch.no_grad():
        exact.load_state_dict({key: value.double() for key, value in head.state_dict().items()})
        exact.similarity.weight.copy_(rounded(head.similarity.weight, half))
    half_everywhere(half)
    x = rounded(batch.features, half)  # as they come from a backbone under autocast
    values, gradients = step(head, x, batch.labels)
    half_everywhere(None)
    wanted, wanted_gradients = step(exact, x.double(), batch.labels)
    for one, other in zip(values, wanted[: len(values)], strict=True):
        assert one.dtype is torch.float32 and relative_error(one, other, 1e-6) < 2e-5
    for one, other in zip(gradients, wanted_gradients, strict=True):
        assert one.dtype is torch.float32 and relative_error(one, other, 1e-6) < 2 * torch.finfo(half).eps


@pytest.mark.parametrize("half", HALVES)
def test_a_vector_is_at_no_distance_from_itself_and_at_cosine_one(half) -> None:
    x = 3 * torch.randn(40, 64, generator=torch.Generator().manual_seed(0))
    distances = class_scores(x, Prototypes(x), ScoreSpec("distance", 1.0), products=half).logits
    cosines = class_scores(x, Prototypes(x), ScoreSpec("cosine"), target_norm=1.0, products=half).logits
    assert distances is not None and cosines is not None
    size = float(x.square().sum(dim=1).max())
    assert float(distances.diagonal().abs().max()) < 2e-6 * size and float(distances.max()) < 2e-6 * size
    assert float((cosines.diagonal() - 1).abs().max()) < 1e-6 and float(cosines.abs().max()) < 1 + 1e-6


def test_a_gradient_toward_a_prototype_close_by_has_its_direction() -> None:
    """x - w is a difference of two products: both have the same rounded weight."""
    w = torch.ones(2, 8) * 100
    w[1] = -w[1]
    x = (w[:1] + torch.tensor([[0.0, 1, 0, 0, 0, 0, 0, 0]])).requires_grad_()
    targets = torch.zeros(1, 1, dtype=torch.int64)
    scores = class_scores(x, Prototypes(w), ScoreSpec("distance", 0.5), targets=targets, products=torch.bfloat16)
    (0.3 * scores.score[0]).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.tensor([[0.0, -0.3, 0, 0, 0, 0, 0, 0]]), rtol=0.01, atol=1e-4)


def test_distances_that_are_sums_of_products_stay_in_float32(half_everywhere) -> None:
    options = options_of("lgm", 1, 7)
    assert options["covariance"] == "diagonal"
    head = make_head("lgm", 8, 7, options, torch.float32, 0).eval()
    batch = make_batch("lgm", head, options, 5, 0)
    values, gradients = step(head, batch.features, batch.labels)
    half_everywhere(torch.bfloat16)
    again, gradients_again = step(head, batch.features, batch.labels)
    assert all(torch.equal(a, b) for a, b in zip(values + gradients, again + gradients_again, strict=True))


def test_only_cuda_under_autocast_multiplies_in_half_precision() -> None:
    x = torch.randn(2, 3)
    assert autocast_type(x) is None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert autocast_type(x) is None and autocast_type(x.bfloat16()) is None


def test_a_head_on_a_processor_stays_as_it_is() -> None:
    head = pycls.create_head("arcface", in_features=8, num_classes=5)
    x, y = torch.randn(4, 8), torch.arange(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(head(x, y).loss, head(x.float(), y).loss)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_and_what_is_added(dtype) -> None:
    a, b, added = torch.randn(4, 5).to(dtype), torch.randn(5, 3).to(dtype), torch.randn(3)
    exact = a.double() @ b.double()
    torch.testing.assert_close(product(a, b).double(), exact, rtol=1e-6, atol=1e-6)
    found = product(a, b, added=added, beta=-2.0, alpha=0.5)
    torch.testing.assert_close(found.double(), 0.5 * exact - 2 * added.double(), rtol=1e-6, atol=1e-6)
    out = torch.full((4, 3), torch.nan)
    add_product(out, a, b, beta=0.0, alpha=3.0)
    torch.testing.assert_close(out.double(), 3 * exact, rtol=1e-6, atol=1e-6)
    add_product(out, a, b, beta=-1.0, alpha=1.0)
    torch.testing.assert_close(out.double(), -2 * exact, rtol=1e-6, atol=1e-6)
