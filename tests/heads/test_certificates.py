"""The certificate of every head: value and gradients against the per-sample float64 reference of its formula."""

import pytest
import reference_auxiliaries as auxiliaries
import torch
from harness import (
    ANGULAR,
    CASES,
    cases,
    certify,
    feature_scale,
    gradient,
    make_batch,
    make_head,
    options_of,
    scalar_parameter,
    set_radius,
    too_large,
)
from references import REFERENCES

import pycls

TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5}
STRICT = {torch.float64: 1e-10, torch.float32: 1e-5}
STRICTLY = {"softmax", "rbf_softmax", "cosface", "center"}
DTYPES = [pytest.param(torch.float64, id="f64"), pytest.param(torch.float32, id="f32")]
SIZES = [(1, 1, 1), (1, 1, 3), (7, 3, 5), (16, 8, 40)]
SEEDS = [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)]


def tolerance(name: str, case: int, dtype: torch.dtype) -> float:
    """1e-10 and 1e-5 for the heads of the first release, 1e-9 and 2e-5 for all others.

    t-VMF's similarity has slope 1 + 2 kappa where cos is 1, so the rounding of a float32 cosine, whatever it was
    computed by, is that much larger in the logits: at kappa 64 four roundings are 6e-5.
    """
    allowed = (STRICT if name in STRICTLY else TOLERANCE)[dtype]
    slope = 1 + 2 * abs(CASES[name][case].get("kappa", 0.0))
    return max(allowed, 4 * torch.finfo(dtype).eps * slope)


def prepared(name, case, size, dtype, seed, kind="labels", training=True):
    """Head, batch and options; the ring loss's radius has already started."""
    n, dim, classes = size
    options = options_of(name, case, classes)
    head = make_head(name, dim, classes, options, dtype, seed).train(training)
    batch = make_batch(name, head, options, n, seed, kind)
    if name == "ring":
        head.train()(batch.features, batch.labels)
        set_radius(head, 0.8 * float(batch.features.norm(dim=1).mean()))
        head.train(training)
    return head, batch, options


@pytest.mark.parametrize("name", pycls.list_heads())
def test_every_entry_has_a_reference(name):
    assert name in REFERENCES, f"the head {name} has no reference: write one in tests/heads/references.py"
    assert CASES.get(name), f"the head {name} has no case to be certified with: tests/heads/harness.py"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("name", "case"), cases())
def test_training_value_and_gradient(name, case, size, dtype, seed):
    degenerate = 1 in size[1:]
    if name.endswith("_topk") and size[2] == 1:
        with pytest.raises(ValueError, match="k must be below the number of classes"):
            prepared(name, case, size, dtype, seed)
        return
    head, batch, options = prepared(name, case, size, dtype, seed)
    # at D = 1 or K = 1 exact gradients vanish, and rounding is to be measured against the logits' own size
    floor = 1.0 if degenerate else 1e-6
    errors = certify(name, head, batch, options, gradients=not (degenerate and name in ANGULAR), floor=floor)
    assert not too_large(errors, tolerance(name, case, dtype)), errors


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "case"), [c for c in cases() if c[1] == 0])
def test_training_value_and_gradient_at_1000_classes(name, case, dtype):
    # a naive loop takes its time: all 64 samples where the requirement names them
    head, batch, options = prepared(name, case, (64 if name in STRICTLY else 8, 128, 1000), dtype, 0)
    errors = certify(name, head, batch, options)
    assert not too_large(errors, tolerance(name, case, dtype)), errors


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "case"), cases())
def test_without_margin_in_eval_mode(name, case, dtype):
    head, batch, options = prepared(name, case, (7, 3, 5), dtype, 5, training=False)
    errors = certify(name, head, batch, options)
    assert not too_large(errors, tolerance(name, case, dtype)), errors
    logits = head(batch.features).logits
    assert torch.equal(head(batch.features, batch.labels).logits, logits)
    head.train()
    torch.testing.assert_close(head(batch.features, batch.labels).logits, logits)


@pytest.mark.parametrize("kind", ["missing", "mixture", "mixtures"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "case"), cases())
def test_missing_targets_and_mixtures(name, case, dtype, training, kind):
    # more classes than a vector has places, where compiled C takes them: its passes differ there
    for size in ((7, 3, 5), *([(16, 8, 40)] if dtype == torch.float32 and case < 2 else [])):
        head, batch, options = prepared(name, case, size, dtype, 7, kind, training)
        errors = certify(name, head, batch, options)
        assert not too_large(errors, tolerance(name, case, dtype)), errors


@pytest.mark.parametrize("name", [n for n in pycls.list_heads() if n in CASES])
def test_a_batch_without_any_target_costs_nothing(name):
    head, batch, _ = prepared(name, 0, (7, 3, 5), torch.float64, 8)
    features = batch.features.requires_grad_()
    output = head(features, torch.full((7,), -1))
    assert output.loss == 0 and torch.isfinite(output.logits).all()
    output.loss.backward()
    assert all(not gradient(tensor).any() for tensor in (features, *head.parameters()))


@pytest.mark.parametrize("steps", [0, 1, 7])
@pytest.mark.parametrize("name", ["lsoftmax", "sphereface"])
def test_annealing_counts_training_passes(name, steps):
    if name not in pycls.list_heads():
        pytest.skip(f"no head named {name} yet")
    for case in range(len(CASES[name])):
        head, batch, options = prepared(name, case, (7, 3, 5), torch.float64, 3)
        for _ in range(steps):
            head(batch.features, batch.labels)
            head.eval()(batch.features, batch.labels)
            head.train()
        twin = make_head(name, 3, 5, options, torch.float64, 4)
        twin.load_state_dict(head.state_dict())
        for each in (twin, head):
            errors = certify(name, each, batch, options, step=steps)
            assert not too_large(errors, 1e-9), errors


@pytest.mark.parametrize("dtype", DTYPES)
def test_centres_move_by_the_papers_rule(dtype):
    for seed in range(3):
        head, batch, options = prepared("center", 0, (16, 8, 5), dtype, seed, "missing")
        before = head.centers.double().clone()
        head(batch.features, batch.labels).loss.backward()
        samples = [(x, y, 1.0) for x, y in zip(batch.features.double(), batch.labels.tolist(), strict=True)]
        expected = auxiliaries.updated_centres(samples, before, options["center_rate"])
        torch.testing.assert_close(head.centers.double(), expected, rtol=STRICT[dtype], atol=STRICT[dtype])
        assert not torch.equal(before, expected)
        held = head.centers.clone()
        head.eval()(batch.features, batch.labels)
        head.train()(batch.features)
        assert torch.equal(head.centers, held)


def test_the_ring_starts_at_the_first_batchs_mean_norm():
    if "ring" not in pycls.list_heads():
        pytest.skip("no head named ring yet")
    for case in range(len(CASES["ring"])):
        options = options_of("ring", case, 5)
        head = make_head("ring", 3, 5, options, torch.float64, 0).train()
        batch = make_batch("ring", head, options, 7, 0)
        head(batch.features, batch.labels)
        expected = auxiliaries.first_radius([(x, 0, 1.0) for x in batch.features])
        assert float(scalar_parameter(head, "ring")) == pytest.approx(expected, rel=1e-12)
        head(2 * batch.features, batch.labels)
        assert float(scalar_parameter(head, "ring")) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["normface", "cosloss", "tvmf"])
def test_the_learned_scale_can_be_read(name):
    if name not in pycls.list_heads():
        pytest.skip(f"no head named {name} yet")
    options = options_of(name, 0, 5)
    head = pycls.create_head(name, in_features=3, num_classes=5, **options)
    start = options.get("scale", 1 + 0.6931471805599453)
    assert float(head.scale) == pytest.approx(start, rel=1e-6)


def test_reference_data_is_not_flat():
    """The batches put RBF kernels and Gaussian distances where they have a gradient."""
    for name, dim in (("rbf_softmax", 128), ("lgm", 8)):
        options = options_of(name, 0, 5)
        assert 0.01 < feature_scale(name, options, dim) < 3
