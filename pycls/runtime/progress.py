"""A progress bar for a person at a terminal."""

import sys
from typing import Any

from tqdm import tqdm


class Progress:
    """A bar with the values it is given, images (or bytes) per second and the time left; nothing where there is no terminal.

    Args:
        total: images in all; 0 if not known.
        description: what is going on, such as ``epoch 3/10``.
        enabled: whether to draw; None for whether standard error is a terminal. Rank 0 only, please.
        initial: images that were done before, in a resumed epoch.
        unit: what is counted: ``img``, or ``B`` for bytes, which are shown as kiB, MiB ...
    """

    def __init__(
        self, total: int, description: str, enabled: bool | None = None, initial: int = 0, unit: str = "img"
    ) -> None:
        if enabled is None:
            enabled = sys.stderr.isatty()
        self._bar = tqdm(
            total=total, desc=description, initial=initial, disable=not enabled, leave=False,
            unit=unit if unit == "B" else f" {unit}", unit_scale=unit == "B", unit_divisor=1024,
            dynamic_ncols=True, file=sys.stderr,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {rate_fmt}, {remaining} left{postfix}",
        )  # fmt: skip

    @property
    def enabled(self) -> bool:
        """Whether anything is drawn."""
        return not self._bar.disable

    def update(self, n: int, **fields: float | str) -> None:
        """``n`` more images are done; show these values (numbers of the host: reading a GPU's would wait for it)."""
        if fields and self.enabled:
            self._bar.set_postfix_str(", ".join(f"{key} {_short(value)}" for key, value in fields.items()), False)
        self._bar.update(n)

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
