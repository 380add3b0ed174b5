"""The cases of ``train_step.py``: models, sizes, goals, and random images for them."""

from dataclasses import dataclass, replace

import torch

from pycls.data.dataset import ArrayDataset


@dataclass(frozen=True)
class Case:
    """A model, its images and how many of them.

    Attributes:
        title: for the table.
        overrides: of the options.
        channels: of an image.
        side: of an image, pixels.
        batch: images a step.
        steps: of a measurement, an epoch of the data.
        timm: its name for the net; empty where it has none.
        goal: our speed as a multiple of the bare loop's; None for no goal.
    """

    title: str
    overrides: tuple[str, ...]
    channels: int
    side: int
    batch: int
    steps: int
    timm: str = ""
    goal: float | None = 0.97

    def eager(self) -> "Case":
        """The same without ``torch.compile``."""
        title = self.title.replace(", compiled", "")
        return replace(self, title=title, overrides=(*self.overrides, "MODEL.COMPILE=False"))

    def tiny(self) -> "Case":
        """The same at a size that says nothing, and in float32: bf16 takes minutes on many a CPU."""
        overrides = (*self.overrides, "TRAIN.MIXED_PRECISION=False")
        return replace(self, overrides=overrides, batch=2, steps=2, side=min(self.side, 32))


CASES = {
    "lenet5": Case("LeNet-5, 28x28, batch 256", ("MODEL.TYPE=lenet5", "TRAIN.DATASET=mnist"), 1, 28, 256, 50),
    "resnet20": Case("ResNet-20, 32x32, batch 128", ("MODEL.TYPE=resnet", "MODEL.DEPTH=20", "TRAIN.DATASET=cifar10"),
                     3, 32, 128, 10),
    "resnet18": Case("ResNet-18, 112x112, batch 32",
                     ("MODEL.TYPE=resnet", "MODEL.DEPTH=18", "TRAIN.DATASET=imagenet"),
                     3, 112, 32, 6, "resnet18"),
}  # fmt: skip
"""On the CPU."""

COMPILED = ("MODEL.COMPILE=True", "TRAIN.MIXED_PRECISION=bf16", "MODEL.CHANNELS_LAST=True")

GPU_CASES = {
    "resnet50": Case("ResNet-50, 224x224, batch 256, bf16, compiled",
                     ("MODEL.TYPE=resnet", "MODEL.DEPTH=50", "TRAIN.DATASET=imagenet", *COMPILED),
                     3, 224, 256, 20, goal=0.98),
    "resnet18_cifar": Case("ResNet-18, CIFAR form, 32x32, batch 512, bf16, compiled",
                           ("MODEL.TYPE=resnet", "MODEL.DEPTH=18", "RESNET.STEM=cifar", "TRAIN.DATASET=cifar10", *COMPILED),
                           3, 32, 512, 40, goal=None),
}  # fmt: skip
"""On a GPU."""


def random_images(case: Case) -> ArrayDataset:
    """An epoch of random images in ten classes, with crop and, of colour images, flip."""
    generator = torch.Generator().manual_seed(0)
    n, colour = case.steps * case.batch, case.channels == 3
    images = torch.randint(0, 256, (n, case.channels, case.side, case.side), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (n,), generator=generator)
    return ArrayDataset(
        name="random", labels=labels, class_names=[str(i) for i in range(10)], channels=case.channels,
        image_size=case.side, mean=(0.5,) * case.channels, std=(0.25,) * case.channels,
        crop_padding=4 if colour else 2, hflip=colour, images=images,
    )  # fmt: skip
