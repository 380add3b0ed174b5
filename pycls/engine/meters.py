"""Sums kept on the device: what training and evaluation count, read by the host only when asked."""

from typing import Any

import torch
from torch import Tensor

from pycls.runtime.distributed import all_reduce_sum

KEPT_ELEMENTS = 1 << 20
"""Logits noted at the most before they are summed up: 4 MB."""


def ranks_of_targets(logits: Tensor, labels: Tensor) -> Tensor:
    """How many classes stand before the label, int64 [N]; 0 means top-1 is right.

    Counting is cheaper than sorting and exact. A class that ties with the label stands before it, and so does every
    class if the label's logit is not a number: equal logits everywhere are no correct answer.
    """
    return logits.shape[1] - 1 - (logits < logits.gather(1, labels[:, None])).sum(dim=1)


class TrainMeter:
    """Loss, terms and errors of an epoch so far, and the losses since the last reading.

    A step only notes what it saw, as it lies on the device; :meth:`read`, once a log period, sums it up and waits for it.
    Many logits are summed up at once, without waiting.

    Args:
        device: where the sums are kept.
        top_k: k of the second error.
    """

    def __init__(self, device: torch.device, top_k: int) -> None:
        self.device, self.top_k = device, top_k
        self.reset()

    def reset(self) -> None:
        """Starts an epoch."""
        self.sums: dict[str, float] = {}
        self.counts = torch.zeros(3, dtype=torch.int64, device=self.device)  # samples, top-1 errors, top-k errors
        self.recent: list[Tensor] = []
        self._means: list[tuple[int, Tensor, dict[str, Tensor]]] = []
        self._seen: list[tuple[Tensor | None, Tensor]] = []
        self._kept = 0

    def update(
        self, loss: Tensor, terms: dict[str, Tensor], logits: Tensor | None, labels: Tensor, correct: Tensor | None = None
    ) -> None:
        """Adds a batch: mean loss, its terms, logits [N, K] and labels [N] (of a mixture the first).

        Without logits ``correct`` [N] says whose label is first; a label that is not counts as outside the top k, too.
        """
        loss = loss.detach()
        assert logits is not None or correct is not None, "logits, or who is right"
        self._means.append((labels.size(0), loss, terms))
        self._seen.append((None if logits is None else logits.detach(), labels if correct is None else correct))
        self.recent.append(loss)
        self._kept += 0 if logits is None else logits.numel()
        if self._kept > KEPT_ELEMENTS:
            self._count()

    @torch.no_grad()
    def _count(self) -> None:
        """The samples that were noted go into the counts; nothing waits."""
        noted, self._seen, self._kept = self._seen, [], 0
        if not noted:
            return
        seen = torch.cat([seen for _, seen in noted])
        if noted[0][0] is None:
            ranks = torch.where(seen, 0, self.top_k)
        else:
            ranks = ranks_of_targets(torch.cat([logits for logits, _ in noted if logits is not None]), seen)
        samples = torch.full((), len(seen), device=self.device)
        self.counts += torch.stack((samples, (ranks > 0).sum(), (ranks >= self.top_k).sum()))

    def _sum_up(self) -> None:
        """What was noted goes into counts and sums. The sums are made one step after the other, in double precision: where
        in an epoch they are read, or saved, does not show in them."""
        self._count()
        noted, self._means = self._means, []
        if not noted:
            return
        names = ["loss", *(noted[0][2] if len(noted[0][2]) > 1 else ())]
        means = torch.stack([loss if name == "loss" else terms[name] for _, loss, terms in noted for name in names]).tolist()
        for step, (samples, *_) in enumerate(noted):
            for k, name in enumerate(names):
                self.sums[name] = self.sums.get(name, 0.0) + means[step * len(names) + k] * samples

    def read(self) -> tuple[dict[str, float], list[float]]:
        """Means of the epoch so far over all processes (errors in percent), and this process's losses since last time.

        All processes call it after the same step.
        """
        self._sum_up()
        sums = all_reduce_sum(torch.tensor(list(self.sums.values()), dtype=torch.float64).float().to(self.device)).tolist()
        samples, first, kth = all_reduce_sum(self.counts.clone()).tolist()
        recent, self.recent = self.recent, []
        means = {name: value / max(samples, 1) for name, value in zip(self.sums, sums, strict=True)}
        means["top1_err"], means["topk_err"] = 100 * first / max(samples, 1), 100 * kth / max(samples, 1)
        return means, torch.stack(recent).tolist() if recent else []

    def state_dict(self) -> dict[str, Any]:
        """This process's sums, for a checkpoint in the middle of an epoch."""
        self._sum_up()
        return {"sums": {name: torch.tensor(value, dtype=torch.float64) for name, value in self.sums.items()},
                "counts": self.counts.cpu()}  # fmt: skip

    def load_state_dict(self, states: list[dict[str, Any]], rank: int, world_size: int) -> None:
        """Continues from the sums of the processes, by rank; if their number has changed, rank 0 continues the sums of all."""
        self.reset()
        state = states[rank] if len(states) == world_size else _all_to_first(states, rank)
        self.sums = {name: float(value) for name, value in state["sums"].items()}
        self.counts = state["counts"].to(self.device)


def _all_to_first(states: list[dict[str, Any]], rank: int) -> dict[str, Any]:
    """Rank 0 continues the sums of all; the others start at 0."""
    names, share = states[0]["sums"], float(rank == 0)
    sums = {name: torch.stack([state["sums"][name] for state in states]).sum(0) * share for name in names}
    return {"sums": sums, "counts": torch.stack([state["counts"] for state in states]).sum(0) * int(share)}
