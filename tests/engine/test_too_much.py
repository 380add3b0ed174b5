"""What is asked for beyond the data or the length of the training is known before it starts."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pycls import build, config
from pycls.errors import InputError
from pycls.run import trainers

LABELS = torch.arange(40) % 4


def load(*words: object) -> Any:
    return config.load(None, ["MODEL.TYPE", "lenet5", *map(str, words)], notify=lambda line: None)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("", ""),
        ("HEAD.MARGIN_WARMUP 5", "HEAD.MARGIN_WARMUP has no effect: the head softmax has no margin"),
        ("HEAD.NAME arcface HEAD.MARGIN_WARMUP 20", ""),
        ("HEAD.NAME arcface HEAD.MARGIN_WARMUP 21", "HEAD.MARGIN_WARMUP is 21, and the training has 20 steps"),
        ("OPTIM.EMA_UPDATE_PERIOD 20", ""),
        ("OPTIM.EMA_UPDATE_PERIOD 21", "OPTIM.EMA_UPDATE_PERIOD is 21, and the training has 20 steps: nothing is averaged"),
        ("TRAIN.IMAGES_PER_CLASS 10", ""),
        ("TRAIN.IMAGES_PER_CLASS 11", "TRAIN.IMAGES_PER_CLASS 11 has no effect: the largest class has 10 images"),
        ("TRAIN.SAMPLER class_aware TRAIN.SAMPLES_PER_CLASS 11", "TRAIN.SAMPLES_PER_CLASS is 11, and the largest class has 10"),
    ],
)
def test_more_than_there_is(words: str, line: str) -> None:
    cfg = load("OPTIM.MAX_EPOCH", 4, *words.split())
    head = SimpleNamespace(margin=None if cfg.HEAD.NAME == "softmax" else object())
    trainer: Any = SimpleNamespace(model=SimpleNamespace(head=head), loader=range(5))
    dataset: Any = SimpleNamespace(labels=LABELS)
    said = list(trainers._too_much(cfg, trainer, dataset))
    assert [part for part in said if not part.startswith(line)] == [] and len(said) == bool(line)


def test_top_k_is_at_most_the_number_of_classes() -> None:
    dataset: Any = SimpleNamespace(labels=LABELS, num_classes=4, name="four")
    assert build.num_classes(load("TEST.TOP_K", 4), dataset) == 4
    assert build.num_classes(load(), dataset) == 4, "the default is lowered"
    assert build.num_classes(load("TEST.TOP_K", 6, "MODEL.NUM_CLASSES", 6), dataset) == 6
    with pytest.raises(InputError, match=r"^TEST.TOP_K must be at most 4, the number of classes, not 6$"):
        build.num_classes(load("TEST.TOP_K", 6), dataset)
