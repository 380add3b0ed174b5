"""Heads by parts: every similarity with every margin of its domain and every criterion; chunks; what changes by the step."""

import inspect
import itertools
import math

import pytest
import torch

import pycls
from pycls.heads import Head
from pycls.heads.center import CenterLoss
from pycls.heads.cross_entropy import CrossEntropy
from pycls.heads.multi_angle import MultiAngle
from pycls.heads.ops import fused
from pycls.heads.ops.chunks import chunks
from pycls.registry import AUXILIARIES, CRITERIA, MARGINS, SIMILARITIES

D, K, N = 4, 5, 6
COUNTS = torch.tensor([50, 20, 10, 4, 1])


def part(registry, name):
    """A component with its own defaults, but a k that 5 classes have and a combined margin that is one."""
    component = registry.get(name)
    wanted = inspect.signature(component).parameters
    given = {"in_features": D, "num_classes": K, "class_counts": COUNTS, "k": 2, "m2": 0.3}
    return component(**{key: value for key, value in given.items() if key in wanted})


def batch(seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(N, D, generator=draw, dtype=torch.float64), torch.randint(0, K, (N,), generator=draw)


def similarities():
    return [(name, {}) for name in SIMILARITIES.names()]


@pytest.mark.parametrize("criterion", CRITERIA.names())
@pytest.mark.parametrize("margin", [None, *MARGINS.names()])
@pytest.mark.parametrize("similarity", SIMILARITIES.names())
def test_any_similarity_with_any_margin_of_its_domain_and_any_criterion(similarity, margin, criterion):
    body, edge = part(SIMILARITIES, similarity), margin and part(MARGINS, margin)
    if edge is not None and edge.domain != body.domain:
        with pytest.raises(ValueError, match=f"{margin} acts on a {edge.domain}"):
            Head(body, edge, part(CRITERIA, criterion))
        return
    head = Head(body, edge, part(CRITERIA, criterion)).double()
    x, y = batch()
    output = head(x.requires_grad_(), y)
    output.loss.backward()
    assert output.logits.shape == (N, K) and torch.isfinite(output.loss)
    assert torch.isfinite(x.grad).all() and torch.isfinite(head.weight.grad).all()
    if edge is not None:
        assert not torch.equal(output.loss, head.eval()(x, y).loss), "the margin acts in training only"


@pytest.mark.parametrize("name", AUXILIARIES.names())
@pytest.mark.parametrize("similarity", SIMILARITIES.names())
def test_any_auxiliary_with_any_similarity_that_it_can_go_with(similarity, name):
    body, extra = part(SIMILARITIES, similarity), part(AUXILIARIES, name)
    if extra.needs_likelihood and not body.log_likelihood:
        with pytest.raises(ValueError, match="log-likelihoods"):
            Head(body, None, CrossEntropy(), [extra])
        return
    head = Head(body, None, CrossEntropy(), [extra]).double()
    x, y = batch()
    output = head(x, y)
    assert set(output.terms) == {"cross_entropy", name}
    torch.testing.assert_close(sum(output.terms.values()), output.loss)


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "computed again"])
@pytest.mark.parametrize("chunk", [1, 2, 4])
@pytest.mark.parametrize("criterion", ["cross_entropy", "logit_adjustment", "bce"])
@pytest.mark.parametrize(("similarity", "options"), [*similarities(), ("cosine", {"num_centers": 3}),
                                                     ("gaussian", {"covariance": "diagonal"})])  # fmt: skip
def test_chunks_change_nothing(similarity, options, criterion, chunk, kept, monkeypatch):
    """Neither with all logits kept for the backward pass nor with each chunk's computed again."""
    results = []
    for size in (0, chunk):
        if kept:
            monkeypatch.setattr(fused, "chunks", lambda *given, size=size: chunks(*given[:3], size))
        torch.manual_seed(3)
        body = SIMILARITIES.get(similarity)(in_features=D, num_classes=K, **options)
        head = Head(body, None, part(CRITERIA, criterion)).double()
        if criterion == "cross_entropy":
            head.criterion.label_smoothing = 0.1
        head.chunk = 0 if kept else size
        x, y = batch()
        output = head(x.requires_grad_(), (y, y.flip(0), 0.3))
        assert (output.logits is None) == (not kept and size > 0 and criterion != "bce")
        loss = output.loss + output.logits.square().mean() if kept else output.loss
        loss.backward()
        seen = output.logits.argmax(dim=1) == y if output.logits is not None else output.correct
        results.append([loss, seen, x.grad, *(p.grad for p in head.parameters())])
    for whole, chunked in zip(*results, strict=True):
        torch.testing.assert_close(chunked, whole, rtol=1e-12, atol=1e-13)


def test_large_numbers_of_classes_are_cut_by_themselves():
    assert len(chunks(1000, 1, torch.empty(128, 512), 0)) == 1
    cut = chunks(200_000, 1, torch.empty(64, 512), 0)
    assert len(cut) > 10 and cut[0][0] == 0 and cut[-1][1] == 200_000
    assert all(a[1] == b[0] for a, b in itertools.pairwise(cut))


def test_the_margin_warms_up_step_by_step():
    x, y = batch()
    head = pycls.create_head("cosface", in_features=D, num_classes=K, scale=8.0).double()
    plain, full = head.eval()(x, y).loss, head.train()(x, y).loss
    head.steps.zero_()
    head.margin_warmup = 4
    losses = [float(head(x, y).loss) for _ in range(6)]
    assert float(plain) < losses[0] < losses[1] < losses[2] < losses[3]
    assert losses[3] == losses[5] == pytest.approx(float(full), rel=1e-12)


def test_geometric_annealing_is_the_ports():
    margin = MultiAngle(4, lambda_base=100.0, lambda_decay=0.99, lambda_min=0.0)
    for t in range(5):
        assert float(margin.annealed(torch.float64)) == pytest.approx(100.0 * 0.99**t, rel=1e-12)
        margin.advance()


def test_annealing_is_part_of_the_state():
    head = pycls.create_head("lsoftmax", in_features=D, num_classes=K).double()
    x, y = batch()
    for _ in range(3):
        head(x, y)
    other = pycls.create_head("lsoftmax", in_features=D, num_classes=K).double()
    other.load_state_dict(head.state_dict())
    assert torch.equal(head(x, y).loss, other(x, y).loss)


def test_evaluation_moves_nothing():
    for name in ("lsoftmax", "center", "ring"):
        head = pycls.create_head(name, in_features=D, num_classes=K).double()
        x, y = batch()
        head(x, y)
        before = {key: value.clone() for key, value in head.state_dict().items()}
        head.eval()(x, y)
        assert all(torch.equal(value, before[key]) for key, value in head.state_dict().items())


def test_post_hoc_adjustment_moves_the_logits_of_evaluation_only():
    head = pycls.create_head("logit_adjustment", D, K, class_counts=COUNTS, tau=0.7, post_hoc=True).double()
    x, y = batch()
    raw = x @ head.weight.t() + head.bias
    torch.testing.assert_close(head.train()(x, y).loss, torch.nn.functional.cross_entropy(raw, y))
    adjusted = raw - 0.7 * (COUNTS / COUNTS.sum().double()).log()
    torch.testing.assert_close(head.eval()(x).logits, adjusted)
    torch.testing.assert_close(head(x, y).loss, torch.nn.functional.cross_entropy(adjusted, y))


def test_deferred_reweighting_comes_into_force_at_its_epoch():
    head = pycls.create_head("ldam", D, K, class_counts=COUNTS, drw_epoch=3, beta=0.9).double()
    plain = pycls.create_head("ldam", D, K, class_counts=COUNTS).double()
    plain.load_state_dict({k: v for k, v in head.state_dict().items() if not k.startswith("criterion")})
    x, y = batch()
    head.set_epoch(2)
    assert float((head(x, y).loss - plain(x, y).loss).detach().abs()) < 1e-13 * 30
    head.set_epoch(3)
    weights = torch.tensor([(1 - 0.9) / (1 - 0.9 ** int(n)) for n in COUNTS], dtype=torch.float64)
    weights *= K / weights.sum()
    z = head(x).logits.detach().clone()
    z[torch.arange(N), y] -= 30.0 * head.margin.margins[y]
    torch.testing.assert_close(head(x, y).loss, torch.nn.functional.cross_entropy(z, y, weight=weights))


def test_centres_by_gradient_are_parameters():
    head = pycls.create_head("center", D, K, weight=0.5, update="gradient").double()
    x, y = batch()
    head(x, y).loss.backward()
    expected = torch.zeros(K, D, dtype=torch.float64)
    for xi, yi in zip(x, y, strict=True):
        expected[yi] += 0.5 * (0 - xi) / N
    assert isinstance(head.centers, torch.nn.Parameter)
    torch.testing.assert_close(head.centers.grad, expected)


def test_centres_are_averaged_with_all_label_sets_of_a_mixture():
    loss = CenterLoss(D, K).double()
    head = Head(SIMILARITIES.get("linear")(D, K), None, CrossEntropy(), [loss]).double()
    x, y = batch()
    head(x, (y, y, 0.25))
    mixed = loss.centers.clone()
    loss.centers.zero_()
    head(x, y)
    torch.testing.assert_close(mixed, loss.centers)


def test_a_label_outside_the_head_is_an_error():
    head = pycls.create_head("softmax", D, K)
    with pytest.raises(ValueError, match="label 5 in a head of 5 classes"):
        head(torch.randn(2, D), torch.tensor([0, 5]))


@pytest.mark.parametrize(("name", "options", "message"), [
    ("cosface", {"scale": -1.0}, "scale"), ("cosface", {"margin": 3.0}, "margin"), ("arcface", {"margin": 4.0}, "margin"),
    ("rbf_softmax", {"gamma": 0.0}, "gamma"), ("tvmf", {"kappa": -0.5}, "kappa"), ("lsoftmax", {"margin": 5}, "margin"),
    ("lgm", {"covariance": "full"}, "covariance"), ("ring", {"variant": "l3"}, "variant"),
    ("smooth_topk", {"k": 5}, "k must be below"), ("center", {"center_rate": 2.0}, "center_rate"),
])  # fmt: skip
def test_numbers_that_cannot_work_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        pycls.create_head(name, D, K, **options)


def test_adacos_scale_is_chosen_from_the_classes():
    assert float(pycls.create_head("arcface", D, 1000, scale=0.0).scale) == pytest.approx(math.sqrt(2) * math.log(999))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("similarity", "options"), [("scaled_linear", {}), ("gaussian", {"covariance": "diagonal"})])
def test_prototypes_are_made_a_chunk_at_a_time(similarity, options, dtype, monkeypatch):
    """With many classes neither all rows nor all their gradients are ever there, only a chunk's."""
    head = Head(SIMILARITIES.get(similarity)(in_features=D, num_classes=K, **options), None, CrossEntropy()).to(dtype)
    head.chunk = 2
    kind = type(head.similarity.prototypes())
    forward, backward, derived, returned = kind.forward, kind.backward, [], []

    def forward_some(inputs, out):
        derived.append((len(inputs[0]), out is None))
        return forward(inputs, out)

    def backward_some(inputs, rows, grad_outputs, grad_inputs):
        returned.append((len(inputs[0]), grad_outputs[0].data_ptr()))
        backward(inputs, rows, grad_outputs, grad_inputs)

    monkeypatch.setattr(kind, "forward", staticmethod(forward_some))
    monkeypatch.setattr(kind, "backward", staticmethod(backward_some))
    x, y = batch()
    head(x.to(dtype), y).loss.backward()
    sizes = [min(2, K - low) for low in range(0, K, 2)]
    assert derived == [(size, low == 0) for _ in range(2) for low, size in enumerate(sizes)]  # one buffer a pass
    assert [size for size, _ in returned] == sizes and len({at for _, at in returned}) == 1
