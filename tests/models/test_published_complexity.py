"""The nets of pycls's Model Zoo by name have its published counts, exactly; ViT and DenseNet those of their papers.

The same counts by configuration are in tests/config.
"""

import json
import re
from pathlib import Path

import pytest
import torch

from pycls.models import create_model
from pycls.models.complexity import Complexity, complexity
from pycls.models.zoo_names import ARCHITECTURES

COUNTS = Path(__file__).parents[1] / "config" / "pycls" / "model_complexity.json"
OTHER_NAMES = ((r"^R-(\d+)-1x64d$", r"ResNet-\1"), (r"^X-(\d+)-32x4d$", r"ResNeXt-\1"), (r"^EN-", "EfficientNet-"))
"""A name in a file of pycls's baselines -> in its Model Zoo."""


def published() -> dict[str, Complexity]:
    """Name in pycls's Model Zoo -> counts."""
    found = {}
    for path, counts in json.loads(COUNTS.read_text(encoding="utf-8")).items():
        if "dds_baselines" in path:
            name = Path(path).name.removesuffix("_dds_8gpu.yaml")
            for pattern, own in OTHER_NAMES:
                name = re.sub(pattern, own, name)
            found[name] = Complexity(**counts)
    return found


PUBLISHED = published()


def test_all_of_them_have_a_name() -> None:
    assert len(PUBLISHED) == 36
    assert PUBLISHED.keys() <= ARCHITECTURES.keys()


@pytest.mark.parametrize("name", PUBLISHED)
def test_architecture_by_name(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name, 1000)
    assert complexity(model, 3, ARCHITECTURES[name].image_size) == PUBLISHED[name]


@pytest.mark.parametrize(
    ("options", "flops", "params", "acts"),
    [
        # ViT-B/16 at 224, by hand: 196 patches of 768, 12 blocks on 197 positions of width 768
        (
            {},
            196 * 768 * (768 + 1) + 12 * 197 * (4 * 768 * 769 + 2 * 197 * 768 + 3072 * 769 + 768 * 3073) + 769_000,
            86_567_656,  # torchvision's
            196 * 768 + 12 * 197 * (5 * 768 + 12 * 197 + 3072 + 768) + 1000,
        ),
    ],
)
def test_vit(options: dict[str, int], flops: int, params: int, acts: int) -> None:
    with torch.device("meta"):
        model = create_model("vit", 1000, **options)
    assert complexity(model, 3, 224) == (flops, params, acts)


@pytest.mark.parametrize(
    ("depth", "options", "params"),
    [
        (121, {}, 7_978_856), (161, {}, 28_681_000), (169, {}, 14_149_480), (201, {}, 20_013_928),  # torchvision's
    ],
)  # fmt: skip
def test_densenets(depth: int, options: dict[str, int], params: int) -> None:
    with torch.device("meta"):
        model = create_model("densenet", 1000, depth=depth, **options)
    assert complexity(model, 3, 224).params == params


@pytest.mark.parametrize(
    ("depth", "options", "millions"),
    [  # table 2 of the DenseNet paper
        (40, {"growth_rate": 12, "bottleneck": False, "reduction": 1.0}, 1.0),
        (100, {"growth_rate": 12}, 0.8),
        (250, {"growth_rate": 24}, 15.3),
        (190, {"growth_rate": 40}, 25.6),
    ],
)
def test_densenets_of_the_paper_for_cifar(depth: int, options: dict[str, object], millions: float) -> None:
    with torch.device("meta"):
        model = create_model("densenet", 10, image_size=32, depth=depth, **options)
    assert round(complexity(model, 3, 32).params / 1e6, 1) == millions
