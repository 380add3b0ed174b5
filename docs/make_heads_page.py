#!/usr/bin/env python3
"""Writes docs/heads.md: every head with its formula, options, parts, numerical error, and the measured cost and accuracy.

    python docs/make_heads_page.py              # computes the errors (a minute); figures from benchmarks/results/*.json
    python docs/make_heads_page.py --check      # exit 1 unless the page has every head with its present options

Formulas, papers and options come from docstrings and signatures. The numerical error is the largest relative error of loss,
logits and all gradients against the per-sample float64 references of tests/heads.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "heads")]

from pycls.config import schema  # noqa: E402
from pycls.config.components import component_options  # noqa: E402
from pycls.config.options import Option  # noqa: E402
from pycls.registry import AUXILIARIES, CRITERIA, HEADS, MARGINS, SIMILARITIES, Registry  # noqa: E402

PAGE = ROOT / "docs" / "heads.md"
RESULTS = ROOT / "benchmarks" / "results"

OPENING = """\
# The heads

A head is similarity x margin x criterion (+ auxiliary losses); `HEAD: {{NAME: arcface, SCALE: 30.0}}` selects one by name,
and `HEAD: {{SIMILARITY: {{NAME: cosine}}, MARGIN: {{NAME: additive_angle}}, CRITERION: {{NAME: focal}}}}` one by its parts.
A similarity can be combined with any margin of its domain and with any criterion; a criterion and auxiliary losses may also
be given beside a name. Class counts come from the training set. In the library: `pycls.create_head("arcface",
in_features=512, num_classes=1000, scale=30.0)`.

This page is written by `python docs/make_heads_page.py` from the code.

## Overview

*float64*, *float32*: the largest relative error of loss, logits and every gradient against a per-sample float64 reference
written from the paper (`tests/heads`), with the head in float64 and float32; computed by the command above.
{cost_note}
{mnist_note}

| head | float64 | float32 | cost, x linear | MNIST error |
|---|---|---|---|---|
{rows}

Margins act in training only. Label -1 means that a sample has no target. A mixture `(labels_a, labels_b, lam)` gives the convex
combination of both losses.

Labels are a tensor of integers `[N]` of any integer type, from 0 to K - 1 or -1, on the features' device. Labels of another
type or shape (bool, float, `[N, 1]`, one-hot), features that are not floating-point `[N, D]`, and a `lam` outside 0..1 are
refused with a one-line error. So is a label that is no class, except on a GPU, where the check would need a synchronisation.
The loss of an empty batch, or of one without any target, is 0, and so are its gradients.

`class_counts` may be 0, for a class without training images, but not negative. Such a class does not affect the other
classes: LDAM's margins and class-balanced weights are computed without it. Its prior (`balanced_softmax`,
`logit_adjustment`) is 0: it is left out of the softmax with the prior, its samples do not count in the loss, and in
evaluation its logit is lowered by 1000, so that it is never predicted. All other heads treat it like any other class.

## By name
"""


def numerical_error(name: str) -> tuple[float, float]:
    """Largest relative errors in float64 and float32, over the test suite's cases at moderate sizes."""
    import torch
    from harness import CASES, certify, make_batch, make_head, options_of, set_radius

    worst = []
    for dtype in (torch.float64, torch.float32):
        errors = [0.0]
        for case in range(len(CASES[name])):
            for n, dim, classes in ((7, 3, 5), (16, 32, 50)):
                options = options_of(name, case, classes)
                head = make_head(name, dim, classes, options, dtype, case).train()
                batch = make_batch(name, head, options, n, case)
                if name == "ring":
                    head(batch.features, batch.labels)
                    set_radius(head, 0.8 * float(batch.features.norm(dim=1).mean()))
                errors += certify(name, head, batch, options).values()
        worst.append(max(errors))
    return worst[0], worst[1]


def measured(file: str) -> dict[str, Any]:
    """A result file of benchmarks/, or nothing."""
    path = RESULTS / file
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def table_rows(cost: dict[str, Any], mnist: dict[str, Any], errors: dict[str, tuple[float, float]]) -> str:
    """One row a head."""
    rows = []
    for name in HEADS.names():
        f64, f32 = errors[name]
        ratio, error = cost.get("ratio", {}).get(name), mnist.get("error", {}).get(name)
        rows.append(f"| [{name}](#{name}) | {f64:.0e} | {f32:.0e} | {f'{ratio[0]} ({ratio[1]}-{ratio[2]})' if ratio else ''} | "
                    f"{f'{error:.2f} %' if error is not None else ''} |")  # fmt: skip
    return "\n".join(rows)


def options_table(registry: Registry, name: str) -> str:
    """The options of a component: key, type and default, meaning."""
    options = component_options(registry, name)
    if not options:
        return "No options.\n"
    rows = [f"| `{key}` | {_type(option)} | {_default(option)} | {option.help} |" for key, option in options.items()]
    return "\n".join(["| option | type | default | |", "|---|---|---|---|", *rows]) + "\n"


def _type(option: Option) -> str:
    if option.choices:
        return ", ".join(f"`{choice}`" for choice in option.choices)
    return " or ".join(map(schema.type_name, schema.kinds_of(option)))


def _default(option: Option) -> str:
    return "required" if option.default is schema.REQUIRED else f"`{option.default!r}`"


def describe(registry: Registry, name: str) -> str:
    """A component's docstring without its arguments, and its options."""
    text = (registry.get(name).__doc__ or "").split("Args:")[0].split("Raises:")[0]
    lines = [line.strip() for line in text.strip().splitlines()]
    return "\n".join([f"### {name}", "", *lines, "", options_table(registry, name)])


def page(errors: dict[str, tuple[float, float]]) -> str:
    """The whole page."""
    cost, mnist = measured("heads_small.json"), measured("mnist_heads.json")
    text = OPENING.format(
        cost_note=f"*Cost*: {cost['note']}" if cost else "*Cost*: not measured yet (`python benchmarks/heads.py`).",
        mnist_note=f"*MNIST*: {mnist['note']}" if mnist else "*MNIST*: not measured yet (`python benchmarks/mnist_heads.py`).",
        rows=table_rows(cost, mnist, errors),
    )
    sections = [text, *(describe(HEADS, name) for name in HEADS.names())]
    for title, registry in (("Similarities", SIMILARITIES), ("Margins", MARGINS), ("Criteria", CRITERIA),
                            ("Auxiliary losses", AUXILIARIES)):  # fmt: skip
        sections += [f"## {title}\n", *(describe(registry, name) for name in registry.names())]
    return "\n".join(sections).rstrip() + "\n"


def missing(text: str) -> list[str]:
    """Heads, and options of theirs, that the page does not show as they are now."""
    lacking = []
    for registry in (HEADS, SIMILARITIES, MARGINS, CRITERIA, AUXILIARIES):
        lacking += [name for name in registry.names() if describe(registry, name) not in text]
    return lacking


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description="Writes docs/heads.md from the code and the measured figures.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the page is out of date")
    if parser.parse_args().check:
        lacking = missing(PAGE.read_text(encoding="utf-8") if PAGE.is_file() else "")
        print(f"docs/heads.md lacks or misstates: {', '.join(lacking)}" if lacking else "docs/heads.md is up to date")
        return int(bool(lacking))
    PAGE.write_text(page({name: numerical_error(name) for name in HEADS.names()}), encoding="utf-8")
    print(f"wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
