"""A head: similarity x margin x criterion (+ auxiliaries), as one module."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pycls.heads.form import float_products
from pycls.heads.gram import Ranking, Scores
from pycls.heads.labels import Labels, Mean, check_features, checked_labels, column, targets_of
from pycls.heads.loss_native import native_losses, of_mean_logit, tail_of
from pycls.heads.parts import (
    Auxiliary,
    Criterion,
    LogitsCriterion,
    Margin,
    Queries,
    Similarity,
    SoftmaxCriterion,
    Target,
    norm,
)
from pycls.heads.products import autocast_type

_EXACT = (torch.float32, torch.float64)

@dataclass
class HeadOutput:
    """What a head returns.

    Attributes:
        logits: [N, K], without margin; None in training with so many classes that they are not kept (see ``chunk``).
        loss: scalar, None without labels.
        terms: the parts of the loss by name, detached scalars that add up to it.
        first: bool [N], whether the label's logit (of a mixture the first label's) is the largest; where ``logits`` is None.
        ranking: in evaluation, where ``logits`` is None because the classes are shared out among processes.
    """

    logits: Tensor | None
    loss: Tensor | None = None
    terms: dict[str, Tensor] = field(default_factory=dict)
    first: Tensor | None = None
    ranking: Ranking | None = None


torch.export.register_dataclass(HeadOutput)  # else DDP and FSDP do not find the loss in it


class Head(nn.Module):
    """Features [N, D] (and labels) -> logits [N, K] (and loss).

    All of its arithmetic is float32 (float64 for float64 features), also under autocast, but for the matrix products with the
    prototypes on CUDA: autocast's half precision with float32 sums (``products.py``). The margin acts in training
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
        if margin is not None:
            margin.check(similarity.num_classes)

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
        """Logits of features [N, D]; with labels also the loss and its terms.

        Args:
            features: floating-point numbers [N, D]; N may be 0, whose loss is 0.
            labels: integers of any type [N], each in 0..K-1 or -1 for no target, on the features' device; or a mixture
                (labels_a, labels_b, lam) of two such, lam a number in [0, 1] or a tensor of one for each sample.

        Raises:
            TypeError: features or labels of another type, such as bool or float labels.
            ValueError: a wrong shape or device, lam outside [0, 1], or a label that is none of these (on CUDA, which would
                have to be waited for, and in a compiled graph labels' and lam's values are not looked at).
        """
        check_features(features, self.weight)
        labels = None if labels is None else checked_labels(labels, features)
        products = autocast_type(features)
        with float_products(features):
            x = features if features.dtype in _EXACT else features.float()
            similarity = self.similarity
            queries = similarity.queries(x)
            if products is not None and similarity.half_products:
                queries = queries._replace(products=products)
            if labels is None:
                return HeadOutput(self._shown(similarity.scores(queries).logits))
            native = isinstance(labels, Tensor) and x.is_cpu and products is None and not torch.compiler.is_compiling()
            output = self._native_losses(x, queries, labels) if native else None  # type: ignore[arg-type]
            return self._losses(x, queries, labels) if output is None else output

    def _native_losses(self, x: Tensor, queries: Queries, labels: Tensor) -> HeadOutput | None:
        """As :meth:`_losses`, by compiled C; None where it does not know how."""
        similarity, auxiliaries = self.similarity, self._auxiliaries()
        if auxiliaries and not similarity.form.link.identity:
            return None
        linear = {auxiliary: of_mean_logit(auxiliary) for auxiliary in auxiliaries}
        margin, of_logits = self.margin if self.training else None, sum(filter(None, linear.values()))
        tail = tail_of(similarity, margin, self.criterion, self._grown(), of_logits)
        found = tail and native_losses(tail, similarity, queries, labels, self._offset(x.dtype))
        if not found:
            return None
        loss, logits, measure, every, mean_logit, of_criterion = found
        terms = {_name(self.criterion): x.new_full((), of_criterion) if of_logits else loss.detach()}
        terms.update((a.term, x.new_full((), factor * mean_logit)) for a, factor in linear.items() if factor is not None)
        others = [auxiliary for auxiliary, factor in linear.items() if factor is None]
        if others:
            if every:
                present, clamped, weights = None, labels, x.new_full((len(x),), 1 / len(x))
            else:
                present, clamped = (labels >= 0).to(x.dtype), labels.clamp(min=0)
                weights = present / present.sum().clamp_(min=1)
            for auxiliary in others:
                value = auxiliary(x, clamped, measure, weights)
                terms[auxiliary.term], loss = value.detach(), loss + value
            if self.training:
                _update(others, x.detach(), clamped, present)
        self._advance()
        return HeadOutput(self._shown(logits), loss, terms)

    def _losses(self, x: Tensor, queries: Queries, labels: Labels) -> HeadOutput:
        """The loss and its terms from the scores, by torch's operations."""
        targets, shares = targets_of(labels, x, self.similarity.num_classes)
        clamped = targets if shares is None else targets.clamp(min=0)
        similarity, criterion, offset = self.similarity, self.criterion, self._offset(x.dtype)
        weights, auxiliaries = criterion.class_weights(), self._auxiliaries()
        if similarity.shard is not None:
            similarity.shard.step = self.steps
        if isinstance(criterion, SoftmaxCriterion):
            total: bool | Tensor = criterion.uses_total
            if total and weights is not None:
                total = weights.to(x.dtype)
            scores = similarity.scores(queries, clamped, reduce=True, total=total, offset=offset)
        else:
            scores = similarity.scores(queries, clamped)
        mean = Mean(targets, clamped, shares, None if weights is None else weights.to(x.dtype))
        total_loss: Tensor | None = None
        sums: dict[str, Tensor] = {}
        for k in range(targets.shape[1]):
            of_set = column(clamped, k)
            plain, target = self._target_logits(scores, queries, of_set, k)
            losses = self._criterion_losses(scores, plain, target, of_set, k, offset)
            terms: dict[str, Tensor] = {_name(criterion): mean.of(losses, k)}
            for auxiliary in auxiliaries:
                terms[auxiliary.term] = auxiliary(x, of_set, plain, mean.even(k, x))
            for name, value in terms.items():
                sums[name] = sums[name] + value.detach() if name in sums else value.detach()
                total_loss = value if total_loss is None else total_loss + value
        if self.training and auxiliaries:
            rows = torch.cat([x.detach()] * targets.shape[1]) if targets.shape[1] > 1 else x.detach()
            _update(auxiliaries, rows, clamped.t().flatten(), None if shares is None else shares.t().flatten())
        self._advance()
        first = None
        if scores.logits is None:
            assert scores.rival is not None
            first = similarity.link(scores.measure[0].detach()) > scores.rival
        return HeadOutput(self._shown(scores.logits), total_loss, sums, first, scores.ranking)

    def _advance(self) -> None:
        """A training pass is over: schedules move."""
        if self.training:
            self.steps.add_(1)
            if self.margin is not None:
                self.margin.advance()

    def _grown(self) -> float:
        """How much of the margin there is in this training pass, on a processor."""
        return min(1.0, (int(self.steps) + 1) / self.margin_warmup) if self.margin_warmup > 0 else 1.0

    def _target_logits(self, scores: Scores, queries: Queries, labels: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The target's logits [N] without and with margin, of label set k; the same tensor where there is none."""
        similarity, margin, measure = self.similarity, self.margin, scores.measure[k]
        plain = similarity.link(measure)
        if not self.training or margin is None:
            return plain, plain
        target = Target(
            norm(queries.x) if similarity.needs_feature_norms else None,
            scores.squared_norm[k] if scores.squared_norm else None,
            scores.log_determinant[k] if scores.log_determinant else None,
        )
        value = similarity.to_margin_domain(measure, target)
        harder = margin(value, labels)
        if self.margin_warmup > 0:
            harder = torch.lerp(value, harder, ((self.steps + 1) / self.margin_warmup).clamp(max=1).to(value.dtype))
        return plain, similarity.link(similarity.from_margin_domain(harder, target))

    def _criterion_losses(
        self, scores: Scores, plain: Tensor, target: Tensor, labels: Tensor, k: int, offset: Tensor | None
    ) -> Tensor:
        """Loss a sample [N] by label set k."""
        criterion = self.criterion
        if isinstance(criterion, SoftmaxCriterion):
            total = scores.total
            if total is not None and target is not plain:
                weights = criterion.class_weights()
                total = total + (target - plain) * (1 if weights is None else weights[labels].to(plain.dtype))
            if offset is not None:
                target = target + offset[labels]
            return criterion(target, scores.others[k], total, labels, self.similarity.num_classes)
        assert isinstance(criterion, LogitsCriterion)
        assert scores.logits is not None
        return criterion(scores.logits, target, labels)

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
        return list(self.auxiliaries)  # type: ignore[arg-type]


@torch.no_grad()
def _update(auxiliaries: list[Auxiliary], x: Tensor, labels: Tensor, weights: Tensor | None) -> None:
    """A training step is over: centres move, by samples with these weights or all with 1."""
    for auxiliary in auxiliaries:
        if type(auxiliary).update is not Auxiliary.update:
            auxiliary.update(x, labels, x.new_ones(len(x)) if weights is None else weights)


def _name(part: nn.Module) -> str:
    """The name under which a part is known: its registered one, else its class's."""
    return str(getattr(part, "name", type(part).__name__))
