"""Evaluation: every sample exactly once over all processes; counts are summed as integers."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pycls.engine.checkpoint.sharded import in_step, is_sharded
from pycls.engine.meters import ranks_of_targets
from pycls.engine.predictions import Predictions
from pycls.engine.tta import TestTimeAugmentation
from pycls.runtime.distributed import all_reduce_sum

MOST_CONFUSED = 4096
"""Classes up to which every pair of them is counted: 128 MB."""

ECE_BINS = 15
"""Bins of the expected calibration error (Guo et al., ICML 2017)."""


class Evaluation:
    """Counts over a data set.

    Args:
        num_classes: K.
        top_k: k of the second error; clipped to K.
        device: where the counts are kept.
    """

    def __init__(self, num_classes: int, top_k: int, device: torch.device) -> None:
        self.top_k = min(top_k, num_classes)
        self.num_classes = num_classes
        self.counts = torch.zeros(3, dtype=torch.int64, device=device)  # samples, top-1 errors, top-k errors
        kept = num_classes if num_classes <= MOST_CONFUSED else 0
        self.confusion = torch.zeros(kept * num_classes, dtype=torch.int64, device=device)
        self.classes = torch.zeros(3, num_classes, dtype=torch.int64, device=device)  # samples, top-1 errors, predictions
        self.bins = torch.zeros(2, ECE_BINS, dtype=torch.int64, device=device)  # samples, right ones
        real = torch.float32 if device.type == "mps" else torch.float64
        self.sums = torch.zeros(2, dtype=real, device=device)  # loss, negative log-likelihood
        self.confidences = torch.zeros(ECE_BINS, dtype=real, device=device)

    def update(self, logits: Tensor | None, labels: Tensor, loss: Tensor, ranking: Any = None) -> None:
        """Adds a batch: logits [N, K], labels [N] and the mean loss. Without logits, their ``ranking``: for each sample how
        many classes stand before the label, the negative log-likelihood, the largest probability, the first other class."""
        if ranking is None:
            assert logits is not None
            ranking = _ranking(logits, labels)
        ranks, nll, confidence, others = ranking
        self.counts += torch.stack((torch.full_like(ranks[0], len(ranks)), (ranks > 0).sum(), (ranks >= self.top_k).sum()))
        self.sums += torch.stack((loss * len(labels), nll.sum())).to(self.sums.dtype)
        # where another class ties with the label it counts as the prediction, as in the errors
        predicted = torch.where(ranks == 0, labels, others)
        ones = torch.ones_like(labels)
        if len(self.confusion):
            self.confusion.index_add_(0, labels * self.num_classes + predicted, ones)
        self.classes[0].index_add_(0, labels, ones)
        self.classes[1].index_add_(0, labels, (ranks > 0).long())
        self.classes[2].index_add_(0, predicted, ones)
        place = (confidence * ECE_BINS).long().clamp_(0, ECE_BINS - 1)
        self.bins[0].index_add_(0, place, ones)
        self.bins[1].index_add_(0, place, (ranks == 0).long())
        self.confidences.index_add_(0, place, confidence.to(self.confidences.dtype))

    def gather(self) -> None:
        """Adds up the counts of all processes."""
        for tensor in (self.counts, self.confusion, self.classes, self.bins, self.sums, self.confidences):
            all_reduce_sum(tensor)

    def result(self) -> dict[str, Any]:
        """Errors in percent, loss, nll, ece (0..1), and the raw counts, all as plain numbers and lists.

        ``confusion`` is empty with more than ``MOST_CONFUSED`` classes.
        """
        samples, first, kth = self.counts.tolist()
        if samples == 0:
            raise ValueError("nothing to evaluate: the data set is empty")
        loss, nll = (self.sums / samples).tolist()
        gap = (self.confidences - self.bins[1].to(self.confidences.dtype)).abs().sum() / samples
        return {
            "samples": samples,
            "top1_errors": first,
            "topk_errors": kth,
            "top1_err": 100 * first / samples,
            "topk_err": 100 * kth / samples,
            "top_k": self.top_k,
            "loss": loss,
            "nll": nll,
            "ece": gap.item(),
            "class_samples": self.classes[0].tolist(),
            "class_errors": self.classes[1].tolist(),
            "class_predictions": self.classes[2].tolist(),
            "confusion": self.confusion.view(-1, self.num_classes).tolist(),
        }


def _ranking(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    log_p = F.log_softmax(logits.float(), dim=1)
    others = logits.scatter(1, labels[:, None], -torch.inf).argmax(dim=1)
    nll = F.nll_loss(log_p, labels, reduction="none")
    return ranks_of_targets(logits, labels), nll, log_p.max(dim=1).values.exp(), others


@torch.no_grad()
def evaluate(
    model: nn.Module, batches: Iterable[Any], evaluation: Evaluation, views: TestTimeAugmentation | None = None,
    predictions: Predictions | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Runs a model in evaluation mode over this process's batches (images, labels, ids); sums over processes.

    Args:
        model: the classifier.
        batches: what it is tested on.
        evaluation: what adds up.
        views: of each image; None for the image alone.
        predictions: what keeps them, or None.
    """
    views = views or TestTimeAugmentation()
    model.eval()
    if is_sharded(model):
        assert views.count == 1 and predictions is None, "logits of sharded classes are nowhere whole"
        for images, labels, counted in in_step(batches, evaluation.counts.device):
            output = model(images, labels)
            if counted:
                evaluation.update(output.logits, labels, output.loss, getattr(output, "ranking", None))
    else:
        for images, labels, ids in batches:
            logits, loss = views.predict(model, images, labels)
            evaluation.update(logits, labels, loss)
            if predictions is not None:
                predictions.update(logits, labels, ids)
    evaluation.gather()
    unreadable = torch.tensor(getattr(batches, "left_out", 0), device=evaluation.counts.device)  # a list has none
    return {**evaluation.result(), "unreadable": int(all_reduce_sum(unreadable))}


@torch.no_grad()
def precise_batch_norm(model: nn.Module, batches: Iterable[Any], num_samples: int, world_size: int) -> None:
    """Sets running statistics of batch norm to the averages over ``num_samples`` training images (pycls's precise BN)."""
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not layers:
        return
    momenta = [m.momentum for m in layers]
    means = [torch.zeros_like(m.running_mean) for m in layers]  # type: ignore[arg-type]
    variances = [torch.zeros_like(m.running_var) for m in layers]  # type: ignore[arg-type]
    counters = [m.num_batches_tracked.clone() for m in layers]  # type: ignore[union-attr]
    for layer in layers:
        layer.momentum = 1.0  # running statistics = the last batch's
    seen, steps = 0, 0
    model.train()
    for images, _, _ in batches:
        if seen >= num_samples:
            break
        model.features(images)  # type: ignore[operator]
        for layer, mean, variance in zip(layers, means, variances, strict=True):
            mean += layer.running_mean  # type: ignore[arg-type,operator]
            # pycls: variance of the whole = mean of squares - square of the mean
            variance += layer.running_var + layer.running_mean.square()  # type: ignore[operator,union-attr]
        seen, steps = seen + len(images) * world_size, steps + 1
    for layer, mean, variance, momentum, counter in zip(layers, means, variances, momenta, counters, strict=True):
        mean, variance = all_reduce_sum(mean) / (steps * world_size), all_reduce_sum(variance) / (steps * world_size)
        layer.running_mean.copy_(mean)  # type: ignore[union-attr,operator]
        layer.running_var.copy_((variance - mean.square()).clamp_(min=0))  # type: ignore[union-attr,operator]
        layer.num_batches_tracked.copy_(counter)  # type: ignore[union-attr,operator]
        layer.momentum = momentum
