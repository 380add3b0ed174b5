"""The references against each other and against torch's own functions: a wrong certificate certifies nothing."""

import math

import pytest
import reference_auxiliaries as auxiliaries
import reference_criteria as criteria
import reference_similarities as similarities
import torch
import torch.nn.functional as F
from references import Reference, evaluate


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * scale


def test_linear_cross_entropy_is_torchs():
    x, w, b, y = draw(7, 3), draw(5, 3, seed=1), draw(5, seed=2), [0, 1, 2, 3, 4, 0, 1]
    result = evaluate("softmax", x, y, {"weight": w, "bias": b}, {})
    torch.testing.assert_close(result.logits, F.linear(x, w, b))
    torch.testing.assert_close(result.loss, F.cross_entropy(F.linear(x, w, b), torch.tensor(y)))


def test_label_smoothing_and_class_weights_are_torchs():
    x, w, y = draw(7, 3), draw(5, 3, seed=1), [0, 1, 2, 3, -1, 0, 1]
    weights = [0.5, 1.0, 2.0, 0.1, 3.0]
    result = evaluate("softmax", x, y, {"weight": w}, {"label_smoothing": 0.1, "class_weights": weights})
    weight = torch.tensor(weights, dtype=torch.float64)
    expected = F.cross_entropy(x @ w.T, torch.tensor(y), weight=weight, label_smoothing=0.1, ignore_index=-1)
    torch.testing.assert_close(result.loss, expected)


def test_bce_and_focal_against_torch():
    z = draw(5, scale=3)
    one_hot = F.one_hot(torch.tensor(2), 5).double()
    torch.testing.assert_close(criteria.bce(z, 2, {}), F.binary_cross_entropy_with_logits(z, one_hot, reduction="sum"))
    p = z.softmax(0)[2]
    torch.testing.assert_close(criteria.focal(z, 2, {"gamma": 2.0}), -((1 - p) ** 2) * p.log())
    torch.testing.assert_close(criteria.focal(z, 2, {"gamma": 0.0}), criteria.cross_entropy(z, 2, {}))


def test_cosines_are_torchs():
    x, w = draw(6), draw(9, 6, seed=1)
    torch.testing.assert_close(similarities.cosines(x, w), F.cosine_similarity(x[None], w))


@pytest.mark.parametrize("m", [1, 2, 3, 4, 5])
def test_psi_is_continuous_decreasing_and_of_the_right_pieces(m):
    theta = torch.linspace(1e-3, math.pi - 1e-3, 20001, dtype=torch.float64)
    values = torch.stack([similarities.psi(torch.cos(t), m) for t in theta])
    steps = values[1:] - values[:-1]
    assert (steps < 1e-12).all() and steps.abs().max() < 1.1 * m * (theta[1] - theta[0])
    first = theta <= math.pi / m
    torch.testing.assert_close(values[first], torch.cos(m * theta[first]))
    assert values[-1] == pytest.approx(1 - 2 * m, abs=1e-3 * m * m)


@pytest.mark.parametrize("m", [0.0, 0.1, 0.5, 1.2])
def test_arc_decreases_over_all_angles(m):
    theta = torch.linspace(1e-3, math.pi - 1e-3, 5001, dtype=torch.float64)
    values = torch.stack([similarities.arc(torch.cos(t), m) for t in theta])
    assert (values[1:] < values[:-1]).all()


@pytest.mark.parametrize(("k", "classes"), [(1, 2), (1, 6), (2, 5), (3, 8), (5, 10), (5, 6)])
@pytest.mark.parametrize("tau", [0.1, 1.0, 3.0])
def test_the_two_forms_of_smooth_topk_agree(k, classes, tau):
    z = draw(classes, seed=k, scale=2).requires_grad_()
    for y in range(classes):
        a = criteria.smooth_topk_subsets(z, y, k, tau, 1.0)
        b = criteria.smooth_topk_polynomials(z, y, k, tau, 1.0)
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)
        (ga,), (gb,) = torch.autograd.grad(a, z), torch.autograd.grad(b, z)
        torch.testing.assert_close(ga, gb, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(("k", "classes"), [(1, 2), (2, 5), (3, 8), (5, 9), (5, 6), (5, 5)])
def test_the_two_forms_of_hard_topk_agree(k, classes):
    for seed in range(20):
        z = draw(classes, seed=seed, scale=2)
        for y in range(classes):
            a = criteria.hard_topk_subsets(z, y, k, 1.0)
            torch.testing.assert_close(a, criteria.hard_topk(z, y, {"k": k, "alpha": 1.0}), rtol=1e-12, atol=1e-13)


def test_smooth_top1_has_its_closed_form_and_smooth_tends_to_hard():
    z, y = draw(7, seed=4), 3
    margin = torch.tensor([0.0 if j == y else 1.0 for j in range(7)], dtype=torch.float64)
    closed = 0.5 * torch.logsumexp((z + margin - z[y]) / 0.5, 0)
    torch.testing.assert_close(criteria.smooth_topk_subsets(z, y, 1, 0.5, 1.0), closed)
    hard = criteria.hard_topk(z, y, {"k": 3, "alpha": 1.0})
    gaps = [abs(float(criteria.smooth_topk_subsets(z, y, 3, tau, 1.0) - hard)) for tau in (0.1, 0.01, 0.001)]
    assert gaps[0] > gaps[2] and gaps[2] < 1e-3


def test_the_fall_back_is_taken_only_far_from_the_boundary():
    z = torch.tensor([9.0, 8.0, 0.0, -1.0, -2.0], dtype=torch.float64)
    o = {"k": 2, "tau": 0.5, "alpha": 1.0}
    assert 2 * 0.5 * math.log(1000) <= 8.0
    torch.testing.assert_close(criteria.smooth_topk(z, 2, o), criteria.hard_topk(z, 2, o))
    z[1] = 6.9
    torch.testing.assert_close(criteria.smooth_topk(z, 2, o), criteria.smooth_topk_subsets(z, 2, 2, 0.5, 1.0))


def test_gaussians_are_torchs_up_to_the_constant():
    x, mean, log_variance = draw(4), draw(3, 4, seed=1), draw(3, 4, seed=2, scale=0.5)
    p, o = {"weight": mean, "log_variance": log_variance}, {"covariance": "diagonal", "alpha": 0.0}
    density = torch.distributions.MultivariateNormal(mean, torch.diag_embed(log_variance.exp())).log_prob(x)
    torch.testing.assert_close(similarities.gaussian(x, p, o), density + 2 * math.log(2 * math.pi))
    torch.testing.assert_close(similarities.gaussian_target(x, 1, p, o, 0), similarities.gaussian(x, p, o)[1])


def test_heads_coincide_where_the_papers_say_so():
    x, w, y = draw(6, 4), draw(5, 4, seed=1), [0, 1, 2, 3, 4, 0]
    p = {"weight": w}
    learned = {"weight": w, "scale": torch.tensor(64.0, dtype=torch.float64)}
    base = evaluate("normface", x, y, learned, {}).loss
    for name, o in {
        "cosface": {"margin": 0.0},
        "arcface": {"margin": 0.0},
        "combined": {"m1": 1.0, "m2": 0.0, "m3": 0.0},
        "subcenter_arcface": {"margin": 0.0, "num_centers": 1},
    }.items():
        torch.testing.assert_close(evaluate(name, x, y, p, {"scale": 64.0, **o}).loss, base)
    plain = evaluate("softmax", x, y, p, {}).loss
    unannealed = {"margin": 1, "lambda_base": 0}
    torch.testing.assert_close(evaluate("lsoftmax", x, y, p, unannealed).loss, plain)
    unit = {"weight": w / w.norm(dim=1, keepdim=True)}
    torch.testing.assert_close(
        evaluate("sphereface", x, y, p, unannealed).loss, evaluate("lsoftmax", x, y, unit, unannealed).loss
    )
    raw = {"weight": w, "scale": torch.zeros((), dtype=torch.float64)}
    cosine = evaluate("cosloss", x, y, raw, {}).loss
    torch.testing.assert_close(evaluate("tvmf", x, y, raw, {"kappa": 0.0}).loss, cosine)
    counts = [50, 20, 10, 5, 1]
    torch.testing.assert_close(
        evaluate("logit_adjustment", x, y, p, {"class_counts": counts, "tau": 1.0}).loss,
        evaluate("balanced_softmax", x, y, p, {"class_counts": counts}).loss,
    )


def test_lambda_follows_the_schedule():
    o = {"lambda_base": 1000.0, "lambda_gamma": 0.12, "lambda_power": 1.0, "lambda_min": 5.0}
    assert similarities.annealed_lambda(o, 0) == 1000
    assert similarities.annealed_lambda(o, 100) == pytest.approx(1000 / 13)
    assert similarities.annealed_lambda(o, 10**6) == 5


def test_ring_variants_against_torch():
    x, r = draw(8, 3, scale=2), torch.tensor(1.7, dtype=torch.float64)
    samples, p = [(v, 0, 1.0) for v in x], {"radius": r}
    norms = x.norm(dim=1)
    for variant, expected in {
        "l2": F.mse_loss(norms, r.expand(8)) * 0.1 / 2,
        "l1": F.smooth_l1_loss(norms, r.expand(8)) * 0.1,
        "relative": F.mse_loss(norms, r.expand(8)) * 0.1 / 2 / norms.mean(),
    }.items():
        torch.testing.assert_close(auxiliaries.ring(samples, p, {"weight": 0.1, "variant": variant}), expected)
    assert auxiliaries.first_radius(samples) == pytest.approx(float(norms.mean()))


def test_centres_move_to_their_samples_alone():
    x, centres = draw(5, 3), draw(3, 3, seed=1)
    new = auxiliaries.updated_centres(list(zip(x, [0, 0, 2, 2, 2], [1.0] * 5, strict=True)), centres, 0.5)
    torch.testing.assert_close(new[1], centres[1])
    torch.testing.assert_close(new[0], centres[0] - 0.5 * (2 * centres[0] - x[0] - x[1]) / 3)


def test_a_sample_without_a_class_and_a_mixture():
    x, w = draw(4, 3), draw(5, 3, seed=1)
    p, o = {"weight": w}, {"scale": 10.0, "margin": 0.2}
    kept = evaluate("cosface", x[[0, 2]], [1, 3], p, o).loss
    torch.testing.assert_close(evaluate("cosface", x, [1, -1, 3, -1], p, o).loss, kept)
    assert evaluate("cosface", x, [-1] * 4, p, o).loss == 0
    a, b = evaluate("cosface", x, [0, 1, 2, 3], p, o).loss, evaluate("cosface", x, [4, 3, 2, 1], p, o).loss
    mixed = evaluate("cosface", x, ([0, 1, 2, 3], [4, 3, 2, 1], 0.3), p, o).loss
    torch.testing.assert_close(mixed, 0.3 * a + 0.7 * b)


def test_a_composition_of_ones_own():
    x, w = draw(4, 3), draw(5, 3, seed=1)
    ref = Reference(similarities.fixed_cosine, similarities.cosface_target, criterion=criteria.focal)
    o = {"scale": 4.0, "margin": 0.1, "gamma": 0.0}
    same = evaluate("cosface", x, [0, 1, 2, 3], {"weight": w}, o).loss
    torch.testing.assert_close(evaluate(ref, x, [0, 1, 2, 3], {"weight": w}, o).loss, same)
