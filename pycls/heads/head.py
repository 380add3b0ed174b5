"""A head: similarity x margin x criterion (+ auxiliaries), as one module."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pycls.heads.labels import Labels, Mean, check_features, checked_labels, column, targets_of
from pycls.heads.ops import backend
from pycls.heads.ops.derived_weight import DerivedWeight
from pycls.heads.ops.fused import Scores
from pycls.heads.ops.loss import TargetStep, margin_softmax, moved_logit, transformed
from pycls.heads.ops.products import autocast_type, float_products
from pycls.heads.output import HeadOutput
from pycls.heads.parts import (
    Auxiliary,
    Criterion,
    FeatureInput,
    LogitsCriterion,
    Margin,
    Similarity,
    SoftmaxCriterion,
    Target,
    norm,
)
from pycls.heads.snapshot import snapshot

_EXACT = (torch.float32, torch.float64)


class Head(nn.Module):
    """Features [N, D] (and labels) -> logits [N, K] (and loss).

    All of its arithmetic is float32 (float64 for float64 features), also under autocast, but for the matrix products with the
    prototypes on CUDA: autocast's half precision with float32 sums (``ops/products.py``). The margin acts in training
    mode only: ``head(x, y).loss`` in evaluation mode is the loss without margin. The loss is the mean over the samples
    that have a target (label >= 0), weighted by the criterion's class weights.

    Args:
        similarity: how features and prototypes are compared.
        margin: what is asked of the target in training; None for nothing.
        criterion: logits and labels -> loss.
        auxiliaries: further losses.
        margin_warmup: training passes over which the margin grows from 0 to its full size.
        chunk: classes worked on at a time, to save memory; 0 chooses by their number.

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
        margin_warmup: int = 0,
        chunk: int = 0,
    ) -> None:
        super().__init__()
        self.similarity = similarity
        self.margin = margin
        self.criterion = criterion
        self.auxiliaries = nn.ModuleList(auxiliaries)
        self.margin_warmup = margin_warmup
        self.chunk = chunk
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
        for part in (margin, criterion):
            if part is not None and getattr(part, "is_closed_form", False):
                _refuse_parameters(part)

    @property
    def weight(self) -> nn.Parameter:
        """The prototypes [K * num_centers, D]."""
        return self.similarity.weight

    @property
    def bias(self) -> nn.Parameter | None:
        """[K], or None."""
        return self.similarity.bias

    @property
    def scale(self) -> Tensor | float:
        """s of a similarity that has one: a number, or a 0-dim tensor if it is learned."""
        value: Tensor | float = self.similarity.scale  # type: ignore[assignment]
        return value

    @property
    def centers(self) -> Tensor:
        """The centre loss's centres [K, D], of a head that has one."""
        found = next((a.centers for a in self._auxiliaries() if hasattr(a, "centers")), None)
        if found is None:
            raise AttributeError("the head has no auxiliary loss with centers")
        return found  # type: ignore[return-value]

    @property
    def num_classes(self) -> int:
        """K."""
        return self.similarity.num_classes

    @property
    def backend(self) -> backend.Choice:
        """What computes a training step of this head where its weights are now, and why."""
        prototypes = self.similarity.prototypes()
        rows, bias = (self.weight, self.bias) if isinstance(prototypes, DerivedWeight) else prototypes[:2]
        labels = torch.zeros(1, dtype=torch.int64, device=rows.device)
        return backend.select(self.similarity.spec, [labels], bias, rows.detach(), rows.detach(), self._offset(rows.dtype))

    def extra_repr(self) -> str:
        """in_features and num_classes."""
        return f"in_features={self.weight.shape[1]}, num_classes={self.num_classes}"

    def complexity(self, input_shape: tuple[int, ...]) -> tuple[int, int]:
        """(multiply-adds, activations) of one image's logits, counted as for a linear layer."""
        bias = self.num_classes if self.bias is not None else 0
        return self.weight.numel() + bias, self.num_classes

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
            inputs = self.similarity.inputs(x)
            if products is not None and self.similarity.half_products:
                inputs = inputs._replace(products=products)
            if labels is None:
                return HeadOutput(self._shown(self.similarity.scores(inputs, chunk=self.chunk).logits))
            return self._losses(x, inputs, labels)

    def _losses(self, x: Tensor, inputs: FeatureInput, labels: Labels) -> HeadOutput:
        """The loss and its terms."""
        similarity, criterion, auxiliaries = self.similarity, self.criterion, self._auxiliaries()
        targets, shares = targets_of(labels, x, similarity.num_classes)
        clamped = targets if shares is None else targets.clamp(min=0)
        offset, weights = self._offset(x.dtype), criterion.class_weights()
        weights = None if weights is None else weights.to(x.dtype)
        if isinstance(criterion, SoftmaxCriterion):
            total = False if not criterion.uses_total else True if weights is None else weights
            scores = similarity.scores(inputs, clamped, reduce=True, total=total, offset=offset, chunk=self.chunk,
                                       step=self.steps)  # fmt: skip
        else:
            scores = similarity.scores(inputs, clamped, chunk=self.chunk)
        mean = Mean(targets, clamped, shares, weights)
        feature_norm = norm(inputs.x) if self._needs_feature_norm() else None
        total_loss: Tensor | None = None
        sums: dict[str, Tensor] = {}
        for k in range(targets.shape[1]):
            of_set, share = column(clamped, k), mean.weighted(k, x)
            terms = {_name(criterion): self._criterion_loss(scores, feature_norm, of_set, k, share, offset, weights)}
            if auxiliaries:
                logit = transformed(scores.score[k], similarity.logit_scale(), similarity.spec.transform)
                terms.update((a.term, a(x, of_set, logit, mean.even(k, x))) for a in auxiliaries)
            for name, value in terms.items():
                sums[name] = sums[name] + value.detach() if name in sums else value.detach()
                total_loss = value if total_loss is None else total_loss + value
        if self.training and auxiliaries:
            rows = torch.cat([x.detach()] * targets.shape[1]) if targets.shape[1] > 1 else x.detach()
            _update(auxiliaries, rows, clamped.t().flatten(), None if shares is None else shares.t().flatten())
        self._advance()
        return HeadOutput(self._shown(scores.logits), total_loss, sums, self._correct(scores), scores.ranking)

    def _criterion_loss(
        self, scores: Scores, feature_norm: Tensor | None, labels: Tensor, k: int, share: Tensor | float,
        offset: Tensor | None, weights: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """The criterion's mean loss by label set k, a scalar."""
        criterion, scale, score = self.criterion, self.similarity.logit_scale(), scores.score[k]
        step, factor, shift = self.target_step(scores, feature_norm, labels, k)
        if isinstance(criterion, SoftmaxCriterion):
            step = step._replace(
                share=share,
                offset=None if offset is None else offset[labels],
                class_weight=None if weights is None or scores.total is None else weights[labels],
            )
            others = scores.others_logsumexp[k]
            return margin_softmax(step, criterion, score, others, scores.total, scale, factor, shift)
        assert isinstance(criterion, LogitsCriterion) and scores.logits is not None
        losses = criterion(scores.logits, moved_logit(step, score, scale, factor, shift), labels)
        return losses.sum() * share if isinstance(share, float) else torch.dot(losses, share)

    def target_step(
        self, scores: Scores, feature_norm: Tensor | None, labels: Tensor, k: int
    ) -> tuple[TargetStep, Tensor | float, Tensor | float]:
        """What the loss of label set k needs of the margin, and the similarity's map from cosine or distance to score."""
        margin = self.margin if self.training else None
        target = Target(
            feature_norm,
            scores.squared_norm[k] if scores.squared_norm else None,
            scores.log_determinant[k] if scores.log_determinant else None,
        )
        strength = None
        if margin is not None and self.margin_warmup > 0:
            strength = ((snapshot(self.steps) + 1) / self.margin_warmup).clamp(max=1).to(scores.score[k].dtype)
        step = TargetStep(margin, self.similarity.spec.transform, target, labels, self.num_classes, strength)
        return step, *((1.0, 0.0) if margin is None else self.similarity.margin_map(target))

    def _needs_feature_norm(self) -> bool:
        if not self.training or self.margin is None:
            return False
        return self.similarity.needs_feature_norm or self.margin.needs_feature_norm

    def _advance(self) -> None:
        """A training pass is over: schedules move."""
        if self.training:
            self.steps.add_(1)
            if self.margin is not None:
                self.margin.advance()

    def _correct(self, scores: Scores) -> Tensor | None:
        if scores.logits is not None or scores.max_other_logit is None:
            return None
        similarity = self.similarity
        scale = similarity.logit_scale()
        return transformed(scores.score[0].detach(), scale, similarity.spec.transform) > scores.max_other_logit

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


def _refuse_parameters(part: nn.Module) -> None:
    """A part that gives its slopes itself gives none by what it learns: that would silently learn nothing."""
    learned = next((name for name, parameter in part.named_parameters() if parameter.requires_grad), None)
    if learned is not None:
        raise ValueError(
            f"{_name(part)} has the parameter {learned}, by which neither value_and_slope nor value_and_grads has a "
            "gradient: with parameters it needs a forward of its own, which autograd differentiates"
        )


def _name(part: nn.Module) -> str:
    """The name under which a part is known: its registered one, else its class's."""
    return str(getattr(part, "name", type(part).__name__))
