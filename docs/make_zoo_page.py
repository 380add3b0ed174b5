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

Published weights for the architectures that are here: the 36 of pycls's Model Zoo, and torchvision's where both have the
same net. This page is written by `python docs/make_zoo_page.py` from `pycls/zoo/*.json`.

<!-- not run: fetches weights from the web; tests/zoo does the same with a server of its own -->
```python
import pycls

model = pycls.create_model("RegNetX-400MF", pretrained=True)  # pycls.models.regnetx("400MF", pretrained=True) as in pycls
model = pycls.create_model("ResNet-50", num_classes=10, pretrained="ResNet-50@torchvision-v2")  # ten classes: a new head
```

In a run `TEST.WEIGHTS` and `TRAIN.WEIGHTS` take such a name, a URL, or a file: ours, a checkpoint of pycls (`.pyth`), a
state dict of PyTorch (`.pth`), safetensors. Names of parameters may be ours, pycls's or torchvision's, or those of the
RBF-Softmax repository, of whose head the bias, which it never uses, is dropped (its published runs need `HEAD.GAMMA 35`).

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

## What is kept, and why it can be trusted

Files are kept in `weights` in the cache: `$PYCLS_CACHE`, else `pycls` in the user's cache directory. A connection that is
cut is taken up where it broke off, also by the next run; of several processes one downloads. A file gets its name when it is
complete and verified, so that no later run takes half a file, or an error page, for weights.

torchvision publishes the first 8 digits of each SHA-256; pycls none. What the first verified download of a file was is
written down in `weights.lock`, and nothing else is accepted under that URL from then on; copy that file to have other
machines accept only the same. Every use verifies the file. Nothing in a file is run: it is read for tensors, plain
values, and NumPy's numbers and arrays (which pycls's schedules leave in the state of its optimiser) alone, and one that asks
for more is refused by a line that says for what.

## What the weights want

Images are RGB in 0..1, minus the mean {mean}, divided by {std}: for all entries the same.
pycls's weights were trained on BGR. That is an attribute of the entry (and of any checkpoint of pycls that was trained on
ImageNet, by the configuration in it): the input channels of the first convolution are turned when the weights are loaded,
so that a loaded model takes RGB as every other one does, and is saved so.

In evaluation the short side is resized to *resize* and the centre of *crop* is cut out. `RegNetX-400MF`, `RegNetY-800MF` and
`RegNetY-8.0GF` of torchvision are other nets than pycls's (it rounds widths differently) and so are not here, nor are the
weights trained on pictures of Instagram (SWAG), whose licence forbids commercial use.
{notes}
With other classes, or a head of another kind, the backbone's weights are kept, the head is newly initialised, and a line of the
log says so (`TRAIN.WEIGHTS` and `create_model`; `TEST.WEIGHTS` must fit as a whole). These weights do not name their classes:
the head is kept for as many classes of ImageNet, taken to be in their usual order, which the log says too.
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
    """Numbers that some weights want besides the architecture's own, as options of a YAML."""
    keys = {"bn_eps": "BN.EPS", "ln_eps": "LN.EPS"}
    wanted: dict[str, list[str]] = {}
    for entry in entries().values():
        for option, value in entry.options.items():
            wanted.setdefault(f"`{keys[option]} {value:g}`", []).append(f"`{entry.name}`")
    lines = [f"- {option}: {', '.join(names)}" for option, names in wanted.items()]
    return "\n".join(["", "Some want an option that `create_model` sets, and without which a YAML is refused:", "", *lines, ""])


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
