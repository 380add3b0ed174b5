"""What must hold of every head whatever its formula: derivatives by finite differences, identities between heads."""

import copy
import math

import pytest
import torch
from harness import CASES, cases, learned, make_batch, make_head, options_of, scalar_parameter, set_radius
from torch.func import functional_call

import pycls

HEADS = [name for name in pycls.list_heads() if name in CASES]


def need(*names: str) -> None:
    """Skips a test of heads that are not in the registry."""
    missing = [name for name in names if name not in pycls.list_heads()]
    if missing:
        pytest.skip(f"no head named {' or '.join(missing)}")


def twin(name: str, like: torch.nn.Module, **options: object) -> torch.nn.Module:
    """Another head with the prototypes of a linear head without bias, in training mode."""
    classes, dim = like.weight.shape
    head = pycls.create_head(name, in_features=dim, num_classes=classes, **options).to(like.weight.dtype).train()
    with torch.no_grad():
        head.weight.copy_(like.weight)
    return head


def starting_point(seed: int = 0, dim: int = 4, classes: int = 5, size: int = 8):
    """A linear head without bias, features and labels, float64."""
    head = make_head("softmax", dim, classes, {"bias": False}, torch.float64, seed).train()
    batch = make_batch("softmax", head, {}, size, seed)
    return head, batch.features, batch.labels


def assert_same_loss(a: torch.nn.Module, b: torch.nn.Module, features: torch.Tensor, labels: torch.Tensor) -> None:
    """Equal losses and equal gradients for the features and the prototypes."""
    found = []
    for head in (a, b):
        x = features.clone().requires_grad_()
        loss = head(x, labels).loss
        found.append((loss, *torch.autograd.grad(loss, (x, head.weight))))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


# --- derivatives ------------------------------------------------------------------------------------------------------


def gradcheck(head: torch.nn.Module, name: str, features: torch.Tensor, labels, what: str) -> None:
    """Finite differences in the features and every parameter, along a random direction; each evaluation sees untouched
    buffers."""
    known = learned(head, name).values()
    names, tensors = zip(*((n, p) for n, p in head.named_parameters() if any(p is k for k in known)), strict=True)

    def function(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        fresh = copy.deepcopy(head)
        arguments = (x,) if what == "logits" else (x, labels)
        return getattr(functional_call(fresh, dict(zip(names, values, strict=True)), arguments), what)

    leaves = [t.detach().clone().requires_grad_() for t in (features, *tensors)]
    assert torch.autograd.gradcheck(function, leaves, eps=1e-6, atol=2e-6, rtol=1e-5, fast_mode=True)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("what", ["loss", "logits"])
@pytest.mark.parametrize(("name", "case"), cases())
def test_finite_differences(name, case, what, training):
    options = options_of(name, case, 6)
    head = make_head(name, 4, 6, options, torch.float64, 21).train()
    batch = make_batch(name, head, options, 3, 21)
    if name == "ring":
        head(batch.features, batch.labels)
        set_radius(head, 1.7)
    gradcheck(head.train(training), name, batch.features, batch.labels, what)


@pytest.mark.parametrize("name", HEADS)
def test_finite_differences_of_a_mixture(name):
    options = options_of(name, 0, 6)
    head = make_head(name, 4, 6, options, torch.float64, 22).train()
    batch = make_batch(name, head, options, 3, 22, "mixtures")
    if name == "ring":
        head(batch.features, batch.labels)
    gradcheck(head, name, batch.features, batch.labels, "loss")


@pytest.mark.parametrize("name", HEADS)
def test_a_scaled_loss_has_scaled_gradients(name):
    """A loss scaler's factor, or an accumulation step's division, reaches every gradient."""
    options = options_of(name, 0, 6)
    head = make_head(name, 4, 6, options, torch.float64, 23).train()
    batch = make_batch(name, head, options, 5, 23)
    if name == "ring":
        head(batch.features, batch.labels)
    found = []
    for factor in (1.0, 1024.0):
        x, each = batch.features.clone().requires_grad_(), copy.deepcopy(head)
        (each(x, batch.labels).loss * factor).backward()
        found.append([g / factor for g in (x.grad, *(p.grad for p in each.parameters())) if g is not None])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", HEADS)
def test_the_callers_tensors_are_left_alone(name):
    options = options_of(name, 0, 6)
    head = make_head(name, 4, 6, options, torch.float32, 24).train()
    batch = make_batch(name, head, options, 5, 24, "missing")
    features, labels = batch.features.clone(), batch.labels.clone()
    head(batch.features, batch.labels).loss.backward()
    assert torch.equal(features, batch.features) and torch.equal(labels, batch.labels)


@pytest.mark.parametrize("name", HEADS)
def test_a_saved_head_goes_on_as_the_original(name):
    """Everything that decides the next loss is in the state: prototypes, centres, radius, annealing."""
    options = options_of(name, len(CASES[name]) - 1, 6)
    head = make_head(name, 4, 6, options, torch.float64, 25).train()
    batch = make_batch(name, head, options, 5, 25)
    for _ in range(3):
        head(batch.features, batch.labels)
    other = pycls.create_head(name, in_features=4, num_classes=6, **options).double().train()
    other.load_state_dict(copy.deepcopy(head.state_dict()))
    for _ in range(2):
        assert torch.equal(head(2 * batch.features, batch.labels).loss, other(2 * batch.features, batch.labels).loss)


# --- identities -------------------------------------------------------------------------------------------------------


def test_tvmf_at_kappa_0_is_the_cosine():
    need("tvmf", "cosloss")
    base, x, y = starting_point()
    assert_same_loss(twin("tvmf", base, kappa=0.0), twin("cosloss", base), x, y)


def test_lsoftmax_at_margin_1_is_softmax_without_bias():
    need("lsoftmax")
    base, x, y = starting_point()
    assert_same_loss(twin("lsoftmax", base, margin=1), base, x, y)


def test_sphereface_is_lsoftmax_on_unit_prototypes():
    need("lsoftmax", "sphereface")
    base, x, y = starting_point()
    with torch.no_grad():
        base.weight.div_(base.weight.norm(dim=1, keepdim=True))
    flat = {"margin": 3, "lambda_base": 0.0}
    a, b = twin("lsoftmax", base, **flat), twin("sphereface", base, **flat)
    torch.testing.assert_close(a(x, y).loss, b(x, y).loss, rtol=1e-12, atol=0)


def test_without_a_margin_the_cosine_heads_are_one():
    need("normface", "cosface", "arcface", "combined", "subcenter_arcface")
    base, x, y = starting_point()
    reference = twin("normface", base, scale=64.0)
    for name, options in {
        "cosface": {"margin": 0.0},
        "arcface": {"margin": 0.0},
        "combined": {"m1": 1.0, "m2": 0.0, "m3": 0.0},
        "subcenter_arcface": {"margin": 0.0, "num_centers": 1},
        "coco": {},
    }.items():
        scale = {"alpha": 64.0} if name == "coco" else {"scale": 64.0}
        assert_same_loss(twin(name, base, **scale, **options), reference, x, y)


def test_combined_has_cosface_and_arcface_in_it():
    need("cosface", "arcface", "combined")
    base, x, y = starting_point()
    for name, m2, m3 in (("cosface", 0.0, 0.35), ("arcface", 0.5, 0.0)):
        combined = twin("combined", base, scale=16.0, m1=1.0, m2=m2, m3=m3)
        assert_same_loss(combined, twin(name, base, scale=16.0, margin=m2 + m3), x, y)


def test_one_centre_is_arcface():
    need("arcface", "subcenter_arcface")
    base, x, y = starting_point()
    options = {"scale": 16.0, "margin": 0.5}
    assert_same_loss(twin("subcenter_arcface", base, num_centers=1, **options), twin("arcface", base, **options), x, y)


def test_lgm_without_margin_is_softmax_over_half_squared_distances():
    need("lgm")
    base, x, y = starting_point()
    head = twin("lgm", base, alpha=0.0, likelihood_weight=0.0, covariance="identity")
    logits = -torch.cdist(x, base.weight).square() / 2
    torch.testing.assert_close(head(x, y).loss, torch.nn.functional.cross_entropy(logits, y), rtol=1e-12, atol=0)
    torch.testing.assert_close(head(x).logits, logits, rtol=1e-12, atol=1e-12)
    diagonal = twin("lgm", base, alpha=0.3, likelihood_weight=0.1, covariance="diagonal")
    with torch.no_grad():
        diagonal.similarity.log_variance.zero_()
    assert_same_loss(twin("lgm", base, alpha=0.3, likelihood_weight=0.1, covariance="identity"), diagonal, x, y)


def test_balanced_softmax_is_logit_adjustment_at_tau_1():
    need("balanced_softmax", "logit_adjustment")
    base, x, y = starting_point()
    counts = [100, 50, 20, 10, 1]
    a = twin("balanced_softmax", base, class_counts=counts)
    assert_same_loss(a, twin("logit_adjustment", base, class_counts=counts, tau=1.0), x, y)
    balanced = twin("balanced_softmax", base, class_counts=[7] * 5)
    torch.testing.assert_close(balanced(x, y).loss, base(x, y).loss, rtol=1e-12, atol=0)


def test_smooth_top1_has_its_closed_form():
    need("smooth_topk")
    base, x, y = starting_point()
    for tau, alpha in ((1.0, 1.0), (0.3, 0.5)):
        head = twin("smooth_topk", base, k=1, tau=tau, alpha=alpha)
        z = base(x).logits
        margin = alpha * (1 - torch.nn.functional.one_hot(y, 5).double())
        closed = tau * torch.logsumexp((z + margin - z.gather(1, y[:, None])) / tau, dim=1)
        ranked = z.topk(2, dim=1).values
        smooth = ranked[:, 0] - ranked[:, 1] < tau * math.log(1000)
        assert smooth.any()
        torch.testing.assert_close(head(x[smooth], y[smooth]).loss, closed[smooth].mean(), rtol=1e-12, atol=1e-14)


def test_smooth_topk_tends_to_the_hard_one():
    need("smooth_topk", "hard_topk")
    base, x, y = starting_point(classes=9)
    hard = twin("hard_topk", base, k=3, alpha=1.0)(x, y).loss
    gaps = [abs(float(twin("smooth_topk", base, k=3, tau=tau, alpha=1.0)(x, y).loss - hard)) for tau in (1, 0.1, 0.001)]
    assert gaps[0] > gaps[1] > gaps[2] and gaps[2] < 5e-3


def test_ldam_with_equal_counts_is_cosface():
    need("ldam", "cosface")
    base, x, y = starting_point()
    a = twin("ldam", base, class_counts=[30] * 5, max_margin=0.5, scale=30.0)
    assert_same_loss(a, twin("cosface", base, scale=30.0, margin=0.5), x, y)


def test_auxiliaries_of_weight_0_leave_cross_entropy():
    need("center", "ring")
    base, x, y = starting_point()
    for name in ("center", "ring"):
        assert_same_loss(twin(name, base, weight=0.0), base, x, y)


def test_the_learned_scale_follows_its_parameter():
    for name in ("normface", "cosloss", "tvmf"):
        need(name)
        head = pycls.create_head(name, in_features=3, num_classes=4).double()
        raw = scalar_parameter(head, name)
        with torch.no_grad():
            raw.fill_(2.5)
        expected = 2.5 if name == "normface" else math.log1p(math.exp(2.5)) + 1
        assert float(head.scale) == pytest.approx(expected, rel=1e-12)
