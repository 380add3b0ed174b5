"""What the golden files pin, computed from the present code. ``python tests/golden/observe.py`` adds what is not pinned yet.

A golden value that an issue changes on purpose is deleted by hand, and written anew by this command in the same commit.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import simplejson
import torch
from torch import Tensor

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

import pycls
from pycls import registry
from pycls.config import components
from pycls.config.options import CORE

HERE = Path(__file__).parent
KINDS = ("MODELS", "DATASETS", "HEADS", "SIMILARITIES", "MARGINS", "CRITERIA", "AUXILIARIES")
SAMPLES, FEATURES, CLASSES, STEPS = 24, 6, 7, 20
COUNTS = [50, 31, 20, 12, 7, 4, 2]
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "softmax": [{}, {"bias": False}],
    "lsoftmax": [{}, {"margin": 2, "lambda_base": 0.0}],
    "sphereface": [{}, {"margin": 3, "lambda_base": 0.0, "lambda_min": 0.0}],
    "cosface": [{"scale": 8.0, "margin": 0.2}],
    "arcface": [{"scale": 8.0, "margin": 0.3}, {"scale": 8.0, "margin": 0.3, "easy_margin": True}],
    "combined": [{"scale": 8.0, "m1": 1.2, "m2": 0.1, "m3": 0.1}, {"scale": 8.0, "m1": 1.0, "m2": 0.3, "m3": 0.2}],
    "subcenter_arcface": [{"scale": 8.0, "margin": 0.3, "num_centers": 3}],
    "lgm": [{"covariance": "identity"}, {"covariance": "diagonal"}],
    "center": [{"weight": 0.1}, {"weight": 0.1, "update": "gradient"}],
    "ring": [{"weight": 0.1, "variant": variant} for variant in ("l2", "l1", "relative")],
    "smooth_topk": [{"k": 3}],
    "hard_topk": [{"k": 3}],
    "ldam": [{"class_counts": COUNTS}],
    "logit_adjustment": [{"class_counts": COUNTS}],
    "balanced_softmax": [{"class_counts": COUNTS}],
    "tvmf": [{}, {"kappa": 4.0}],
}
"""Options of each head's runs; a head that is not here has one run with its defaults."""

PARTS: dict[str, dict[str, Any]] = {
    "cosine+additive_angle+focal": {"similarity": ("cosine", {"scale": 8.0}), "margin": ("additive_angle", {"margin": 0.2}),
                                    "criterion": ("focal", {})},
    "linear+smoothing": {"similarity": ("linear", {}), "margin": None,
                         "criterion": ("cross_entropy", {"label_smoothing": 0.1})},
    "linear+class weights": {"similarity": ("linear", {}), "margin": None,
                             "criterion": ("cross_entropy", {"class_weights": [1.0, 2.0, 0.5, 1.0, 3.0, 1.0, 0.1]})},
}  # fmt: skip
"""Heads composed of parts: name -> similarity, margin, criterion with their options."""


def built_in(kind: str) -> list[str]:
    """The names of a registry's built-in components: other tests register their own."""
    known = getattr(registry, kind)
    return [name for name in known.names() if known.get(name).__module__.startswith("pycls.")]


def names() -> dict[str, list[str]]:
    """The names in every registry."""
    return {kind: built_in(kind) for kind in KINDS}


def options() -> dict[str, dict[str, Any]]:
    """Every option and its default: of the core, and of each component by ``KIND/name``."""
    found = {"CORE": {key: _default(option.default) for key, option in CORE.items()}}
    for kind in KINDS:
        of_kind = getattr(registry, kind)
        for name in built_in(kind):
            own = components.component_options(of_kind, name)
            found[f"{kind}/{name}"] = {key: _default(option.default) for key, option in own.items()}
    return found


def _default(value: Any) -> Any:
    return "required" if type(value) is object else list(value) if isinstance(value, tuple) else value


def state_keys() -> dict[str, list[str]]:
    """The entries of every head's and every family's state dict, as ``key [shape] dtype``."""
    found = {f"heads/{name}": _entries(head) for name, head in heads(torch.float32).items()}
    for name in built_in("MODELS"):
        if name not in ("timm", "torchvision", "anynet"):  # of other libraries, and the base of regnet
            with torch.device("meta"):
                found[f"models/{name}"] = _entries(pycls.create_model(name, num_classes=CLASSES))
    return found


def _entries(module: torch.nn.Module) -> list[str]:
    return [f"{key} {list(value.shape)} {str(value.dtype)[6:]}" for key, value in module.state_dict().items()]


def heads(dtype: torch.dtype) -> dict[str, torch.nn.Module]:
    """Every head in every setting, with the same weights in every version of PyTorch."""
    found = {}
    for name in built_in("HEADS"):
        for number, setting in enumerate(SETTINGS.get(name, [{}])):
            found[f"{name}/{number}"] = pycls.create_head(name, FEATURES, CLASSES, **setting)
    for name, parts in PARTS.items():
        similarity, criterion = parts["similarity"], parts["criterion"]
        margin = parts["margin"] and registry.MARGINS.get(parts["margin"][0])(**parts["margin"][1])
        found[name] = pycls.heads.Head(
            registry.SIMILARITIES.get(similarity[0])(in_features=FEATURES, num_classes=CLASSES, **similarity[1]),
            margin,
            registry.CRITERIA.get(criterion[0])(**criterion[1]),
        )
    for number, (name, head) in enumerate(found.items()):
        random = np.random.default_rng(number)
        with torch.no_grad():
            for _, value in head.named_parameters():
                noise = torch.from_numpy(random.standard_normal(value.shape))
                value.copy_(noise * 0.5 if value.dim() > 1 else value + 0.1 * noise)
        found[name] = head.to(dtype)
    return found


def losses(dtype: torch.dtype) -> dict[str, list[float]]:
    """Losses of 20 steps of SGD on the features and the head, and at the end the loss in evaluation mode, of every head."""
    return {name: _trained(head, dtype) for name, head in heads(dtype).items()}


def _trained(head: torch.nn.Module, dtype: torch.dtype) -> list[float]:
    random = np.random.default_rng(99)
    features = torch.from_numpy(random.standard_normal((STEPS, SAMPLES, FEATURES))).to(dtype)
    labels = torch.from_numpy(random.integers(0, CLASSES, (STEPS, SAMPLES)))
    labels[:, 0] = -1  # a sample without a target
    shift = torch.nn.Parameter(torch.zeros(FEATURES, dtype=dtype))
    optimizer = torch.optim.SGD([*head.parameters(), shift], lr=0.02, momentum=0.9)
    found = []
    for step in range(STEPS):
        target: Tensor | tuple[Tensor, Tensor, float] = labels[step]
        if step % 4 == 3:  # a mixture, as of mixup
            target = (labels[step], labels[step].flip(0), 0.7)
        loss = head(features[step] + shift, target).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    head.eval()
    return [*found, float(head(features[0] + shift, labels[0]).loss.detach())]


OBSERVED = {
    "names": names,
    "options": options,
    "state_keys": state_keys,
    "losses_float64": lambda: losses(torch.float64),
    "losses_float32": lambda: losses(torch.float32),
}
"""Golden file -> what it holds."""


def pinned(name: str) -> dict[str, Any]:
    """The content of a golden file, empty where there is none."""
    path = HERE / f"{name}.json"
    return dict(simplejson.loads(path.read_text())) if path.exists() else {}


def main() -> None:
    """Adds to each golden file what it does not hold yet."""
    torch.set_num_threads(1)
    for name, observe in OBSERVED.items():
        old, new = pinned(name), observe()
        for key, value in new.items():
            if isinstance(value, dict):
                old[key] = {**value, **old.get(key, {})}
            elif name == "names":
                old[key] = sorted({*value, *old.get(key, [])})
            else:
                old.setdefault(key, value)
        lines = (f" {simplejson.dumps(key)}: {simplejson.dumps(old[key])}" for key in old)
        (HERE / f"{name}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
