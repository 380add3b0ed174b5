"""The zoo's data: complete, of the right types, and true to the architectures and to torchvision."""

import re
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pytest
import torch

from pycls import build, config
from pycls.errors import InputError
from pycls.models import create_model
from pycls.models.zoo_names import ARCHITECTURES
from pycls.zoo import Entry, entries, find

PYCLS = [entry for entry in entries().values() if "@" not in entry.name]
TORCHVISION = [entry for entry in entries().values() if "@torchvision" in entry.name]
DIFFERENT = {(entry.architecture, entry.crop, entry.params): entry for entry in entries().values()}
"""One of those that are the same net at the same size, which takes a moment to build."""


def test_pyclss_zoo_is_whole() -> None:
    assert len(PYCLS) == 36 and len(PYCLS) + len(TORCHVISION) == len(entries())
    assert len({entry.url for entry in entries().values()}) == len(entries())
    for entry in PYCLS:
        assert entry.name == entry.architecture and entry.colours == "BGR" and entry.licence == "MIT"
        stem = Path(entry.config).stem
        assert re.fullmatch(rf"https://dl\.fbaipublicfiles\.com/pycls/dds_baselines/\d{{9}}/{re.escape(stem)}\.pyth", entry.url)
    families = [name.partition("-")[0] for name in (entry.name for entry in PYCLS)]
    assert [families.count(f) for f in ("RegNetX", "RegNetY", "ResNet", "ResNeXt", "EfficientNet")] == [12, 12, 3, 3, 6]


@pytest.mark.parametrize("entry", entries().values(), ids=lambda entry: entry.name)
def test_facts_have_their_types_and_ranges(entry: Entry) -> None:
    hints = get_type_hints(Entry)
    for field in fields(Entry):
        value, kind = getattr(entry, field.name), hints[field.name]
        if kind in (str, int, float):
            assert type(value) is kind, field.name
    assert entry.colours in ("RGB", "BGR") and entry.interpolation in ("bilinear", "bicubic")
    assert len(entry.mean) == len(entry.std) == 3 and all(0 < value < 1 for value in (*entry.mean, *entry.std))
    assert 0 < entry.top5_err < entry.top1_err < 50 and 32 <= entry.crop <= entry.resize
    assert re.fullmatch(r"[0-9a-f]{64}|[0-9a-f]{8}|", entry.sha256)
    assert entry.url.startswith("https://") and entry.source.startswith("https://")


@pytest.mark.parametrize("entry", DIFFERENT.values(), ids=lambda entry: entry.name)
def test_the_architecture_has_as_many_parameters_as_published(entry: Entry) -> None:
    with torch.device("meta"):
        model = create_model(entry.architecture, entry.classes, image_size=entry.crop, **entry.options)
    assert sum(parameter.numel() for parameter in model.parameters()) == entry.params
    assert entry.classes == model.head.similarity.num_classes == 1000


def test_every_architecture_has_weights() -> None:
    assert {entry.architecture for entry in entries().values()} == set(ARCHITECTURES)


def test_what_torchvision_says_of_its_weights() -> None:
    models = pytest.importorskip("torchvision.models", reason="torchvision publishes these")
    names = models.list_models(module=models)
    official = {weights.url: weights for name in names for weights in models.get_model_weights(name)}
    assert len(TORCHVISION) == 54
    for entry in TORCHVISION:
        weights = official[entry.url]
        transforms, accuracy = weights.transforms(), weights.meta["_metrics"]["ImageNet-1K"]
        assert (transforms.crop_size, transforms.resize_size) == ([entry.crop], [entry.resize])
        assert (tuple(transforms.mean), tuple(transforms.std)) == (entry.mean, entry.std)
        assert transforms.interpolation.value == entry.interpolation
        assert weights.meta["num_params"] == entry.params
        assert entry.top1_err == pytest.approx(100 - accuracy["acc@1"])
        assert entry.top5_err == pytest.approx(100 - accuracy["acc@5"])
        assert entry.sha256 == re.search(r"-([0-9a-f]{8})\.pth$", entry.url)[1]  # type: ignore[index]
        assert entry.name.endswith(weights.name.rpartition("_")[2].lower())


def test_names_and_architectures_are_found() -> None:
    assert find("ResNet-50").url.endswith("R-50-1x64d_dds_8gpu.pyth")
    assert find("ResNet-50@torchvision-v1").sha256 == "0676ba61"
    assert find("ResNet-18").name == "ResNet-18@torchvision-v1"
    assert find("WideResNet-50-2").name == "WideResNet-50-2@torchvision-v2"
    with pytest.raises(InputError, match="no weights 'RegNetX-400'; did you mean 'RegNetX-400MF'"):
        find("RegNetX-400")


def test_a_fact_that_no_entry_has_is_a_mistake(publish) -> None:  # type: ignore[no-untyped-def]
    publish({"a": {"url": "https://h/a", "colours": "RGB", "classes": 3, "colors": "BGR"}})
    with pytest.raises(TypeError, match="colors"):
        entries()


@pytest.mark.parametrize("entry", PYCLS, ids=lambda entry: entry.name)
def test_the_configuration_is_of_this_net_and_these_images(entry: Entry) -> None:
    here = ["TRAIN.DATASET=digits", "TEST.DATASET=digits"]  # whichever the images are of
    cfg = config.load(str(Path(__file__).parents[2] / entry.config), here)
    assert (entry.crop, entry.resize, entry.classes) == (cfg.TRAIN.IM_SIZE, cfg.TEST.IM_SIZE, cfg.MODEL.NUM_CLASSES)
    model = build.build_model(cfg, 3, cfg.TRAIN.IM_SIZE, entry.classes, storage=False)
    with torch.device("meta"):
        named = create_model(entry.architecture, entry.classes)
    shapes = [{name: tensor.shape for name, tensor in net.state_dict().items()} for net in (model, named)]
    assert shapes[0] == shapes[1]
