"""A head: similarity x margin x criterion (+ auxiliaries), as one module."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pycls.heads.gram import Scores
from pycls.heads.parts import (
    Auxiliary,
    Criterion,
    LogitsCriterion,
    Margin,
    Queries,
    Similarity,
    SoftmaxCriterion,
    Target,
)

Labels = Tensor | tuple[Tensor, Tensor, Tensor | float]
"""int64 [N], or a mixture (labels_a [N], labels_b [N], lam: number or [N]) meaning lam a + (1 - lam) b."""


@dataclass
class HeadOutput:
    """What a head returns.

    Attributes:
        logits: [N, K], without margin; None in training with so many classes that they are not kept (see ``chunk``).
        loss: scalar, None without labels.
        terms: the parts of the loss by name, detached scalars that add up to it.
        first: bool [N], whether the label's logit (of a mixture the first label's) is the largest; where ``logits`` is None.
    """

    logits: Tensor | None
    loss: Tensor | None = None
    terms: dict[str, Tensor] = field(default_factory=dict)
    first: Tensor | None = None


class Head(nn.Module):
    """Features [N, D] (and labels) -> logits [N, K] (and loss).

    All of its arithmetic is float32 (float64 for float64 features), also under autocast. The margin acts in training
    mode only: ``head(x, y).loss`` in evaluation mode is the loss without margin. The loss is the mean over the samples
    that have a target (label >= 0), weighted by the criterion's class weights.

    Args:
        similarity: how features and prototypes are compared.
        margin: what is asked of the target in training; None for nothing.
        criterion: logits and labels -> loss.
        auxiliaries: further losses.

    Raises:
        ValueError: if the parts do not fit each other.
    """

    steps: Tensor

    def __init__(
        self,
        similarity: Similarity,
        margin: Margin | None,
        criterion: Criterion,
        auxiliaries: Iterable[Auxiliary] = (),
    ) -> None:
        super().__init__()
        self.similarity = similarity
        self.margin = margin
        self.criterion = criterion
        self.auxiliaries = nn.ModuleList(auxiliaries)
        self.margin_warmup = 0
        """Training passes over which the margin grows from 0 to its full size."""
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        if margin is not None and margin.domain != similarity.domain:
            raise ValueError(
                f"the margin {_name(margin)} acts on a {margin.domain}, but the similarity {_name(similarity)} "
                + (f"has a {similarity.domain}" if similarity.domain else "takes no margin")
            )
        for auxiliary in self._auxiliaries():
            if auxiliary.needs_likelihood and not similarity.log_likelihood:
                raise ValueError(
                    f"the auxiliary loss {_name(auxiliary)} needs logits that are log-likelihoods, as gaussian's are; "
                    f"those of {_name(similarity)} are not"
                )
        criterion.check(similarity.num_classes)

    @property
    def weight(self) -> nn.Parameter:
        """The prototypes [K * num_centers, D]."""
        return self.similarity.weight

    def __getattr__(self, name: str) -> Tensor | nn.Module:
        """``head.bias``, ``head.scale``, ``head.centers`` and their like: the part that has it answers."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            parts = self.__dict__.get("_modules", {})
            for part in [*(parts.get(k) for k in ("similarity", "margin", "criterion")), *parts.get("auxiliaries", ())]:
                if isinstance(part, nn.Module) and not name.startswith("_") and hasattr(part, name):
                    return getattr(part, name)
            raise

    def extra_repr(self) -> str:
        """in_features and num_classes."""
        return f"in_features={self.weight.shape[1]}, num_classes={self.similarity.num_classes}"

    def complexity(self, input_shape: tuple[int, ...]) -> tuple[int, int]:
        """(multiply-adds, activations) of one image's logits, counted as for a linear layer."""
        bias = self.similarity.num_classes if self.similarity.bias is not None else 0
        return self.weight.numel() + bias, self.similarity.num_classes

    def set_epoch(self, epoch: int) -> None:
        """Called before each epoch (from 0 on) by the training loop, for schedules by epoch."""
        self.criterion.set_epoch(epoch)

    def forward(self, features: Tensor, labels: Labels | None = None) -> HeadOutput:
        """Logits of features [N, D]; with labels also the loss and its terms."""
        with torch.autocast(features.device.type, enabled=False):
            x = features if features.dtype == torch.float64 else features.float()
            queries = self.similarity.queries(x)
            if labels is None:
                return HeadOutput(self._shown(self.similarity.scores(queries).logits))
            targets, shares = _targets(labels, x)
            # a GPU would have to be waited for; there the data set's labels were checked when it was built
            if targets.device.type == "cpu" and int(targets.max()) >= self.similarity.num_classes:
                raise ValueError(f"label {int(targets.max())} in a head of {self.similarity.num_classes} classes")
            return self._losses(x, queries, targets, shares)

    def _losses(self, x: Tensor, queries: Queries, targets: Tensor, shares: Tensor) -> HeadOutput:
        """``targets`` int64 [N, L] and the share of each in the loss [N, L], 0 where there is no target."""
        criterion, clamped = self.criterion, targets.clamp(min=0)
        if isinstance(criterion, SoftmaxCriterion):
            total: bool | Tensor = criterion.uses_total
            if total and (weights := criterion.class_weights()) is not None:
                total = weights.to(x.dtype)
            scores = self.similarity.scores(queries, clamped, reduce=True, total=total, offset=self._offset(x.dtype))
        else:
            scores = self.similarity.scores(queries, clamped)
        # of a mixture each label set has its own mean: lam times the one plus 1 - lam times the other
        present = (targets >= 0).to(shares.dtype)
        even = shares / present.sum(dim=0).clamp_(min=1)
        heavy = even
        if (weights := criterion.class_weights()) is not None:
            weight = present * weights[clamped].to(x.dtype)
            heavy = shares * weight / weight.sum(dim=0).clamp_(min=torch.finfo(shares.dtype).tiny)
        total_loss: Tensor | None = None
        sums: dict[str, Tensor] = {}
        for k in range(targets.shape[1]):
            labels = _column(clamped, k)
            plain, target = self._target_logits(scores, queries, labels, k)
            losses = self._criterion_losses(scores, plain, target, labels, k)
            terms: dict[str, Tensor] = {_name(criterion): torch.dot(losses, _column(heavy, k))}
            for auxiliary in self._auxiliaries():
                terms[auxiliary.term] = auxiliary(x, labels, plain, even[:, k])
            for name, value in terms.items():
                sums[name] = sums.get(name, 0) + value.detach()
                total_loss = value if total_loss is None else total_loss + value
        if self.training:
            self._advance(x.detach(), clamped, shares)
        first = None
        if scores.logits is None:
            assert scores.rival is not None and scores.measure is not None
            first = self.similarity.link(scores.measure[:, 0].detach()) > scores.rival[:, 0]
        return HeadOutput(self._shown(scores.logits), total_loss, sums, first)

    def _target_logits(self, scores: Scores, queries: Queries, labels: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The target's logits [N] without and with margin, of label set k; the same tensor where there is none."""
        assert scores.measure is not None
        measure = _column(scores.measure, k)
        plain = self.similarity.link(measure)
        if not self.training or self.margin is None:
            return plain, plain
        target = Target(labels, queries.norm, None if scores.squared_norm is None else _column(scores.squared_norm, k))
        value = self.similarity.to_margin_domain(measure, target)
        harder = self.margin(value, labels)
        if self.margin_warmup > 0:
            harder = torch.lerp(value, harder, ((self.steps + 1) / self.margin_warmup).clamp(max=1).to(value.dtype))
        return plain, self.similarity.link(self.similarity.from_margin_domain(harder, target))

    def _criterion_losses(self, scores: Scores, plain: Tensor, target: Tensor, labels: Tensor, k: int) -> Tensor:
        """Loss a sample [N] by label set k."""
        criterion = self.criterion
        if isinstance(criterion, SoftmaxCriterion):
            assert scores.others is not None
            total = scores.total
            if total is not None and target is not plain:
                weights = criterion.class_weights()
                total = total + (target - plain) * (1 if weights is None else weights[labels].to(plain.dtype))
            if (offset := self._offset(target.dtype)) is not None:
                target = target + offset[labels]
            return criterion(target, _column(scores.others, k), total, labels, self.similarity.num_classes)
        assert isinstance(criterion, LogitsCriterion)
        assert scores.logits is not None
        return criterion(scores.logits, target, labels)

    @torch.no_grad()
    def _advance(self, x: Tensor, targets: Tensor, shares: Tensor) -> None:
        """A training step is over: counters and centres move."""
        self.steps += 1
        if self.margin is not None:
            self.margin.advance()
        sets = targets.shape[1]
        for auxiliary in self._auxiliaries():
            auxiliary.update(x.repeat(sets, 1) if sets > 1 else x, targets.t().flatten(), shares.t().flatten())

    def _shown(self, logits: Tensor | None) -> Tensor | None:
        """The logits, with a post-hoc adjustment in evaluation mode."""
        if logits is None:
            return None
        offset = None if self.training else self._offset(logits.dtype)
        return logits if offset is None else logits + offset

    def _offset(self, dtype: torch.dtype) -> Tensor | None:
        """[K] that the criterion adds to the logits, or None."""
        offset = self.criterion.offset() if isinstance(self.criterion, SoftmaxCriterion) else None
        return None if offset is None else offset.to(dtype)

    def _auxiliaries(self) -> list[Auxiliary]:
        return [module for module in self.auxiliaries if isinstance(module, Auxiliary)]


def _targets(labels: Labels, x: Tensor) -> tuple[Tensor, Tensor]:
    """Labels or a mixture -> targets int64 [N, L] and shares [N, L] in x's type, 0 where there is no target."""
    if isinstance(labels, Tensor):
        targets, shares = labels[:, None], x.new_ones(len(x), 1)
    else:
        first, second, lam = labels
        lam = torch.as_tensor(lam, dtype=x.dtype, device=x.device).expand(len(x))
        targets, shares = torch.stack((first, second), dim=1), torch.stack((lam, 1 - lam), dim=1)
    if len(targets) != len(x):
        raise ValueError(f"{len(x)} features but {len(targets)} labels")
    return targets, shares * (targets >= 0)


def _column(values: Tensor, k: int) -> Tensor:
    """Column k; of the only one a view whose gradient costs nothing."""
    return values.squeeze(1) if values.shape[1] == 1 else values[:, k]


def _name(part: nn.Module) -> str:
    """The name under which a part is known: its registered one, else its class's."""
    return str(getattr(part, "name", type(part).__name__))
