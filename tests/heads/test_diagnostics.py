"""Warnings that a user of a head needs, and the numbers they come from."""

import math

import pytest
import torch

import pycls
from pycls.heads import diagnostics


def test_sensible_defaults_are_not_warned_about():
    for name in ("cosface", "arcface", "coco", "softmax", "rbf_softmax", "normface"):
        assert diagnostics.static_warnings(pycls.create_head(name, in_features=128, num_classes=10)) == [] or name == "coco"
    assert diagnostics.static_warnings(pycls.create_head("arcface", in_features=512, num_classes=1000)) == []


def test_a_scale_too_small_for_the_classes():
    (warning,) = diagnostics.static_warnings(pycls.create_head("coco", in_features=512, num_classes=1000))
    assert "6.25 is too small for 1000 classes" in warning and f"{math.sqrt(2) * math.log(999):.1f}" in warning


def test_a_margin_wider_than_the_prototypes_can_be_apart():
    (warning,) = diagnostics.static_warnings(pycls.create_head("cosface", in_features=2, num_classes=10, margin=0.35))
    assert "cannot be met" in warning and "0.19" in warning


def test_a_scale_too_small_for_the_margin():
    head = pycls.create_head("cosface", in_features=128, num_classes=100, scale=10.0, margin=0.6)
    (warning,) = diagnostics.static_warnings(head)
    assert "larger scale or a smaller margin" in warning


def test_best_probability_is_reached_by_perfect_features():
    """K <= D + 1: prototypes on a simplex, features on prototypes."""
    classes, dim = 4, 3
    simplex = torch.eye(classes, dtype=torch.float64) - 1 / classes
    simplex = torch.linalg.svd(simplex).U[:, :dim] * torch.linalg.svd(simplex).S[:dim]
    head = pycls.create_head("coco", dim, classes, alpha=5.0).double()
    with torch.no_grad():
        head.weight.copy_(simplex)
    best = head(simplex).logits.softmax(dim=1).diagonal()
    assert torch.allclose(best, torch.tensor(diagnostics.best_probability(5.0, classes, dim, 0.0), dtype=torch.float64))


def test_telemetry_against_plain_numbers():
    head = pycls.create_head("cosface", in_features=3, num_classes=4, scale=10.0, margin=0.3)
    x, y = torch.randn(20, 3), torch.randint(0, 4, (20,))
    found = {name: float(value) for name, value in diagnostics.head_stats(head, x, y).items()}
    unit = torch.nn.functional.normalize
    cos = unit(x) @ unit(head.weight.detach()).t()
    own = cos[torch.arange(20), y]
    others = cos.clone()
    others[torch.arange(20), y] = -9
    assert found["angle_own"] == pytest.approx(float(torch.rad2deg(own.acos()).mean()), rel=1e-5)
    assert found["angle_nearest"] == pytest.approx(float(torch.rad2deg(others.max(1).values.acos()).mean()), rel=1e-5)
    assert found["feature_norm"] == pytest.approx(float(x.norm(dim=1).mean()), rel=1e-6)
    assert found["weight_norm"] == pytest.approx(float(head.weight.norm(dim=1).mean()), rel=1e-6)
    assert found["margin_violations"] == pytest.approx(float((own - 0.3 <= others.max(1).values).float().mean()))
    assert found["errors_without_margin"] == pytest.approx(float((own <= others.max(1).values).float().mean()))


@pytest.mark.parametrize("name", pycls.list_heads())
def test_telemetry_of_every_head_leaves_it_alone(name):
    options = {"class_counts": [5, 4, 3, 2]} if name in ("ldam", "logit_adjustment", "balanced_softmax") else {}
    if name.endswith("topk"):
        options["k"] = 2
    head = pycls.create_head(name, 3, 4, **options)
    x, y = torch.randn(8, 3), torch.tensor([0, 1, 2, 3, -1, 0, 1, 2])
    head(x, y)
    before = {key: value.clone() for key, value in head.state_dict().items()}
    found = diagnostics.head_stats(head.eval(), x, y)
    assert not head.training and all(torch.isfinite(value) for value in found.values())
    assert all(torch.equal(value, before[key]) for key, value in head.state_dict().items())
    assert ("lambda" in found) == (name in ("lsoftmax", "sphereface")) and ("underflow" in found) == (name == "rbf_softmax")


def test_underflowing_kernels_are_told():
    head = pycls.create_head("rbf_softmax", 64, 10)
    far = {k: float(v) for k, v in diagnostics.head_stats(head, 20 * torch.randn(32, 64), torch.randint(0, 10, (32,))).items()}
    assert far["underflow"] > 0.9 and "RBF kernels" in diagnostics.stat_warnings(far)["underflow"]
    x, y = 0.1 * torch.randn(32, 64), torch.randint(0, 10, (32,))
    near = {k: float(v) for k, v in diagnostics.head_stats(head, x, y).items()}
    assert diagnostics.stat_warnings(near) == {}


def test_a_margin_nobody_meets_is_told():
    assert "HEAD.MARGIN_WARMUP" in diagnostics.stat_warnings({"margin_violations": 1.0, "errors_without_margin": 0.4})["margin"]
    assert diagnostics.stat_warnings({"margin_violations": 1.0, "errors_without_margin": 1.0}) == {}


def test_the_monitor_reads_the_last_training_batch_and_warns_once(caplog):
    head = pycls.create_head("rbf_softmax", 64, 10)
    monitor = diagnostics.HeadMonitor(head)
    assert monitor.read() == {}
    x, y = 20 * torch.randn(32, 64), torch.randint(0, 10, (32,))
    head(x, (y, y.flip(0), 0.6))
    head.eval()(torch.zeros(3, 64), y[:3])
    expected = {name: float(value) for name, value in diagnostics.head_stats(head, x, y).items()}
    assert monitor.read() == pytest.approx(expected) and monitor.read() == pytest.approx(expected)
    assert sum("RBF kernels" in message for message in caplog.messages) == 1
