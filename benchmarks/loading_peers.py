"""Other loaders for benchmarks/loading.py: timm, DALI and FFCV, each with its own threads or processes.

Each is ``(root, batch, cores, train) -> passes``, on the JPEG files of ``root/val``, and returns normalised float32
``[n, 3, 224, 224]``. Packages that are not installed are left out.

- timm: its data set, transforms and loader, with defaults except for colour jitter.
- DALI: ``decoders.image_random_crop``, which decodes only the crop, and an antialiased ``resize``, all on the CPU. It rounds
  an odd margin the other way, so its evaluation crop may be shifted by one pixel; otherwise pixels differ from Pillow's by 0.2
  to 0.5 grey levels of 255 on average.
- FFCV: reads its own file format, written beforehand from the same images: JPEG of quality 90, of the same size. It crops the
  centre before resizing, with OpenCV's area interpolation, so its pixels differ from the reference.
"""

import importlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision import datasets

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Passes = Callable[[int], Iterable[Any]]
"""Number of the pass -> its batches."""

_AHEAD = 2  # batches that DALI prepares beforehand
Maker = Callable[[Path, int, int, bool], Passes]


def timms(root: Path, batch: int, cores: int, train: bool) -> Passes:
    """timm's data set, transforms and loader with their defaults, without colour jitter."""
    from timm.data import create_dataset, create_loader

    data = create_dataset("", str(root / "val"), is_training=train)
    loader = create_loader(
        data, (3, 224, 224), batch, is_training=train, color_jitter=None, interpolation="bilinear", num_workers=cores,
        mean=MEAN, std=STD, device=torch.device("cpu"), pin_memory=False, persistent_workers=True,
    )  # fmt: skip
    return lambda number: loader


def dali(root: Path, batch: int, cores: int, train: bool) -> Passes:
    """DALI on the CPU, as many threads as cores.

    Two batches are under way at a time, its default, but none of the next pass: its own iterator would begin with that
    one while others are timed.
    """
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=batch, num_threads=cores, device_id=None, seed=0, prefetch_queue_depth=_AHEAD)
    def pipeline() -> Any:
        data, labels = fn.readers.file(file_root=str(root / "val"), random_shuffle=train, name="files")
        if train:
            images = fn.decoders.image_random_crop(data, random_area=[0.08, 1.0], random_aspect_ratio=[3 / 4, 4 / 3])
            images = fn.resize(images, size=[224, 224], interp_type=types.INTERP_LINEAR, antialias=True)
        else:
            images = fn.resize(fn.decoders.image(data), resize_shorter=256, interp_type=types.INTERP_LINEAR, antialias=True)
        images = fn.crop_mirror_normalize(
            images, crop=(224, 224), mirror=fn.random.coin_flip() if train else 0, mean=[255 * m for m in MEAN],
            std=[255 * s for s in STD], dtype=types.FLOAT, output_layout="CHW",
        )  # fmt: skip
        return images, labels

    made = pipeline()
    made.build()
    count = made.reader_meta("files")["epoch_size"] // batch

    def one_pass(number: int) -> Iterable[Any]:
        for _ in range(min(_AHEAD, count)):
            made.schedule_run()
        for index in range(count):
            found = made.share_outputs()
            arrays = [torch.from_numpy(np.array(part.as_array())) for part in found]
            made.release_outputs()
            if index + _AHEAD < count:
                made.schedule_run()
            yield arrays

    return one_pass


def ffcvs(root: Path, batch: int, cores: int, train: bool) -> Passes:
    """FFCV, as many threads as cores."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.rgb_image import CenterCropRGBImageDecoder, RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import NormalizeImage, RandomHorizontalFlip, ToTensor, ToTorchImage
    from ffcv.writer import DatasetWriter

    file = root / "photos.beton"
    if not file.exists():
        writer = DatasetWriter(str(file), {"image": RGBImageField("jpg", jpeg_quality=90), "label": IntField()}, num_workers=1)
        writer.from_indexed_dataset(datasets.ImageFolder(str(root / "val")))
    cut = [RandomResizedCropRGBImageDecoder((224, 224)), RandomHorizontalFlip()]
    if not train:
        cut = [CenterCropRGBImageDecoder((224, 224), ratio=224 / 256)]
    mean, std = (255 * np.array(values) for values in (MEAN, STD))
    pipelines = {"image": [*cut, NormalizeImage(mean, std, np.float32), ToTensor(), ToTorchImage()],
                 "label": [IntDecoder(), ToTensor()]}  # fmt: skip
    order = OrderOption.QUASI_RANDOM if train else OrderOption.SEQUENTIAL
    loader = Loader(str(file), batch, cores, order=order, os_cache=True, pipelines=pipelines, seed=0)
    return lambda number: loader


PEERS: dict[str, tuple[str, Maker]] = {
    "timm": ("timm", timms), "DALI": ("nvidia.dali", dali), "FFCV": ("ffcv.loader", ffcvs),
}  # fmt: skip
"""Name -> (what must be there to import, the loader)."""


def installed(wanted: Iterable[str] = PEERS) -> dict[str, Maker]:
    """Those of the wanted ones that are there; a line says of each of the others why it is left out."""
    found = {}
    for name in wanted:
        module, maker = PEERS[name]
        try:
            importlib.import_module(module)
        except (ImportError, OSError) as error:
            print(f"{name} is left out: {error}")
        else:
            found[name] = maker
    return found
