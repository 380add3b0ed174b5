"""A head: similarity x margin x criterion (+ auxiliaries), as one module."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pycls.heads.parts import Auxiliary, Criterion, LogitsCriterion, Margin, Queries, Similarity, SoftmaxCriterion

Labels = Tensor | tuple[Tensor, Tensor, Tensor | float]
"""int64 [N], or a mixture (labels_a [N], labels_b [N], lam: number or [N]) meaning lam a + (1 - lam) b."""


@dataclass
class HeadOutput:
    """What a head returns.

    Attributes:
        logits: [N, K], without margin.
        loss: scalar, None without labels.
        terms: the parts of the loss by name, detached scalars that add up to it.
    """

    logits: Tensor
    loss: Tensor | None = None
    terms: dict[str, Tensor] = field(default_factory=dict)


class Head(nn.Module):
    """Features [N, D] (and labels) -> logits [N, K] (and loss).

    All of its arithmetic is float32 (float64 for float64 features), also under autocast. The margin acts in training
    mode only: ``head(x, y).loss`` in evaluation mode is the loss without margin. The loss is the mean over the samples
    that have a target (label >= 0).

    Args:
        similarity: how features and prototypes are compared.
        margin: what is asked of the target in training; None for nothing.
        criterion: logits and labels -> loss.
        auxiliaries: further losses.

    Raises:
        ValueError: if the parts do not fit each other.
    """

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
        if margin is not None and margin.domain != similarity.domain:
            raise ValueError(
                f"the margin {_name(margin)} acts on a {margin.domain}, but the similarity {_name(similarity)} "
                + (f"has a {similarity.domain}" if similarity.domain else "takes no margin")
            )
        for auxiliary in self._auxiliaries():
            wanted = auxiliary.domain
            if wanted is not None and wanted != similarity.domain:
                raise ValueError(
                    f"the auxiliary loss {_name(auxiliary)} needs a {wanted}, which {_name(similarity)} does not have"
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

    def forward(self, features: Tensor, labels: Labels | None = None) -> HeadOutput:
        """Logits of features [N, D]; with labels also the loss and its terms."""
        with torch.autocast(features.device.type, enabled=False):
            x = features if features.dtype == torch.float64 else features.float()
            queries = self.similarity.queries(x)
            if labels is None:
                return HeadOutput(self.similarity.scores(queries).logits)
            targets, shares = _targets(labels, x)
            # a GPU would have to be waited for; there the data set's labels were checked when it was built
            if targets.device.type == "cpu" and int(targets.max()) >= self.similarity.num_classes:
                raise ValueError(f"label {int(targets.max())} in a head of {self.similarity.num_classes} classes")
            return self._losses(x, queries, targets, shares)

    def _losses(self, x: Tensor, queries: Queries, targets: Tensor, shares: Tensor) -> HeadOutput:
        """``targets`` int64 [N, L] and the share of each in the loss [N, L], 0 where there is no target."""
        criterion = self.criterion
        if isinstance(criterion, SoftmaxCriterion):
            scores = self.similarity.scores(
                queries, targets, reduce=True, total=criterion.uses_total, offset=criterion.offset()
            )
        else:
            scores = self.similarity.scores(queries, targets)
        assert scores.measure is not None
        weights = shares / shares.sum().clamp(min=torch.finfo(shares.dtype).eps)
        total_loss = x.new_zeros(())
        sums: dict[str, Tensor] = {}
        for k in range(targets.shape[1]):
            labels = targets[:, k].clamp(min=0)
            norm = None if scores.squared_norm is None else scores.squared_norm[:, k]
            measure = scores.measure[:, k]
            plain = self.similarity.link(measure)
            target = self._with_margin(measure, queries, norm, labels) if self.training and self.margin else plain
            if isinstance(criterion, SoftmaxCriterion):
                assert scores.others is not None
                total = None if scores.total is None else scores.total - plain + target
                losses = criterion(target, scores.others[:, k], total, labels, self.similarity.num_classes)
            else:
                assert isinstance(criterion, LogitsCriterion)
                losses = criterion(scores.logits.scatter(1, labels[:, None], target[:, None]), labels)
            terms: dict[str, Tensor] = {_name(criterion): (losses * weights[:, k]).sum()}
            for auxiliary in self._auxiliaries():
                seen = self.similarity.to_margin_domain(measure, queries, norm) if auxiliary.domain else None
                terms[auxiliary.term] = auxiliary(x, labels, seen, weights[:, k])
            for name, value in terms.items():
                sums[name] = sums.get(name, 0) + value.detach()
                total_loss = total_loss + value
        if self.training:
            with torch.no_grad():
                for auxiliary in self._auxiliaries():
                    auxiliary.update(x.repeat(targets.shape[1], 1), targets.clamp(min=0).t().flatten(),
                                     shares.t().flatten())
        return HeadOutput(scores.logits, total_loss, sums)

    def _auxiliaries(self) -> list[Auxiliary]:
        return [module for module in self.auxiliaries if isinstance(module, Auxiliary)]

    def _with_margin(self, measure: Tensor, queries: Queries, norm: Tensor | None, labels: Tensor) -> Tensor:
        """Logit [N] of the target with its margin."""
        assert self.margin is not None
        value = self.margin(self.similarity.to_margin_domain(measure, queries, norm), labels)
        return self.similarity.link(self.similarity.from_margin_domain(value, queries, norm))


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
    return targets, torch.where(targets >= 0, shares, 0)


def _name(part: nn.Module) -> str:
    """The name under which a part is known: its registered one, else its class's."""
    return str(getattr(part, "name", type(part).__name__))
