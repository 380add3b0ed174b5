"""Centre and ring loss, derived prototypes: how they move and what has a gradient; also over several processes."""

import os
import sys
from pathlib import Path

import forked
import pytest
import torch
from harness import gradients_of, make_batch, make_head

import pycls
from pycls.heads.center import CenterLoss
from pycls.heads.lgm import GaussianRows
from pycls.heads.lws import ScaledRows

ROOT = Path(__file__).parents[2]
HEADS = [("center", {}), ("ring", {}), ("lws", {}), ("lgm", {"covariance": "diagonal"})]
DERIVED = [("lws", {}), ("lgm", {"covariance": "diagonal"})]


def test_samples_of_one_class_all_see_its_old_centre() -> None:
    """And centres of classes that the batch has not keep their bits, as those do whose samples have no weight."""
    loss = CenterLoss(70, 6, center_rate=0.5)
    loss.centers.normal_()
    before, x = loss.centers.clone(), torch.randn(5, 70)
    labels, weights = torch.tensor([2, 4, 2, 2, 0]), torch.tensor([1.0, 0.3, 1.0, 0.25, 0.0])
    loss.update(x, labels, weights)
    for k, rows in ((2, [0, 2, 3]), (4, [1])):
        pull = (weights[rows, None] * (before[k] - x[rows])).sum(dim=0) / (1 + weights[rows].sum())
        torch.testing.assert_close(loss.centers[k], before[k] - 0.5 * pull)
    assert torch.equal(loss.centers[[0, 1, 3, 5]], before[[0, 1, 3, 5]])


def test_the_gradient_is_by_the_centres_before_they_move() -> None:
    head = make_head("center", 6, 5, {"weight": 1.0, "center_rate": 0.5}, torch.float64, 0)
    batch = make_batch("center", head, {}, 12, 0)
    before, x = head.centers.clone(), batch.features.requires_grad_()
    head.weight.data.zero_()  # nothing of the cross entropy reaches the features
    head(x, batch.labels).loss.backward()
    assert not torch.equal(head.centers, before)
    torch.testing.assert_close(x.grad, (x.detach() - before[batch.labels]) / 12)


def test_a_step_that_moves_centres_is_seen_by_autograd() -> None:
    loss, x = CenterLoss(3, 4), torch.randn(2, 3, requires_grad=True)
    value = (x * loss.centers[:2]).sum()
    loss.update(x.detach(), torch.tensor([0, 1]), torch.ones(2))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


@pytest.mark.parametrize("bad", [-1, 4])
def test_a_label_that_is_no_class_is_refused(bad: int) -> None:
    loss, x = CenterLoss(3, 4), torch.randn(2, 3)
    for call in (lambda *rest: loss(*rest[:2], x[:, 0], rest[2]), loss.update):
        with pytest.raises((IndexError, RuntimeError), match=r"out of (range|bounds)"):
            call(x, torch.tensor([0, bad]), torch.ones(2))
    assert not loss.centers.any()


def test_large_and_small_variances() -> None:
    """In float32 as in float64."""
    mean, log_variance = torch.randn(7, 20), torch.empty(7, 20).uniform_(-40, 40)
    exact = GaussianRows(mean.double(), log_variance.double()).materialize()
    for one, other in zip(GaussianRows(mean, log_variance).materialize(), exact, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=2e-6, atol=1e-4)


def test_the_rows_of_a_gaussian_are_its_density() -> None:
    mean, log_variance, x = (torch.randn(n, 6, dtype=torch.float64) for n in (4, 4, 5))
    rows, bias, determinants = GaussianRows(mean, log_variance).materialize()
    covariance = torch.diag_embed(log_variance.exp())
    torch.testing.assert_close(determinants, torch.linalg.slogdet(covariance).logabsdet)
    scores = torch.cat((x.square(), x), dim=1) @ rows.t() + bias
    density = torch.distributions.MultivariateNormal(mean, covariance).log_prob(x[:, None])
    torch.testing.assert_close(scores, density + 3 * torch.tensor(2 * torch.pi, dtype=torch.float64).log())


@pytest.mark.parametrize("out", [False, True], ids=["new memory", "given memory"])
@pytest.mark.parametrize("kind", [ScaledRows, GaussianRows])
def test_derived_rows_are_written_where_they_are_asked_for(kind, out: bool) -> None:
    inputs = [torch.randn(5, 6), *((torch.randn(5), torch.rand(5)) if kind is ScaledRows else (torch.randn(5, 6),))]
    kept = [value.clone() for value in inputs]
    expected = kind.forward(inputs, None)
    memory = torch.full((8, *expected.rows.shape[1:]), torch.nan)
    found = kind.forward(inputs, memory[:5] if out else None)
    assert (found.rows.data_ptr() == memory.data_ptr()) == out and memory[5:].isnan().all()
    assert all(a is b or torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert all(map(torch.equal, inputs, kept))


@pytest.mark.parametrize(("name", "options"), DERIVED)
def test_derived_prototypes_alone_have_gradients(name: str, options: dict) -> None:
    """As for a regulariser on them: of the rows, of the bias, of the log-determinants."""
    prototypes = make_head(name, 6, 5, options, torch.float64, 0).similarity.prototypes()
    kind, inputs = type(prototypes), [value.detach().requires_grad_() for value in prototypes.inputs]
    found = kind(*inputs).materialize()
    for k, value in enumerate(found):
        if value is not None:
            assert torch.autograd.gradcheck(lambda *inputs, k=k: kind(*inputs).materialize()[k], inputs)
    both = [value.sum() for value in found if value is not None]
    torch.autograd.grad(sum(both), inputs)


@pytest.mark.parametrize(("name", "options"), HEADS)
def test_only_what_learns_has_a_gradient(name: str, options: dict) -> None:
    """Frozen features, and a second stage in which the classes' scales learn alone; compiled and by torch's operations."""
    learns = {"lws": "factor", "lgm": "log_variance", "ring": "radius", "center": "bias"}[name]
    for dtype in (torch.float32, torch.float64):
        for chunk in (0, 2):
            head = pycls.create_head(name, in_features=4, num_classes=5, **options).to(dtype)
            head.chunk = chunk
            for key, parameter in head.named_parameters():
                parameter.requires_grad_(key.endswith(learns))
            head(torch.randn(6, 4, dtype=dtype), torch.arange(6) % 5).loss.backward()
            for key, parameter in head.named_parameters():
                assert (parameter.grad is not None) == key.endswith(learns)


@pytest.mark.parametrize(("name", "options"), HEADS)
def test_steps_of_three_threads_give_the_same_bits_twice(name: str, options: dict) -> None:
    threads, x, y = torch.get_num_threads(), torch.randn(600, 150), torch.arange(600) % 40
    head = make_head(name, 150, 40, options, torch.float32, 0)
    before = {key: value.clone() for key, value in head.state_dict().items()}
    torch.set_num_threads(3)
    try:
        runs = []
        for _ in range(2):
            head.load_state_dict(before)
            leaf = x.clone().requires_grad_()
            loss = head(leaf, y).loss
            runs.append([loss.detach(), *gradients_of(loss, [leaf, *head.parameters()]), *(b.clone() for b in head.buffers())])
    finally:
        torch.set_num_threads(threads)
    assert all(map(torch.equal, *runs))


ONE_OF_TWO = """
import sys, torch, torch.distributed as dist
from pycls.heads.center import CenterLoss
from pycls.heads.ring import RingLoss
rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
torch.manual_seed(0)
x, labels = torch.randn(2, 6, 70), torch.randint(4, (2, 6))
center, ring, weights = CenterLoss(70, 4), RingLoss(), torch.full((6,), 1 / 6)
for _ in range(2):
    center.update(x[rank], labels[rank], torch.ones(6))
    ring((1 + rank) * x[rank], labels[rank], weights, weights)
    x = 2 * x
torch.save((center.centers, ring.radius.detach()), f"{folder}/{rank}")
dist.barrier()
dist.destroy_process_group()
"""


def test_centres_and_radius_are_those_of_all_processes(tmp_path: Path) -> None:
    running = [forked.Process([sys.executable, "-c", ONE_OF_TWO, str(rank), str(tmp_path)],
                                env={**os.environ, "PYTHONPATH": str(ROOT)}) for rank in range(2)]  # fmt: skip
    assert all(process.wait(timeout=120) == 0 for process in running)
    (centers, radius), others = (torch.load(tmp_path / str(rank)) for rank in range(2))
    assert all(map(torch.equal, (centers, radius), others))
    torch.manual_seed(0)
    x, labels = torch.randn(2, 6, 70), torch.randint(4, (2, 6))
    torch.testing.assert_close(radius, (x[0].norm(dim=1).mean() + 2 * x[1].norm(dim=1).mean()) / 2)
    alone = CenterLoss(70, 4)
    for factor in (1, 2):
        alone.update(factor * x.flatten(0, 1), labels.flatten(), torch.ones(12))
    torch.testing.assert_close(centers, alone.centers)
