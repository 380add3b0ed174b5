"""The compiled parts of centre and ring loss, L-GM and scaled classes beside the reference, which is torch's operations."""

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import gradients_of, make_batch
from torch import Tensor

import pycls
from pycls.heads import parts_native
from pycls.heads.center import CenterLoss
from pycls.heads.parts_native import parts_for

ROOT = Path(__file__).parents[2]
PARTS = parts_native._parts()
pytestmark = pytest.mark.skipif(PARTS is None, reason="there is no C compiler")

HEADS: list[tuple[str, dict[str, Any], set[str]]] = [
    ("center", {"weight": 0.7, "center_rate": 0.4}, {"pull", "move"}),
    ("center", {"weight": 0.7, "update": "gradient"}, {"pull"}),
    *(("ring", {"weight": 0.3, "variant": variant}, {"norms", "ring_", "scale"}) for variant in ("l2", "l1", "relative")),
    ("lgm", {"alpha": 0.5, "covariance": "diagonal"}, {"gaussian", "gaussian_back", "squares", "squares_back"}),
    ("lws", {}, {"scale", "scale_back"}),
]
IDS = ["-".join(map(str, (name, *options.values()))) for name, options, _ in HEADS]
SIZES = [(1, 1, 1), (7, 3, 5), (130, 67, 9), (300, 129, 200)]
"""N, D, K: no vector of the processor is filled evenly, and most classes are several samples' or nobody's."""


class Spy:
    """Stands before the compiled functions and notes their calls."""

    def __init__(self) -> None:
        self.calls: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        self.calls.add(name)
        return getattr(PARTS, name)


def drawn(name: str, width: int, classes: int, options: dict[str, Any]) -> torch.nn.Module:
    """A head with random parameters and centres, as after some training."""
    torch.manual_seed(3)
    head = pycls.create_head(name, in_features=width, num_classes=classes, **options)
    with torch.no_grad():
        for key, value in [*head.named_parameters(), *head.named_buffers()]:
            if value.is_floating_point():
                value.copy_(torch.randn(value.shape) * 0.3 + (key.endswith(("factor", "radius"))))
    return head


def steps(head: torch.nn.Module, batch, parts: Spy | None, monkeypatch) -> list[Tensor]:
    """Logits, losses and gradients of two training steps, and the buffers after them; with None by torch's operations."""
    monkeypatch.setattr(parts_native, "_parts", lambda: parts)
    head, found = copy.deepcopy(head).train(), []
    for _ in range(2):
        x = batch.features.clone().requires_grad_()
        output = head(x, batch.labels)
        found += [output.logits.detach(), *(value.detach() for value in output.terms.values())]
        found += gradients_of(output.loss, [x, *head.parameters()])
        if hasattr(head, "radius"):  # no longer what the first batch made it
            head.radius.data.mul_(0.8)
    return [*found, *(value.double() for value in head.state_dict().values())]


@pytest.mark.parametrize("kind", ["labels", "missing", "mixture", "mixtures"])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("name", "options", "calls"), HEADS, ids=IDS)
def test_it_is_what_torchs_operations_give(name, options, calls, size, kind, monkeypatch) -> None:
    samples, width, classes = size
    head = drawn(name, width, classes, options)
    batch = make_batch(name, head, options, samples, 3, kind)
    spy = Spy()
    ours, theirs = steps(head, batch, spy, monkeypatch), steps(head, batch, None, monkeypatch)
    assert spy.calls == calls
    for one, other in zip(ours, theirs, strict=True):
        # at the mean of the norms the gradient by the radius is nothing but rounding
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6 + 2e-5 * float(other.abs().max()))


def test_samples_of_one_class_all_see_its_old_centre(monkeypatch) -> None:
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


def test_a_step_that_moves_centres_is_seen_by_autograd() -> None:
    loss, x = CenterLoss(3, 4), torch.randn(2, 3, requires_grad=True)
    value = (x * loss.centers[:2]).sum()
    loss.update(x.detach(), torch.tensor([0, 1]), torch.ones(2))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


@pytest.mark.parametrize("bad", [-1, 4])
def test_a_label_that_is_no_class_is_refused(bad) -> None:
    loss, x = CenterLoss(3, 4), torch.randn(2, 3)
    for call in (lambda *rest: loss(*rest[:2], x[:, 0], rest[2]), loss.update):
        with pytest.raises(IndexError):
            call(x, torch.tensor([0, bad]), torch.ones(2))
    assert not loss.centers.any()


@pytest.mark.parametrize("name", ["center", "ring", "lws", "lgm"])
def test_what_is_not_finite_stays_so(name) -> None:
    """A loss that became NaN must be seen."""
    options = {"covariance": "diagonal"} if name == "lgm" else {}
    head = pycls.create_head(name, in_features=4, num_classes=5, **options)
    for bad in (torch.nan, torch.inf):
        x = torch.randn(3, 4)
        x[1, 2] = bad
        assert not head(x, torch.tensor([0, 1, 2])).loss.isfinite()


def test_large_and_small_variances(monkeypatch) -> None:
    head = drawn("lgm", 20, 7, {"covariance": "diagonal"})
    with torch.no_grad():
        head.log_variance.uniform_(-40, 40)
    rows = [value.detach() for value in head.similarity.prototypes().whole()]
    monkeypatch.setattr(parts_native, "_parts", lambda: None)
    for one, other in zip(rows, head.double().similarity.prototypes().whole(), strict=True):
        torch.testing.assert_close(one.double(), other.detach(), rtol=2e-6, atol=1e-4)


@pytest.mark.parametrize("name", ["lws", "lgm"])
def test_made_prototypes_alone_have_gradients(name) -> None:
    """As for a regulariser on them: of the rows, of the bias, of the log-determinants."""
    head = drawn(name, 6, 5, {"covariance": "diagonal"} if name == "lgm" else {}).double()
    with torch.no_grad():
        for parameter in head.similarity.parameters():
            parameter.normal_()
    of = head.similarity.prototypes().of
    for k, value in enumerate(head.similarity.prototypes().whole()):
        if value is not None:
            recipe = type(head.similarity.prototypes())
            assert torch.autograd.gradcheck(lambda *of, recipe=recipe, k=k: recipe(*of).whole()[k], of)


@pytest.mark.parametrize("name", [name for name, _, _ in HEADS])
def test_only_what_learns_has_a_gradient(name) -> None:
    """Frozen features, and a second stage in which the classes' scales learn alone."""
    options = {"covariance": "diagonal"} if name == "lgm" else {}
    head = pycls.create_head(name, in_features=4, num_classes=5, **options)
    learns = {"lws": "factor", "lgm": "log_variance", "ring": "radius", "center": "bias"}[name]
    for key, parameter in head.named_parameters():
        parameter.requires_grad_(key.endswith(learns))
    head(torch.randn(6, 4), torch.arange(6) % 5).loss.backward()
    for key, parameter in head.named_parameters():
        assert (parameter.grad is not None) == key.endswith(learns)


def test_three_threads_give_the_same_bits_twice() -> None:
    threads, x = torch.get_num_threads(), torch.randn(1500, 150)
    labels, weights, centers = torch.arange(1500) % 40, torch.rand(1500), torch.randn(40, 150)
    torch.set_num_threads(3)
    try:
        runs = []
        for _ in range(3):
            moved = centers.clone()
            pulled = PARTS.pull(x, moved, labels, weights, 0.5)
            assert pulled is not None and PARTS.move(x, moved, labels, weights, 0.5)
            runs.append([*pulled, moved])
    finally:
        torch.set_num_threads(threads)
    for run in runs[1:]:
        assert all(map(torch.equal, runs[0], run))


def test_who_is_asked_what() -> None:
    """Other types, strides, shapes and subclasses: torch's operations."""
    x, row = torch.randn(4, 3), torch.randn(4)
    assert parts_for([x, torch.nn.Parameter(x)], [row, row]) is PARTS
    for rows, numbers in (
        ([x.double()], []), ([x.half()], []), ([x], [row.double()]), ([x.t().contiguous().t()], []),
        ([x], [torch.ones(8)[::2]]), ([x, x[:3]], []), ([x], [row[:3]]), ([x[None]], []), ([x.to("meta")], []),
        ([x.as_subclass(type("Own", (Tensor,), {}))], []),
    ):  # fmt: skip
        assert parts_for(rows, numbers) is None
    labels, centers = torch.zeros(4, dtype=torch.int64), torch.zeros(5, 3)
    assert PARTS.pull(x, centers, labels, row, 1.0) is not None
    for other, of in ((centers.double(), labels), (torch.zeros(5, 4), labels), (centers, labels.int()), (centers, labels[:3])):
        assert PARTS.pull(x, other, of, row, 1.0) is None and not PARTS.move(x, other, of, row, 1.0)


def test_without_a_compiler_torch_does_it(tmp_path: Path) -> None:
    code = ("import torch, pycls; from pycls.heads import parts_native\n"
            "for name in ('center', 'ring', 'lws', 'lgm'):\n"
            "    options = {'covariance': 'diagonal'} if name == 'lgm' else {}\n"
            "    head = pycls.create_head(name, in_features=4, num_classes=5, **options)\n"
            "    head(torch.ones(2, 4), torch.tensor([0, 1])).loss.backward()\n"
            "print(parts_native._parts())")  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False,
        env={"PATH": str(tmp_path), "PYTHONPATH": str(ROOT), "PYCLS_CACHE": str(tmp_path / "cache"), "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout == "None\n", done


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
"""


def test_centres_and_radius_are_those_of_all_processes(tmp_path: Path) -> None:
    running = [subprocess.Popen([sys.executable, "-c", ONE_OF_TWO, str(rank), str(tmp_path)],
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
