"""Photographs of every kind, in any number of worker processes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pycls.data.dataset import MissingSplit
from pycls.data.images.crop_spec import crop_array
from pycls.data.images.crops import crop_box, eval_crop, train_crop
from pycls.data.images.decoding import decode
from pycls.data.loader import EvalLoader, TrainLoader
from pycls.data.sets.image_folder import ImageFolder
from pycls.errors import InputError, RunError
from pycls.registry import DATASETS


def photograph(width, height, seed=0):
    """Something smooth, so that JPEG keeps it nearly as it is."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def write_folder(root, per_class=6):
    """Two classes of odd images under train, val and test."""
    for split in ("train", "val", "test"):
        for label, name in enumerate(("ant", "bee")):
            (root / split / name).mkdir(parents=True)
            for i in range(per_class):
                photograph(40 + 9 * i, 70 - 8 * i, 10 * label + i).save(root / split / name / f"{i}.JPEG", quality=95)
    (root / "train" / "ant" / "notes.txt").write_text("no image")
    (root / "train" / "ant" / ".hidden.jpg").write_text("no image")


def test_splits_and_classes(tmp_path):
    write_folder(tmp_path / "mine")
    data = DATASETS.get("image_folder")(str(tmp_path), "train", folder="mine", im_size=16)
    assert data.class_names == ["ant", "bee"] and data.labels.tolist() == [0] * 6 + [1] * 6
    assert data.describe(6) == str(tmp_path / "mine" / "train" / "bee" / "0.JPEG")
    assert data.load(1).shape == (62, 49, 3) and data.image_size == 16
    assert len(ImageFolder(str(tmp_path / "mine"), "trainval")) == 24
    assert "/val/" in ImageFolder(str(tmp_path / "mine"), "val").describe(0)
    assert "/test/" in ImageFolder("", "test", folder=str(tmp_path / "mine")).describe(0)


def test_val_is_held_out_where_there_is_none(tmp_path):
    for i in range(20):
        for name in ("a", "b"):
            (tmp_path / "train" / name).mkdir(parents=True, exist_ok=True)
            photograph(8, 8, i).save(tmp_path / "train" / name / f"{i:02}.png")
    parts = {split: ImageFolder(str(tmp_path), split, val_size=6) for split in ("train", "val", "trainval")}
    files = {split: {part.describe(i) for i in range(len(part))} for split, part in parts.items()}
    assert torch.bincount(parts["val"].labels).tolist() == [3, 3]
    assert files["train"] | files["val"] == files["trainval"] and not files["train"] & files["val"]
    assert len(ImageFolder(str(tmp_path), "val")) == 4  # a tenth
    with pytest.raises(MissingSplit, match="evaluate on val"):
        ImageFolder(str(tmp_path), "test")


def test_folders_that_do_not_fit(tmp_path):
    with pytest.raises(InputError, match=r"no classes in .*train; put the images .*IMAGE_FOLDER\.FOLDER"):
        ImageFolder(str(tmp_path), "train")
    write_folder(tmp_path)
    (tmp_path / "val" / "cat").mkdir()
    with pytest.raises(InputError, match=r"val has the class 'cat', which .*train has not"):
        ImageFolder(str(tmp_path), "val")
    with pytest.raises(ValueError, match="im_size: expected at least 1, found 0"):
        ImageFolder(str(tmp_path), "train", im_size=0)
    for file in (tmp_path / "test").rglob("*.JPEG"):
        file.unlink()
    with pytest.raises(InputError, match=r"no images in .*test/<class>/"):
        ImageFolder(str(tmp_path), "test")


def test_only_a_folder_to_evaluate(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "train").rename(tmp_path / "elsewhere")
    assert len(ImageFolder(str(tmp_path), "val")) == 12


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
def test_colour_modes(tmp_path, mode):
    original = photograph(30, 20)
    image = original.convert(mode)
    path = tmp_path / ("image.jpg" if mode == "CMYK" else "image.png")
    image.save(path, **({"quality": 100, "subsampling": 0} if mode == "CMYK" else {}))
    decoded = decode(path.read_bytes())
    assert decoded.shape == (20, 30, 3) and decoded.dtype == np.uint8
    expected = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(decoded - expected).max() <= (12 if mode == "CMYK" else 0)


def test_sixteen_bit_grey_and_transparent_palettes(tmp_path):
    grey = (np.arange(600).reshape(20, 30) * 100).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert np.array_equal(decode((tmp_path / "grey.png").read_bytes()), np.repeat(np.round(grey / 257)[:, :, None], 3, axis=2))
    palette = photograph(30, 20).convert("P")
    palette.save(tmp_path / "palette.png", transparency=bytes([0, 128, 255]))
    assert np.array_equal(decode((tmp_path / "palette.png").read_bytes()), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    """Stored turned, shown upright."""
    upright = photograph(48, 32)
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(turn[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "image.png", exif=exif)
    assert np.array_equal(decode((tmp_path / "image.png").read_bytes()), np.asarray(upright))


@pytest.mark.parametrize("width, height", [(1, 1), (1, 50), (300, 2), (13, 500)])
def test_tiny_and_narrow_images(width, height):
    image = np.asarray(photograph(width, height))
    for index in range(20):
        left, top, w, h = crop_box(height, width, 0, 0, index)
        assert 0 <= left <= left + w <= width and 0 <= top <= top + h <= height and min(w, h) >= 1
        assert crop_array(image, train_crop(height, width, 0, 0, index, True), 8).shape == (8, 8, 3)
    assert crop_array(image, eval_crop(height, width, 8, 9), 8).shape == (8, 8, 3)


def test_crop_boxes_are_distributed_as_published():
    boxes = np.array([crop_box(400, 500, 1, 0, i) for i in range(4000)])
    area, ratio = boxes[:, 2] * boxes[:, 3] / 200_000, boxes[:, 2] / boxes[:, 3]
    assert 0.079 < area.min() < 0.09 and 0.95 < area.max() <= 1
    assert 0.74 < ratio.min() < 0.76 and 1.32 < ratio.max() < 1.345
    # An area of up to 0.6 always fits at any ratio of this image: each tenth of it is equally likely.
    small = np.histogram(area, bins=5, range=(0.08, 0.58))[0]
    assert small.std() / small.mean() < 0.08
    assert abs(np.log(ratio[area < 0.5]).mean()) < 0.02
    free = boxes[boxes[:, 2] < 250]
    assert abs((free[:, 0] / (500 - free[:, 2])).mean() - 0.5) < 0.03


def test_training_crop_is_torchvisions_resize_of_the_box():
    functional = pytest.importorskip("torchvision.transforms.functional")
    picture = photograph(120, 90)
    for index in range(10):
        left, top, w, h = crop_box(90, 120, 3, 2, index)
        expected = np.asarray(functional.resized_crop(picture, top, left, h, w, [32, 32]))
        ours = crop_array(np.asarray(picture), train_crop(90, 120, 3, 2, index, hflip=False), 32)
        assert np.array_equal(ours, expected)


@pytest.mark.parametrize("width, height", [(120, 90), (90, 131), (300, 224), (64, 64), (30, 40)])
def test_evaluation_crop_is_torchvisions_within_a_level(width, height):
    functional = pytest.importorskip("torchvision.transforms.functional")
    picture = photograph(width, height)
    expected = functional.center_crop(functional.resize(picture, 64), [56, 56])
    ours = crop_array(np.asarray(picture), eval_crop(height, width, 56, 64), 56)
    assert np.abs(ours.astype(int) - np.asarray(expected)).max() <= 2


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores, on purpose
def test_batches_do_not_depend_on_the_number_of_workers(tmp_path):
    write_folder(tmp_path)
    data = ImageFolder(str(tmp_path), "train", im_size=16)
    loaders = [TrainLoader(data, 4, seed=3, num_workers=n, channels_last=n == 1) for n in (0, 1, 3)]
    evals = [EvalLoader(ImageFolder(str(tmp_path), "val", im_size=16), 5, num_workers=n) for n in (0, 1, 3)]
    for passes in (*([loader.epoch(e, s) for loader in loaders] for e, s in ((0, 0), (1, 1))), map(iter, evals)):
        for batches in zip(*passes, strict=True):
            for batch in batches[1:]:
                assert torch.equal(batch.images, batches[0].images)
                assert batch.ids.tolist() == batches[0].ids.tolist() and torch.equal(batch.labels, batches[0].labels)
    (first, *_), (again, *_), (other, *_) = (list(loaders[0].epoch(e)) for e in (0, 0, 1))
    assert torch.equal(first.images, again.images) and not torch.equal(first.images, other.images)
    normal = loaders[1].epoch(0)
    assert next(normal).images.is_contiguous(memory_format=torch.channels_last)


def test_an_epoch_left_early_does_not_leak_into_the_next(tmp_path):
    write_folder(tmp_path)
    data = ImageFolder(str(tmp_path), "train", im_size=16)
    loader, reference = TrainLoader(data, 2, num_workers=2), TrainLoader(data, 2)
    next(loader.epoch(0))
    for a, b in zip(loader.epoch(1), reference.epoch(1), strict=True):
        assert a.ids.tolist() == b.ids.tolist() and torch.equal(a.images, b.images)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_file_is_named(tmp_path, workers):
    write_folder(tmp_path)
    victim = tmp_path / "val" / "bee" / "3.JPEG"
    victim.write_bytes(victim.read_bytes()[:400])
    with pytest.raises(RunError) as error:
        list(EvalLoader(ImageFolder(str(tmp_path), "val", im_size=16), 4, num_workers=workers))
    assert str(victim) in str(error.value) and "\n" not in str(error.value)


def test_normalised_as_documented(tmp_path):
    (tmp_path / "val" / "a").mkdir(parents=True)
    Image.new("RGB", (50, 40), (255, 0, 51)).save(tmp_path / "val" / "a" / "flat.png")
    (batch,) = EvalLoader(ImageFolder(str(tmp_path), "val", im_size=8), 1)
    expected = [(1 - 0.485) / 0.229, -0.456 / 0.224, (0.2 - 0.406) / 0.225]
    assert batch.images[0].amax((1, 2)).tolist() == pytest.approx(expected, rel=1e-5)
    assert batch.images[0].amin((1, 2)).tolist() == pytest.approx(expected, rel=1e-5)


def test_real_photographs(real_data):
    if not (Path(real_data) / "imagenet_photos/val").is_dir():
        pytest.skip("PYCLS_TEST_DATA holds no imagenet_photos")
    data = ImageFolder(real_data, "val", folder="imagenet_photos", im_size=64)
    assert len(data) == 240
    assert sum(len(batch.ids) for batch in EvalLoader(data, 40, num_workers=1)) == 240
