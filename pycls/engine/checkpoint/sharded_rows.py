"""Sharded tensors as they are saved: their rows lie in several files."""

from collections.abc import Sequence

import torch
from torch import Tensor


class ShardedRows:
    """A tensor of a state whose rows lie in several files, one file's after another's; a slice of rows is a tensor.

    Attributes:
        shape: of the whole.
        ndim: its length.
    """

    def __init__(self, pieces: Sequence[Tensor]) -> None:
        self._pieces = pieces
        self.shape = torch.Size((sum(map(len, pieces)), *pieces[0].shape[1:]))
        self.ndim = len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> Tensor:
        """The rows [start, stop); a copy only if they lie in several files."""
        low, high, _ = rows.indices(len(self))
        found = []
        for piece in self._pieces:
            if low < len(piece) and high > 0:
                found.append(piece[max(low, 0) : high])
            low, high = low - len(piece), high - len(piece)
        return torch.cat(found) if len(found) > 1 else found[0] if found else self._pieces[0][:0]
