"""Where formulas break: angles of 0 and pi, nothing but zeros, logits of ten thousand, half precision."""

import math

import pytest
import torch
from harness import CASES, FLAT, Batch, certify, make_batch, make_head, options_of, scalar_parameter, too_large

import pycls

HEADS = [name for name in pycls.list_heads() if name in CASES]
EVERY = [(name, case) for name in HEADS for case in range(len(CASES[name]))]
DTYPES = [pytest.param(torch.float64, id="f64"), pytest.param(torch.float32, id="f32")]

MARGINS = {
    "lsoftmax": [({"margin": m, **FLAT}, math.pi / m, float(m)) for m in (2, 3, 4)],
    "sphereface": [({"margin": m, **FLAT}, math.pi / m, float(m)) for m in (2, 3, 4)],
    "cosface": [({"scale": 64.0, "margin": 0.35}, 1.0, 1.0)],
    "arcface": [
        ({"scale": 64.0, "margin": 0.5, "easy_margin": False}, math.pi - 0.5, 1.0),
        ({"scale": 64.0, "margin": 0.5, "easy_margin": True}, math.pi / 2, 1.0),
    ],
    "combined": [
        ({"scale": 64.0, "m1": 1.0, "m2": 0.3, "m3": 0.2}, math.pi - 0.3, 1.0),
        ({"scale": 64.0, "m1": 1.35, "m2": 0.2, "m3": 0.1}, (math.pi - 0.2) / 1.35, 1.35),
    ],
    "subcenter_arcface": [({"scale": 64.0, "margin": 0.5, "num_centers": 1}, math.pi - 0.5, 1.0)],
}
"""Options, the angle of the first kink, and the steepest slope in the angle, of every margin."""

LINEAR = ("softmax", "lsoftmax", "sphereface", "hard_topk", "smooth_topk")
"""Heads whose logits are homogeneous in the features."""

ANGLED = [(name, i) for name, rows in MARGINS.items() if name in HEADS for i in range(len(rows))]


def finite(head: torch.nn.Module, features: torch.Tensor, labels) -> tuple[torch.Tensor, torch.Tensor]:
    """Runs a step; fails unless loss, logits and every gradient are finite. Returns loss and features' gradient."""
    features = features.detach().clone().requires_grad_()
    head.zero_grad()
    output = head(features, labels)
    output.loss.backward()
    assert torch.isfinite(output.loss), f"the loss is {output.loss}"
    assert torch.isfinite(output.logits).all(), "logits are not finite"
    assert all(torch.isfinite(t).all() for t in output.terms.values()), "terms are not finite"
    for what, tensor in (("features", features), *head.named_parameters()):
        assert tensor.grad is None or torch.isfinite(tensor.grad).all(), f"the gradient of {what} is not finite"
    return output.loss.detach(), features.grad


def fan(name: str, options: dict, dtype: torch.dtype, angles: torch.Tensor) -> tuple[torch.nn.Module, torch.Tensor]:
    """A head with w_0 = e_0 and the rest at right angles to the plane of the features; features at these angles."""
    head = pycls.create_head(name, in_features=4, num_classes=3, **options).to(dtype).train()
    with torch.no_grad():
        head.weight.zero_()
        head.weight[torch.tensor([0, 1, 2]), torch.tensor([0, 2, 3])] = 1.0
    features = torch.zeros(len(angles), 4, dtype=torch.float64)
    features[:, 0], features[:, 1] = 2 * torch.cos(angles), 2 * torch.sin(angles)
    return head, features.to(dtype)


@pytest.mark.parametrize("dtype", [*DTYPES, pytest.param(torch.bfloat16, id="bf16")])
@pytest.mark.parametrize(("name", "row"), ANGLED)
def test_every_angle_has_a_finite_bounded_gradient(name, row, dtype):
    options, kink, slope = MARGINS[name][row]
    offsets = torch.tensor([-1e-3, -1e-7, -1e-15, 0.0, 1e-15, 1e-7, 1e-3], dtype=torch.float64)
    near = torch.tensor([0.0, 1e-12, 1e-8, 1e-6, 1e-4, 1e-3], dtype=torch.float64)
    angles = torch.cat([near, kink + offsets, math.pi - near, -near])
    work = torch.float32 if dtype == torch.bfloat16 else dtype
    head, features = fan(name, options, work, angles)
    features = features.to(dtype)
    for x in features:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            _, grad = finite(head, x[None], torch.tensor([0]))
        # d loss / d x is at most (1 - p) (|d target / d x| + max of the others'), and |x| = 2
        steepest = options.get("scale", 1.0 + 2 * slope) * slope
        assert float(grad.norm()) <= 2.5 * steepest, "a gradient explodes near an angle where the cosine is flat"


@pytest.mark.parametrize(("name", "row"), ANGLED)
def test_exact_close_to_the_ends_of_the_angle(name, row):
    """1e-4 rad from 0 and pi, float64: 1 - cos^2 keeps 8 digits there, so 1e-7 is what any form by cosines can hold."""
    options, kink, _ = MARGINS[name][row]
    angles = [1e-4, 1e-3, kink - 1e-4]
    if options.get("m1", 1.0) == 1.0:
        angles += [kink + 1e-4, math.pi - 1e-3, math.pi - 1e-4]
    head, features = fan(name, options, torch.float64, torch.tensor(angles, dtype=torch.float64))
    for x in features:
        errors = certify(name, head, Batch(x[None], torch.tensor([0])), options, floor=1e-3)
        assert not too_large(errors, 1e-7), errors


@pytest.mark.parametrize(("name", "row"), ANGLED)
def test_the_loss_grows_with_the_angle(name, row):
    options, _, _ = MARGINS[name][row]
    if options.get("easy_margin"):
        pytest.skip("the easy margin jumps at pi / 2 by its definition")
    angles = torch.linspace(0, math.pi, 721, dtype=torch.float64)
    head, features = fan(name, options, torch.float64, angles)
    losses = torch.stack([head(x[None], torch.tensor([0])).loss.detach() for x in features])
    assert (losses[1:] - losses[:-1] > -1e-9).all(), "a worse angle to the own prototype must never cost less"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("name", "case"), EVERY)
def test_zeros(name, case, training, dtype):
    options = options_of(name, case, 5)
    for zero_features in (False, True):
        for zero_rows in (slice(0, 0), slice(0, 3), slice(None)):
            head = make_head(name, 4, 5, options, dtype, 1).train(training)
            batch = make_batch(name, head, options, 6, 1)
            with torch.no_grad():
                head.weight[zero_rows] = 0
            features = torch.zeros_like(batch.features) if zero_features else batch.features
            if zero_features and name == "ring":
                head.train()(batch.features, batch.labels)
                head.train(training)
            finite(head, features, batch.labels)
            mixed = batch.features.clone()
            mixed[0] = 0
            finite(head, mixed, batch.labels)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("factor", [1e-12, 1e-6, 1e4, 1e8])
@pytest.mark.parametrize(("name", "case"), EVERY)
def test_tiny_and_huge_features(name, case, factor, dtype):
    options = options_of(name, case, 5)
    head = make_head(name, 4, 5, options, dtype, 2).train()
    batch = make_batch(name, head, options, 6, 2)
    finite(head, batch.features * factor, batch.labels)
    finite(head.eval(), batch.features * factor, batch.labels)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [n for n in HEADS if n in LINEAR])
def test_logits_of_ten_thousand_are_exact(name, dtype):
    """Where the logits are linear in the features the loss at 1e4 is known to full relative precision."""
    for case in range(len(CASES[name])):
        options = options_of(name, case, 5)
        head = make_head(name, 4, 5, options, dtype, 3).train()
        batch = make_batch(name, head, options, 6, 3)
        batch.features = batch.features * (1e4 / float(head(batch.features).logits.detach().abs().max()))
        fresh = make_head(name, 4, 5, options, dtype, 3).train()
        errors = certify(name, fresh, batch, options)
        assert not too_large(errors, {torch.float64: 1e-9, torch.float32: 2e-5}[dtype]), errors


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [n for n in HEADS if "scale" in CASES[n][0] or n == "coco"])
def test_scales_of_ten_thousand(name, dtype):
    options = {**options_of(name, 0, 5), ("alpha" if name == "coco" else "scale"): 1e4}
    head = make_head(name, 4, 5, options, dtype, 4).train()
    batch = make_batch(name, head, options, 6, 4)
    finite(head, batch.features, batch.labels)
    finite(head.eval(), batch.features, batch.labels)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("classes", [6, 10])
def test_a_temperature_of_a_hundredth(classes, k, dtype):
    if "smooth_topk" not in HEADS:
        pytest.skip("no head named smooth_topk")
    for tau in (0.01, 0.001):
        options = {"k": k, "tau": tau, "alpha": 1.0}
        for seed, spread in ((0, 1.0), (1, 0.01), (2, 30.0)):
            head = make_head("smooth_topk", 4, classes, options, dtype, seed).train()
            batch = make_batch("smooth_topk", head, options, 12, seed)
            batch.features = batch.features * spread
            # float32: a logit's rounding of 1e-7 is one of 1e-7 |s| / (k tau) in the exponent of each weight
            size = float(head(batch.features).logits.detach().abs().max()) / (k * tau)
            allowed = {torch.float64: 1e-9, torch.float32: 2e-5}[dtype]
            rounding = 8 * torch.finfo(dtype).eps * size
            errors = certify("smooth_topk", head, batch, options)
            assert not too_large(errors, max(allowed, rounding)), errors


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("name", "case"), EVERY)
def test_autocast_computes_in_float32(name, case, training, half):
    """Under autocast a head's numbers are those of float32 on the same (rounded) features."""
    options = options_of(name, case, 10)
    heads = [make_head(name, 16, 10, options, torch.float32, 5).train(training) for _ in range(2)]
    batch = make_batch(name, heads[0], options, 12, 5)
    rounded = batch.features.to(half)
    with torch.autocast("cpu", dtype=half):
        loss, grad = finite(heads[0], rounded, batch.labels)
        logits = heads[0](rounded).logits
    exact, exact_grad = finite(heads[1], rounded.float(), batch.labels)
    assert loss.dtype == torch.float32 and logits.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(logits, heads[1](rounded.float()).logits, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(grad, exact_grad.to(half), rtol=0.02, atol=1e-6)
    for one, other in zip(heads[0].parameters(), heads[1].parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("name", HEADS)
def test_autocast_at_the_extremes(name, half):
    options = options_of(name, 0, 5)
    head = make_head(name, 4, 5, options, torch.float32, 6).train()
    batch = make_batch(name, head, options, 5, 6)
    per_class = len(head.weight) // 5
    own = head.weight.detach()[batch.labels * per_class]
    # a cosine's gradient is s / |x|: what float16, with its largest number of 65504, can hold of it
    small = 1e-7 if half == torch.bfloat16 else 1e-2
    with torch.autocast("cpu", dtype=half):
        for features in (own, -own, torch.zeros_like(own), 1e4 * own / own.abs().max(), small * own / own.norm(dim=1).max()):
            loss, _ = finite(head, features.to(half), batch.labels)
            assert loss.dtype == torch.float32


@pytest.mark.parametrize("name", [n for n in ("normface", "cosloss", "tvmf") if n in HEADS])
def test_extreme_learned_scales(name):
    for value in (-50.0, 50.0, 500.0):
        head = make_head(name, 4, 5, options_of(name, 0, 5), torch.float32, 7).train()
        batch = make_batch(name, head, {}, 6, 7)
        with torch.no_grad():
            scalar_parameter(head, name).fill_(value)
        finite(head, batch.features, batch.labels)
