"""Loading an epoch of Fashion-MNIST: pycls compared with torchvision in one run.

    python benchmarks/small_data.py [--root DIR] [--repeats N] [--threads N]

Both give batches of 256 normalised float32 images, 60,000 of 28x28, each cut at random after padding by 2 and flipped
at random: torchvision by its data set, its transforms and DataLoader with 0 and 2 workers; pycls by TrainLoader. An
epoch is timed from asking for it to its last batch, workers' start included as in every epoch of a plain DataLoader.
The methods alternate, so that other load on the machine affects all of them. Without the real files under --root,
random images in the same format are made in a temporary folder: the time does not depend on what an image shows.
"""

import argparse
import gzip
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from common import setting

from pycls.data.dataset import resolve_root
from pycls.data.loader import TrainLoader
from pycls.data.sets.mnist import fashion_mnist

BATCH = 256
FILES = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]


def write_random_files(root: Path) -> None:
    """The four official files with random content under ``root``."""
    folder = root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for name in FILES:
        n = 60_000 if name.startswith("train") else 10_000
        shape, high = ((n, 28, 28), 256) if "images" in name else ((n,), 10)
        header = bytes([0, 0, 8, len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape)
        (folder / name).write_bytes(header + random.integers(0, high, shape, dtype=np.uint8).tobytes())


def torchvision_root(root: Path, workplace: Path) -> Path:
    """A folder with the files unzipped, which torchvision wants, without a change to the user's own."""
    source, target = root / "FashionMNIST" / "raw", workplace / "FashionMNIST" / "raw"
    if all((source / name).is_file() for name in FILES):
        return root
    target.mkdir(parents=True)
    for name in FILES:
        (target / name).write_bytes(gzip.decompress((source / f"{name}.gz").read_bytes()))
    return workplace


def torchvision_epoch(root: Path, workers: int) -> Callable[[int], Iterable[object]]:
    """A function that gives the batches of an epoch as a tutorial would."""
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    chain = transforms.Compose(
        [
            transforms.RandomCrop(28, padding=2),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.2860,), (0.3530,)),
        ]
    )
    data = datasets.FashionMNIST(str(root), train=True, transform=chain)
    loader = DataLoader(data, batch_size=BATCH, shuffle=True, num_workers=workers, drop_last=True)
    return lambda epoch: loader


def seconds(batches: Callable[[int], Iterable[object]], epoch: int) -> float:
    """Wall-clock time of one epoch."""
    start = time.perf_counter()
    count = sum(1 for _ in batches(epoch))
    if count != 60_000 // BATCH:
        raise SystemExit(f"an epoch of {count} batches, not {60_000 // BATCH}: these are no 60,000 training images")
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description="An epoch of Fashion-MNIST, data alone: pycls beside torchvision.")
    parser.add_argument("--root", default="", help="folder of the data sets; $PYCLS_DATA or ./data if not given")
    parser.add_argument("--repeats", type=int, default=5, help="epochs timed for each method")
    parser.add_argument("--threads", type=int, default=0, help="torch's threads; 0 for its own choice")
    arguments = parser.parse_args()
    if arguments.repeats < 1:
        parser.error("--repeats must be 1 or more")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as temporary:
        root, content = resolve_root(arguments.root), "the real images"
        raw = root / "FashionMNIST" / "raw"
        if not all((raw / name).is_file() or (raw / f"{name}.gz").is_file() for name in FILES):
            root, content = Path(temporary) / "made", "random images"
            write_random_files(root)
        plain = torchvision_root(root, Path(temporary) / "plain")
        data = fashion_mnist(str(root), "trainval", download=False)
        methods: dict[str, Callable[[int], Iterable[object]]] = {
            "torchvision, 2 workers": torchvision_epoch(plain, 2),
            "torchvision, 0 workers": torchvision_epoch(plain, 0),
            "pycls": TrainLoader(data, BATCH, crop_padding=2, hflip=True).epoch,
            "pycls, channels-last": TrainLoader(data, BATCH, crop_padding=2, hflip=True, channels_last=True).epoch,
        }
        times: dict[str, list[float]] = {name: [] for name in methods}
        for repeat in range(arguments.repeats):
            for name, batches in methods.items():
                times[name].append(seconds(batches, repeat))
    report(times, content)


def report(times: dict[str, list[float]], content: str) -> None:
    """Prints the table; ratios are of medians."""
    from torchvision import __version__ as torchvision_version

    medians = {name: statistics.median(values) for name, values in times.items()}
    first = next(iter(medians.values()))
    repeats = len(next(iter(times.values())))
    print(f"Fashion-MNIST ({content}), 60,000 images, batch {BATCH}, crop (padding 2) and flip; {repeats} repeats")
    print(f"{setting()}, torchvision {torchvision_version}\n")
    print(f"{'seconds an epoch':26}{'median':>8}{'least':>8}{'most':>8}   times as fast as torchvision with 2 workers")
    for name, values in times.items():
        print(f"{name:26}{medians[name]:8.3f}{min(values):8.3f}{max(values):8.3f}{first / medians[name]:9.1f}")


if __name__ == "__main__":
    main()
