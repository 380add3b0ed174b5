#!/usr/bin/env python3
"""A folder of photographs for benchmarks, in the form of ImageNet: ``train/photos`` and ``val/photos``, copies of each other.

    python benchmarks/photographs.py DIR [--photos TREE] [--images 8448]

Without --photos (any tree of JPEGs) images of ImageNet's size are generated. Images are repeated as often as needed, as
separate files: links to files that both splits have would be refused.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

DIFFERENT = 128
"""Pictures drawn at most."""


def draw_photographs(folder: Path, count: int) -> None:
    """Smooth shapes with grain, 500 x 375, about 110 kB each, as ImageNet's are."""
    for number in range(count):
        random = np.random.default_rng(number)
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3)).astype(np.uint8))
        smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC)).astype(int)
        grain = smooth + random.normal(0, 14, (375, 500, 1)).astype(int)
        target = folder / "photo"
        target.mkdir(parents=True, exist_ok=True)
        Image.fromarray(grain.clip(0, 255).astype(np.uint8)).save(target / f"{number}.jpg", quality=90)


def lay_out(photos: Path | None, root: Path, images: int) -> str:
    """``images`` files under ``root/val/photos``, each photograph as often as need be. Returns what they are."""
    target = root / "val" / "photos"
    target.mkdir(parents=True)
    if photos is None:
        draw_photographs(root / "drawn", min(images, DIFFERENT))
    files = sorted(path for path in (photos or root / "drawn").rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not files:
        raise SystemExit(f"error: there are no JPEG files in {photos}")
    for number in range(images):
        shutil.copyfile(files[number % len(files)], target / f"{number:05}.jpg")
    shutil.copytree(root / "val", root / "train")
    size = sum(path.stat().st_size for path in target.iterdir()) / images
    return f"{min(images, len(files))} {'photographs' if photos else 'drawn pictures'}, {size / 1000:.0f} kB on average"


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description="A folder of photographs in the form of ImageNet.")
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument("--photos", type=Path, help="a tree of JPEG files; pictures are drawn without it")
    parser.add_argument("--images", type=int, default=8448, help="how many files (8448, 33 batches of 256)")
    given = parser.parse_args()
    if given.images < 1 or given.folder.exists():
        parser.error(f"{given.folder} is there already" if given.folder.exists() else "--images must be 1 or more")
    print(f"{given.folder}: {given.images} files, {lay_out(given.photos, given.folder, given.images)}")


if __name__ == "__main__":
    main()
