#!/usr/bin/env python3
"""Writes docs/model_zoo.md from the entries of the zoo (pycls/zoo/*.json).

    python docs/make_zoo_page.py              # writes the page
    python docs/make_zoo_page.py --check      # exit 1 unless the page is what would be written
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pycls.zoo import Entry, entries  # noqa: E402

PAGE = ROOT / "docs" / "model_zoo.md"
TITLES = {"": "pycls's", "torchvision": "torchvision's"}

OPENING = """\
# The Model Zoo

Published weights for the architectures of this project: the 36 of pycls's Model Zoo, and torchvision's if both have the same
network. This page is written by `python docs/make_zoo_page.py` from `pycls/zoo/*.json`.

<!-- not run: fetches weights from the web; tests/zoo does the same with a local server -->
```python
import pycls

model = pycls.create_model("RegNetX-400MF", pretrained=True)  # pycls.models.regnetx("400MF", pretrained=True) as in pycls
model = pycls.create_model("ResNet-50", num_classes=10, pretrained="ResNet-50@torchvision-v2")  # ten classes: a new head
```

In a run `TEST.WEIGHTS` and `TRAIN.WEIGHTS` take such a name, a URL, or a file: weights or a checkpoint of this project, a
checkpoint of pycls (`.pyth`), a PyTorch state dict (`.pth`), safetensors. Parameters may have this project's names, pycls's,
torchvision's, or those of the RBF-Softmax repository; the unused bias of its head is dropped (its published runs need
`HEAD.GAMMA 35`).

<!-- not run: fetches weights from the web and needs ImageNet -->
```bash
python tools/run_net.py --mode test --cfg configs/dds_baselines/regnetx/RegNetX-400MF_dds_8gpu.yaml \\
    TEST.WEIGHTS RegNetX-400MF OUT_DIR runs/test
```

`tools/zoo.py` lists, shows, downloads and verifies:

```bash
python tools/zoo.py list
python tools/zoo.py show ResNet-50@torchvision-v2
python tools/zoo.py verify
```

## Cache and verification

Files are kept in the folder `weights` of the cache: `$PYCLS_CACHE`, or `pycls` in the user's cache directory. An interrupted
download is resumed, also by the next run; of several processes one downloads. A file gets its final name only when it is
complete and verified, so no later run uses an incomplete file or an error page.

torchvision publishes the first 8 digits of each SHA-256, pycls none. The SHA-256 of the first verified download is recorded in
`weights.lock`, and from then on no other file is accepted for that URL; copy `weights.lock` to apply the same check on other
machines. A file is verified at every use, and no code in it is executed: only tensors, plain values, and NumPy numbers and
arrays (which pycls's schedules leave in the optimiser state) are read. A file with anything else is refused by a line that
names it.

## Preprocessing and options

Images are RGB in 0..1, minus the mean {mean}, divided by {std}, for all entries. pycls's weights were trained on BGR, which
is recorded in the entry (and follows, for any checkpoint of pycls trained on ImageNet, from the configuration in it).
Loading them reverses the input channels of the first convolution, so the loaded model takes RGB, and is saved for RGB.

In evaluation the short side is resized to *resize*, and the centre crop has side *crop*. `RegNetX-400MF`, `RegNetY-800MF`
and `RegNetY-8.0GF` of torchvision are not included, since they differ from pycls's (torchvision rounds widths differently),
nor are the weights trained on Instagram images (SWAG), whose licence forbids commercial use.
{notes}
With other classes, or a head of another type, the weights of the backbone are kept, the head is re-initialised, and a
line in the log says so (for `TRAIN.WEIGHTS` and `create_model`; `TEST.WEIGHTS` must fit completely). These weights contain no
class names: the head is kept if the number of classes is ImageNet's, assuming their usual order, which is also logged.
"""


def row(entry: Entry) -> str:
    """An entry's line of its table."""
    name = f"[`{entry.name}`]({entry.url})"
    digest = f"`{entry.sha256[:8]}`" if entry.sha256 else "pinned"
    size, errors = f"{entry.resize} / {entry.crop}", f"{entry.top1_err:.2f} | {entry.top5_err:.2f}"
    return f"| {name} | {entry.params / 1e6:.1f} M | {size} | {errors} | {digest} |"


def table(title: str, rows: Iterable[Entry]) -> str:
    """A publisher's entries."""
    listed = list(rows)
    first = listed[0]
    about = (f"From [the publisher's page]({first.source}), licence {first.licence}, trained on {first.data}\n"
             f"in {first.colours}. Errors as published, in percent.")  # fmt: skip
    head = ["| name | params | resize / crop | top-1 error | top-5 error | SHA-256 |", "|---|---|---|---|---|---|"]
    return "\n".join([f"## {title} weights", "", about, "", *head, *map(row, listed)])


def notes() -> str:
    """Options that some weights need beside those of the architecture, as in a YAML."""
    keys = {"bn_eps": "BN.EPS", "ln_eps": "LN.EPS"}
    wanted: dict[str, list[str]] = {}
    for entry in entries().values():
        for option, value in entry.options.items():
            wanted.setdefault(f"`{keys[option]} {value:g}`", []).append(f"`{entry.name}`")
    lines = [f"- {option}: {', '.join(names)}" for option, names in wanted.items()]
    title = "Options that some weights need; `create_model` sets them, a YAML without them is refused:"
    return "\n".join(["", title, "", *lines, ""])


def page() -> str:
    """The whole page."""
    known = list(entries().values())
    (mean,), (std,) = {entry.mean for entry in known}, {entry.std for entry in known}
    tables = []
    for publisher, title in TITLES.items():
        own = [entry for entry in known if entry.name.partition("@")[2].rpartition("-")[0] == publisher]
        tables.append(table(title, own))
    opening = OPENING.format(mean=", ".join(map(str, mean)), std=", ".join(map(str, std)), notes=notes())
    return "\n\n".join([opening.rstrip(), *tables]) + "\n"


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description="Writes docs/model_zoo.md from the entries of the zoo.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the page is out of date")
    if parser.parse_args().check:
        good = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page()
        print("docs/model_zoo.md is up to date" if good else "docs/model_zoo.md is out of date")
        return int(not good)
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
