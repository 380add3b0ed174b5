"""Meters and evaluation against plain NumPy, and precise batch norm against the statistics themselves."""

import math
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pycls.engine.evaluate import ECE_BINS, Evaluation, evaluate, precise_batch_norm
from pycls.engine.meters import TrainMeter, ranks_of_targets

CPU = torch.device("cpu")


def test_ranks() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0], [1.0, 3.0, 2.0], [1.0, 1.0, 1.0], [2.0, 2.0, 1.0], [0.0, -math.inf, 5.0]])
    assert ranks_of_targets(logits, torch.tensor([0, 0, 1, 0, 1])).tolist() == [0, 2, 2, 1, 2]


def test_ties_and_nan_are_never_right() -> None:
    logits = torch.tensor([[1.0, 1.0], [math.nan, math.nan], [math.nan, 0.0], [0.0, math.nan], [math.inf, math.inf]])
    assert (ranks_of_targets(logits, torch.zeros(5, dtype=torch.int64)) > 0).all()
    evaluation = Evaluation(2, 5, CPU)
    evaluation.update(torch.zeros(6, 2), torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor(0.7))
    result = evaluation.result()
    assert result["top1_errors"] == 6 and result["class_errors"] == [3, 3] and result["confusion"] == [[0, 3], [3, 0]]
    assert result["top_k"] == 2 and result["topk_errors"] == 0


def reference(logits: np.ndarray, labels: np.ndarray, k: int) -> dict[str, Any]:
    """One sample after the other, in float64."""
    n, classes = logits.shape
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    order = np.argsort(-logits, axis=1)
    confusion = np.zeros((classes, classes), dtype=int)
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(ECE_BINS)]
    for i in range(n):
        confusion[labels[i], order[i, 0]] += 1
        confidence = p[i].max()
        bins[min(int(confidence * ECE_BINS), ECE_BINS - 1)].append((confidence, order[i, 0] == labels[i]))
    ece = sum(abs(sum(c for c, _ in b) - sum(r for _, r in b)) for b in bins) / n
    return {
        "samples": n,
        "top1_errors": int((order[:, 0] != labels).sum()),
        "topk_errors": int(sum(labels[i] not in order[i, :k] for i in range(n))),
        "nll": float(-np.log(p[np.arange(n), labels]).mean()),
        "ece": ece,
        "class_samples": confusion.sum(1).tolist(),
        "class_errors": (confusion.sum(1) - confusion.diagonal()).tolist(),
        "confusion": confusion.tolist(),
    }


@pytest.mark.parametrize(("n", "classes", "k"), [(500, 7, 3), (64, 2, 1), (300, 20, 5), (10, 3, 5)])
def test_evaluation_is_the_sample_by_sample_one(n: int, classes: int, k: int) -> None:
    generator = torch.Generator().manual_seed(n)
    logits, labels = torch.randn(n, classes, generator=generator) * 3, torch.randint(classes, (n,), generator=generator)
    logits[torch.arange(n), labels] += 1
    evaluation = Evaluation(classes, k, CPU)
    for some, targets in zip(logits.split(37), labels.split(37), strict=True):
        evaluation.update(some, targets, torch.nn.functional.cross_entropy(some, targets))
    result, wanted = evaluation.result(), reference(logits.double().numpy(), labels.numpy(), k)
    for key, value in wanted.items():
        assert result[key] == (pytest.approx(value, rel=1e-5) if isinstance(value, float) else value), key
    assert result["loss"] == pytest.approx(result["nll"], rel=1e-5)
    assert result["top1_err"] == pytest.approx(100 * wanted["top1_errors"] / n) and result["top_k"] == min(k, classes)


def test_evaluating_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="empty"):
        Evaluation(3, 1, CPU).result()


class Output(NamedTuple):
    logits: Tensor
    loss: Tensor


class Model(nn.Module):
    """Features with two batch norms, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, momentum=0.1), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))

    def features(self, images: Tensor) -> Tensor:
        return self.body(images).mean((2, 3))

    def forward(self, images: Tensor, labels: Tensor) -> Output:
        logits = self.features(images)
        return Output(logits, nn.functional.cross_entropy(logits, labels))


def test_evaluate_uses_evaluation_mode_and_changes_nothing() -> None:
    torch.manual_seed(0)
    model = Model().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images, labels = torch.randn(10, 2, 6, 6), torch.arange(10) % 4
    result = evaluate(model, [(images[:7], labels[:7], None), (images[7:], labels[7:], None)], Evaluation(4, 2, CPU))
    wanted = model.eval()(images, labels)
    assert result["samples"] == 10 and result["loss"] == pytest.approx(wanted.loss.item(), rel=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_precise_batch_norm_is_the_statistics_of_the_images() -> None:
    torch.manual_seed(0)
    model = Model()
    batches = [(torch.randn(16, 2, 6, 6) * (k + 1) + k, None, None) for k in range(5)]
    precise_batch_norm(model, batches, num_samples=48, world_size=1)
    first, second = model.body[1], model.body[3]
    for norm, before in ((first, model.body[:1]), (second, model.body[:3])):
        with torch.no_grad():  # in training mode: the layers before normalise each batch by itself
            outputs = [before(images).transpose(0, 1).flatten(1) for images, _, _ in batches[:3]]
        precise_batch_norm(model, batches, num_samples=48, world_size=1)
        mean = torch.stack([o.mean(1) for o in outputs]).mean(0)
        square = torch.stack([o.var(1, unbiased=True) + o.mean(1) ** 2 for o in outputs]).mean(0)
        torch.testing.assert_close(norm.running_mean, mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norm.running_var, square - mean**2, rtol=1e-4, atol=1e-5)
    model = Model()
    first, second = model.body[1], model.body[3]
    precise_batch_norm(model, batches, num_samples=48, world_size=1)
    assert first.momentum == 0.1 and first.num_batches_tracked == 0 and second.running_var.min() > 0
    precise_batch_norm(nn.Linear(1, 1), batches, 1, 1)  # nothing to do, nothing asked for


def terms(loss: float) -> tuple[Tensor, dict[str, Tensor], Tensor, Tensor]:
    return torch.tensor(loss), {"a": torch.tensor(1.0), "b": torch.tensor(2.0)}, torch.eye(4), torch.tensor([0, 1, 2, 0])


def test_meter_means_and_recent_losses() -> None:
    meter = TrainMeter(CPU, 2)
    meter.update(*terms(3.0))
    meter.update(*terms(5.0))
    means, recent = meter.read()
    assert means == {"loss": 4.0, "a": 1.0, "b": 2.0, "top1_err": 25.0, "topk_err": 25.0} and recent == [3.0, 5.0]
    meter.update(*terms(7.0))
    assert meter.read()[1] == [7.0] and meter.read()[1] == []
    assert meter.read()[0]["loss"] == 5.0


@pytest.mark.parametrize("world", [1, 2, 3])
def test_meter_goes_on_with_any_number_of_processes(world: int) -> None:
    meters = [TrainMeter(CPU, 2) for _ in range(2)]
    for k, meter in enumerate(meters):
        meter.update(*terms(k + 1.0))
    states = [meter.state_dict() for meter in meters]
    resumed = [TrainMeter(CPU, 2) for _ in range(world)]
    for rank, meter in enumerate(resumed):
        meter.load_state_dict(states, rank, world)
    assert sum(meter.sums["loss"] for meter in resumed) == 12.0
    assert sum(meter.counts for meter in resumed).tolist() == [8, 2, 2]
    if world == 2:
        assert [meter.sums["loss"] for meter in resumed] == [4.0, 8.0]


def test_where_a_meter_is_read_does_not_show_in_it() -> None:
    """A checkpoint in the middle of a log period sums up at another step."""
    torch.manual_seed(0)
    losses = torch.rand(40) * 10
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    means = []
    for period in (1, 3, 7, 40):
        meter = TrainMeter(CPU, 2)
        for step, loss in enumerate(losses, 1):
            meter.update(loss, {"cross_entropy": loss}, logits, labels)
            if step % period == 0:
                meter.state_dict()
        means.append(meter.read()[0])
    assert all(mean == means[0] for mean in means)
