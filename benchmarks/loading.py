"""Photographs from JPEG files to normalised batches: pycls compared with torchvision, timm, DALI and FFCV in one run.

    python benchmarks/loading.py [--photos DIR] [--cores 1,2] [--repeats N] [--peers timm DALI FFCV] [--device cuda]
                                 [--json FILE]

Training is RandomResizedCrop 224 and a flip, evaluation Resize 256 and CenterCrop 224, both antialiased; every method returns
float32 batches. There are as many worker processes as cores, and all processes, the consumer included, are bound to these
cores. Loaders and workers are created beforehand; a pass is timed from its start to its last batch. The methods alternate.
Without --photos (any tree of JPEGs) images of ImageNet's size are generated in a temporary folder.

With --device cuda all batches end on the GPU: each method's batches are copied from pageable memory in the same way, and in an
additional row pycls decodes on the GPU (DATA_LOADER.DECODER gpu), with as many worker processes to read the files.

"decode only" is libjpeg-turbo (torchvision's) decoding whole images from memory, in one process per core.
"""

import argparse
import datetime
import json
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from common import machine, quartiles, setting, shown_spread, table
from loading_peers import MEAN, PEERS, STD, Maker, Passes, installed
from photographs import lay_out
from torch.utils.data import DataLoader
from torchvision import datasets, transforms
from torchvision.io import ImageReadMode, decode_image, decode_jpeg, read_file
from torchvision.transforms import v2

from pycls.data.images.jpeg_decoder import jpeg_decoder
from pycls.data.loader import EvalLoader, TrainLoader
from pycls.data.sets.image_folder import ImageFolder


def plain_loader(data: Any, batch: int, cores: int, train: bool) -> Passes:
    loader = DataLoader(data, batch, shuffle=train, num_workers=cores, persistent_workers=True)
    return lambda number: loader


def imagefolder(root: Path, batch: int, cores: int, train: bool) -> Passes:
    """What PyTorch's ImageNet example does."""
    cut: list[Any] = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()]
    if not train:
        cut = [transforms.Resize(256), transforms.CenterCrop(224)]
    chain = transforms.Compose([*cut, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    return plain_loader(datasets.ImageFolder(str(root / "val"), chain), batch, cores, train)


def read_rgb(path: str) -> torch.Tensor:
    """uint8 ``[3, H, W]``."""
    return decode_image(read_file(path), ImageReadMode.RGB)


def tensors(root: Path, batch: int, cores: int, train: bool) -> Passes:
    """torchvision's own decoder, and v2 on bytes."""
    cut: list[Any] = [v2.RandomResizedCrop(224, antialias=True), v2.RandomHorizontalFlip()]
    if not train:
        cut = [v2.Resize(256, antialias=True), v2.CenterCrop(224)]
    chain = v2.Compose([*cut, v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    return plain_loader(datasets.ImageFolder(str(root / "val"), chain, loader=read_rgb), batch, cores, train)


def ours(root: Path, batch: int, cores: int, train: bool, native: bool = True) -> Passes:
    """pycls, decoding by its own means or by Pillow."""
    data = ImageFolder(str(root), "train" if train else "val")
    if train:
        return TrainLoader(data, batch, num_workers=cores, channels_last=True, native=native).epoch
    loader = EvalLoader(data, batch, num_workers=cores, channels_last=True, native=native)
    return lambda number: loader


def on_device(root: Path, batch: int, cores: int, train: bool, device: str = "cuda") -> Passes:
    """pycls, the device decoding."""
    data = ImageFolder(str(root), "train" if train else "val")
    if train:
        return TrainLoader(data, batch, num_workers=cores, device=device, channels_last=True, pin_memory=True,
                           decode_on_device=True).epoch  # fmt: skip
    loader = EvalLoader(data, batch, num_workers=cores, device=device, channels_last=True, pin_memory=True,
                        decode_on_device=True)  # fmt: skip
    return lambda number: loader


def _decode_all(files: list[bytes]) -> int:
    torch.set_num_threads(1)
    for data in files:
        decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
    return len(files)


def decoding_alone(root: Path, cores: int) -> Callable[[], float]:
    """A function that times it: seconds for all files."""
    files = [path.read_bytes() for path in sorted((root / "val" / "photos").iterdir())]
    pool = get_context("fork").Pool(cores)
    shares = [files[core::cores] for core in range(cores)]
    return lambda: _timed(lambda: pool.map(_decode_all, shares))


def _timed(job: Callable[[], object]) -> float:
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def seconds(passes: Passes, number: int, images: int, device: str) -> float:
    """Wall-clock time of a pass, until its last batch is on the device."""
    start, seen = time.perf_counter(), 0
    for batch in passes(number):
        seen += len(batch[0].to(device))
    if device == "cuda":
        torch.cuda.synchronize()
    if seen != images:
        raise SystemExit(f"error: a pass of {seen} images, not {images}")
    return time.perf_counter() - start


def timings(
    root: Path, images: int, batch: int, cores: int, repeats: int, peers: dict[str, Maker], device: str
) -> dict[str, dict[str, list[float]]]:
    """Train and eval -> method -> images a second, one a round; a first round is not counted."""
    makers: dict[str, Maker] = {
        "torchvision ImageFolder (PIL)": imagefolder,
        "torchvision v2 (tensor)": tensors,
        "pycls": ours,
        "pycls, Pillow": lambda *given: ours(*given, native=False),
        **({"pycls, on the GPU": on_device} if device == "cuda" else {}),
        **peers,
    }
    if jpeg_decoder() is None:
        print("pycls decodes by Pillow; the warning says why")
    rates: dict[str, dict[str, list[float]]] = {}
    decode = decoding_alone(root, cores)
    for train in (True, False):
        methods = {name: make(root, batch, cores, train) for name, make in makers.items()}
        found: dict[str, list[float]] = {name: [] for name in [*methods, "decode only"]}
        for number in range(repeats + 1):
            for name, passes in methods.items():
                took = seconds(passes, number, images, device)
                if number:
                    found[name].append(images / took)
            took = decode()
            if number:
                found["decode only"].append(images / took)
        rates["train" if train else "eval"] = found
    return rates


def report(rates: dict[str, dict[str, list[float]]], cores: int) -> None:
    """Images a second, and the ratios to ImageFolder of the same round."""
    for part, found in rates.items():
        first = found["torchvision ImageFolder (PIL)"]
        rows = []
        for name, values in sorted(found.items(), key=lambda item: statistics.median(item[1])):
            ratios = [a / b for a, b in zip(values, first, strict=True)]
            spread = shown_spread(quartiles(ratios))
            rows.append([name, f"{statistics.median(values):.0f}", f"{statistics.median(ratios):.2f}", spread])
        print(f"\n{part}, {cores} core{'s' * (cores > 1)}")
        print(table(["", "img/s", "x ImageFolder", "spread"], rows))


def main() -> None:
    options = argparse.ArgumentParser(description="Photographs from JPEG files to normalised batches.")
    options.add_argument("--photos", type=Path, help="a tree of JPEG files; pictures are drawn without it")
    options.add_argument("--cores", default="1,2", help="how many to use, one after the other (1,2)")
    options.add_argument("--images", type=int, default=512, help="in a pass (512)")
    options.add_argument("--repeats", type=int, default=5, help="rounds (5)")
    options.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS), help="beside torchvision (all there are)")
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the batches end (cpu)")
    options.add_argument("--json", type=Path, help="a file for all figures")
    options.add_argument("--quick", action="store_true", help="a few images and one round: does it run at all?")
    given = options.parse_args()
    if given.quick:
        given.images, given.repeats, given.cores = 8, 1, "1"
    if given.device == "cuda" and not torch.cuda.is_available():
        options.error("--device cuda: this PyTorch finds no GPU")
    batch = max(1, given.images // 16)
    if given.images % batch or given.repeats < 1:
        options.error("--images must be a multiple of 16, --repeats 1 or more")
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    peers = installed(given.peers)
    everything = os.sched_getaffinity(0)
    results = {}
    with tempfile.TemporaryDirectory() as temporary:
        content = lay_out(given.photos, Path(temporary), given.images)
        print(f"{content}; {given.images} images a pass, batches of {batch}; {given.repeats} rounds\n{setting(given.device)}")
        for cores in map(int, given.cores.split(",")):
            if cores > len(everything):
                print(f"\n{cores} cores: this machine has {len(everything)}")
                continue
            os.sched_setaffinity(0, sorted(everything)[:cores])
            results[str(cores)] = timings(Path(temporary), given.images, batch, cores, given.repeats, peers, given.device)
            report(results[str(cores)], cores)
            os.sched_setaffinity(0, everything)
    if given.json:
        about = {"machine": machine(given.device), "date": datetime.date.today().isoformat(), "torch": torch.__version__,
                 "files": content}  # fmt: skip
        given.json.write_text(json.dumps({**about, "images_per_second": results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
