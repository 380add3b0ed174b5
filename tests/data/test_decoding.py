"""The compiled decoder against Pillow: the same pixels from no more of the file than is needed."""

import io
import sys
from pathlib import Path

import forked
import numpy as np
import pytest
import torch
from bad_files import photograph
from PIL import Image

from pycls.data.images import jpeg_decoder
from pycls.data.images.crop_spec import CropSpec, crop_array
from pycls.data.images.crops import eval_crop, train_crop
from pycls.data.images.decoding import decode, decode_crop
from pycls.data.loader import EvalLoader, TrainLoader
from pycls.data.sets.image_folder import ImageFolder

ROOT = Path(__file__).parents[2]
MEAN, MOST = 0.6, 2
"""Grey levels between a compiled crop and Pillow's, rounded after each axis: on average, at most; docs/data.md has them."""


@pytest.fixture
def decoder() -> jpeg_decoder.JpegDecoder:
    found = jpeg_decoder.jpeg_decoder()
    if found is None:
        pytest.skip("no compiled decoder: there is no compiler or no libjpeg here")
    return found


def jpeg(picture: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", **{"quality": 90, **options})
    return file.getvalue()


def detailed(width: int, height: int, seed: int = 0) -> Image.Image:
    """Edges and noise besides the smooth."""
    random = np.random.default_rng(seed)
    pixels = np.asarray(photograph(width, height, seed)).astype(int) + random.integers(-25, 25, (height, width, 3))
    pixels[height // 3 : height // 2] //= 2
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def compare(data: bytes, crop: CropSpec, size: int, decoder: jpeg_decoder.JpegDecoder) -> np.ndarray:
    """The differences from Pillow's result, in grey levels."""
    assert decoder.shape(data) is not None
    made = decoder.decode(data, crop, size)
    assert made is not None
    return np.abs(made.astype(int) - crop_array(decode(data), crop, size))


def whole_image(height: int, width: int) -> CropSpec:
    return CropSpec((0, 0, width, height), (0, 0, width, height), flip=False)


FORMS = {
    "444": {"subsampling": 0},
    "422": {"subsampling": 1},
    "420": {"subsampling": 2},
    "progressive": {"progressive": True},
    "progressive_444": {"progressive": True, "subsampling": 0},
    "restarts": {"restart_marker_blocks": 3},
    "coarse": {"quality": 10},
    "optimised": {"optimize": True},
}


@pytest.mark.parametrize("form", [*FORMS, "grey"])
def test_cuts_are_pillows(form: str, decoder: jpeg_decoder.JpegDecoder) -> None:
    """Any crop of any form, at sizes above and below the crop's own, flipped or not."""
    random = np.random.default_rng(len(form))
    for seed, (width, height) in enumerate([(67, 51), (160, 90), (33, 200)]):
        picture = detailed(width, height, seed)
        data = jpeg(picture.convert("L") if form == "grey" else picture, **FORMS.get(form, {}))
        assert decoder.shape(data) == (height, width)
        for case in range(30):
            if case % 2:
                crop = train_crop(height, width, seed, 0, case, hflip=True)
            else:
                left, top = random.uniform(0, width - 9), random.uniform(0, height - 9)
                box = (left, top, random.uniform(left + 1, width), random.uniform(top + 1, height))
                crop = CropSpec(box, (0, 0, width, height), case % 4 == 0)
            size = int(random.choice([1, 7, 16, 40, 90]))
            difference = compare(data, crop, size, decoder)
            assert difference.mean() <= (MEAN if size > 1 else 1) and difference.max() <= MOST, (crop, size)


@pytest.mark.parametrize("width, height", [(1, 1), (1, 300), (300, 1), (8, 8), (9, 17), (2000, 16)])
def test_tiny_and_narrow_images(width: int, height: int, decoder: jpeg_decoder.JpegDecoder) -> None:
    data = jpeg(photograph(width, height))
    for index in range(20):
        for crop in (train_crop(height, width, 0, 0, index, True), eval_crop(height, width, 8, 9)):
            assert compare(data, crop, 8, decoder).max() <= 2


def test_evaluation_pixels_of_real_photographs(real_data: str, decoder: jpeg_decoder.JpegDecoder) -> None:
    """Resize 256, centre 224, as torchvision does it: within one grey level of 255 on average, in every photograph."""
    files = sorted((Path(real_data) / "imagenet_photos").rglob("*.JPEG"))[::6]
    if not files:
        pytest.skip("PYCLS_TEST_DATA holds no imagenet_photos")
    functional = pytest.importorskip("torchvision.transforms.functional")
    for file in files:
        picture = Image.open(file).convert("RGB")
        expected = np.asarray(functional.center_crop(functional.resize(picture, 256), [224, 224])).astype(int)
        ours = decode_crop(file.read_bytes(), lambda height, width: eval_crop(height, width, 224, 256), 224, decoder)
        assert np.abs(ours - expected).mean() <= 0.5, file


def test_training_crops_of_real_photographs(real_data: str, decoder: jpeg_decoder.JpegDecoder) -> None:
    """Of any side: no more than what Pillow's rounding twice makes."""
    files = sorted((Path(real_data) / "imagenet_photos").rglob("*.JPEG"))[::12]
    if not files:
        pytest.skip("PYCLS_TEST_DATA holds no imagenet_photos")
    for number, file in enumerate(files):
        data = file.read_bytes()
        whole = decode(data)
        for size in (16, 48, 224):
            crop = train_crop(*whole.shape[:2], number, 0, size, hflip=True)
            made = decode_crop(data, lambda h, w, crop=crop: crop, size, decoder)
            difference = np.abs(made.astype(int) - crop_array(whole, crop, size))
            assert difference.mean() <= MEAN and difference.max() <= MOST, (file, size)


@pytest.mark.parametrize("size", [16, 24, 40])
def test_small_squares_of_large_images(size: int, decoder: jpeg_decoder.JpegDecoder) -> None:
    """Boxes of up to 44 times the square's side, full of detail: decoding at a smaller scale would show."""
    picture = detailed(903, 701)
    data = jpeg(picture)
    for index in range(6):
        crop = train_crop(701, 903, 0, 0, index, hflip=True)
        difference = compare(data, crop, size, decoder)
        assert difference.mean() <= MEAN and difference.max() <= MOST
    difference = compare(data, whole_image(701, 903), size, decoder)
    assert difference.mean() <= MEAN and difference.max() <= MOST


@pytest.mark.parametrize("orientation", [0, 1, 3, 6, 9])
def test_turned_files_are_left_to_pillow(orientation: int, decoder: jpeg_decoder.JpegDecoder) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = jpeg(photograph(48, 32), exif=exif)
    assert (decoder.shape(data) is None) == (orientation in (3, 6))
    height, width = decode(data).shape[:2]
    assert (height, width) == ((48, 32) if orientation == 6 else (32, 48))
    square, expected = decode_crop(data, whole_image, 16, decoder), crop_array(decode(data), whole_image(height, width), 16)
    assert np.abs(square.astype(int) - expected).max() <= 2


def test_damaged_exif_is_no_reason_to_lose_an_image(decoder: jpeg_decoder.JpegDecoder) -> None:
    whole = jpeg(photograph(48, 32))
    noise = np.random.default_rng(0).bytes(60)
    for body in (b"", b"II*\0", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff" + bytes(4), noise):
        segment = b"Exif\0\0" + body
        data = whole[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + whole[2:]
        for used in (decoder, None):
            found, expected = decode_crop(data, whole_image, 16, used), decode_crop(whole, whole_image, 16, None)
            assert np.abs(found.astype(int) - expected).max() <= 2


@pytest.mark.parametrize("make", [lambda p: p.convert("CMYK"), lambda p: p.convert("RGB")], ids=["cmyk", "rgb"])
def test_other_colour_spaces(make, decoder: jpeg_decoder.JpegDecoder) -> None:
    data = jpeg(make(photograph(48, 32)), keep_rgb=True)
    assert decoder.shape(data) is None
    assert decode(data).shape == (32, 48, 3)


def test_random_damage_never_crashes(decoder: jpeg_decoder.JpegDecoder) -> None:
    """Bytes changed anywhere: pixels, or it is left to Pillow."""
    random = np.random.default_rng(0)
    for form in ("420", "progressive", "restarts"):
        whole = jpeg(detailed(60, 44), **FORMS[form])
        for _ in range(150):
            data = bytearray(whole)
            for place in random.integers(2, len(data) - 2, 3):
                data[place] = random.integers(256)
            shape = decoder.shape(bytes(data))
            if shape is not None and max(shape) < 2000:
                made = decoder.decode(bytes(data), eval_crop(*shape, 16, 18), 16)
                assert made is None or made.shape == (16, 16, 3)


@pytest.mark.parametrize("train", [True, False])
def test_batches_with_and_without_it(tmp_path: Path, train: bool, decoder: jpeg_decoder.JpegDecoder) -> None:
    """The fall-back gives the same crops of the same samples."""
    for i in range(12):
        folder = tmp_path / "train" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        photograph(40 + 3 * i, 60 - 2 * i, i).save(folder / f"{i}.jpg", quality=95)
    data = ImageFolder(str(tmp_path), "trainval", im_size=16, val_size=1)
    pixels = []
    for use in (True, False):
        made = TrainLoader(data, 12, seed=3, native=use).epoch(1) if train else EvalLoader(data, 12, native=use)
        (batch,) = made
        pixels.append(batch.images * torch.tensor(data.std)[:, None, None] * 255)
    assert 0 < (pixels[0] - pixels[1]).abs().mean() < 0.8


def test_without_a_compiler_pillow_does_it(tmp_path: Path) -> None:
    """In a process whose PATH has no compiler; and with one whose headers are not there."""
    code = "from pycls.data.images.jpeg_decoder import jpeg_decoder; print(jpeg_decoder())"
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "cc").write_text("#!/bin/sh\nexit 1\n")
    (broken / "cc").chmod(0o755)
    for path, reason in ((tmp_path / "nothing", "no C compiler"), (broken, "headers")):
        done = forked.run(
            [sys.executable, "-c", code],
            env={"PATH": str(path), "PYTHONPATH": str(ROOT), "PYCLS_CACHE": str(tmp_path / "cache"), "HOME": str(tmp_path)},
        )  # fmt: skip
        assert done.returncode == 0 and done.stdout == "None\n", done
        assert "JPEGs are decoded by Pillow" in done.stderr and reason in done.stderr


def test_it_is_compiled_once_and_also_without_a_place_to_keep_it(tmp_path: Path, monkeypatch, decoder) -> None:
    monkeypatch.setenv("PYCLS_CACHE", str(tmp_path / "cache"))
    assert jpeg_decoder._load() is not None
    (library,) = (tmp_path / "cache").iterdir()
    before = library.stat().st_mtime_ns
    assert jpeg_decoder._load() is not None and library.stat().st_mtime_ns == before
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PYCLS_CACHE", str(tmp_path / "file" / "cache"))
    assert jpeg_decoder._load() is not None
