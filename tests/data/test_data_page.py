"""The example of docs/data.md is run as it stands."""

import re
from pathlib import Path

from pycls.data.loader import TrainLoader
from pycls.registry import DATASETS


def test_a_data_set_of_ones_own():
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    exec(compile(code, "docs/data.md", "exec"), {"__name__": "stripes_of_the_page"})
    try:
        parts = {split: DATASETS.get("stripes")("", split, width=4) for split in ("train", "val", "test")}
    finally:
        DATASETS._entries.pop("stripes", None)
    assert {split: len(part) for split, part in parts.items()} == {"train": 900, "val": 100, "test": 1000}
    assert next(iter(TrainLoader(parts["train"], 50).epoch(0))).images.shape == (50, 1, 16, 16)
