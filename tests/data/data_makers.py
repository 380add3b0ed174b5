"""Small data sets in their publishers' forms, written by the tests themselves."""

import gzip
import pickle
from pathlib import Path

import numpy as np
import torch

from pycls.data.dataset import ArrayDataset


def array_dataset(n: int, side: int = 8, channels: int = 1, classes: int = 10, **facts: object) -> ArrayDataset:
    """Random images; the label of image i is i modulo ``classes``."""
    generator = torch.Generator().manual_seed(n)
    values: dict[str, object] = {
        "name": "made",
        "labels": torch.arange(n) % classes,
        "class_names": [str(i) for i in range(classes)],
        "channels": channels,
        "image_size": side,
        "mean": (0.4, 0.5, 0.6)[:channels],
        "std": (0.2, 0.25, 0.3)[:channels],
        "crop_padding": 0,
        "hflip": False,
        "images": torch.randint(0, 256, (n, channels, side, side), dtype=torch.uint8, generator=generator),
    }
    return ArrayDataset(**{**values, **facts})  # type: ignore[arg-type]


def idx_bytes(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_idx(folder: Path, n: int = 40, n_test: int = 20, zipped: bool = True) -> np.ndarray:
    """An MNIST of random images in its four official files; the images of the training part are returned."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for part, size in (("t10k", n_test), ("train", n)):
        images, labels = random.integers(0, 256, (size, 28, 28)), np.arange(size) % 10
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            data = idx_bytes(array)
            path = folder / f"{part}-{kind}-ubyte{'.gz' if zipped else ''}"
            path.write_bytes(gzip.compress(data) if zipped else data)
    return images.astype(np.uint8)


def cifar_batch(n: int, label_keys: dict[str, int], seed: int = 0) -> dict[str, object]:
    """One batch of the python form; labels run through the classes of each key."""
    data = np.random.default_rng(seed).integers(0, 256, (n, 3072)).astype(np.uint8)
    labels = {key: [i % classes for i in range(n)] for key, classes in label_keys.items()}
    return {"data": data, "batch_label": "made", "filenames": [f"{i}.png" for i in range(n)], **labels}


def write_cifar10(root: Path, n: int = 20) -> np.ndarray:
    """Six files of the python form; the pixels of the training part are returned, ``[5 n, 3072]``."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    pixels = []
    for seed, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        batch = cifar_batch(n, {"labels": 10}, seed)
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
        pixels.append(batch["data"])
    return np.concatenate(pixels[:-1])
