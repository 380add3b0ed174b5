"""JPEGs decoded by the device: the worker processes' pixels, order, labels and account of what cannot be read.

Most of it is the same code on a CPU, where libjpeg takes nvJPEG's place; the last tests need a GPU.
"""

import io
import multiprocessing
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from bad_files import BAD, photograph, write_bad
from PIL import Image

from pycls.data.augment.augmentation import Augmentation
from pycls.data.augment.names import parse
from pycls.data.batch import Batch
from pycls.data.images import device_jpegs
from pycls.data.images.crop_spec import CropSpec, crop_array
from pycls.data.images.crop_tensor import crop_tensor, fits, upright
from pycls.data.images.crops import eval_crop, train_crop
from pycls.data.images.decoding import decode
from pycls.data.images.jpegs import for_device
from pycls.data.loader import EvalLoader, TrainLoader
from pycls.data.sets.image_folder import ImageFolder
from pycls.data.sources.unreadable import Unreadable
from pycls.errors import InputError, RunError

SIDE = 32
TOLERANCE = 1.0
"""Grey levels of 255, on average over an image."""


def jpeg(picture: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", **{"quality": 92, **options})
    return file.getvalue()


def detailed(width: int, height: int, seed: int = 0) -> Image.Image:
    """Edges and grain besides the smooth, as in a photograph."""
    grain = np.random.default_rng(seed).normal(0, 8, (height, width, 1)).astype(int)
    pixels = np.asarray(photograph(width, height, seed)) + grain
    pixels[height // 3 : height // 2] //= 2
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def turned_by(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def several_in_one() -> bytes:
    return encoded(detailed(60, 40), "MPO", save_all=True, append_images=[detailed(60, 40, 1)])


PLAIN = {
    "420": lambda: jpeg(detailed(97, 71)),
    "444": lambda: jpeg(detailed(120, 64), subsampling=0),
    "422": lambda: jpeg(detailed(64, 120), subsampling=1),
    "progressive": lambda: jpeg(detailed(99, 80), progressive=True),
    "grey": lambda: jpeg(detailed(80, 99).convert("L")),
    "grey_turned": lambda: jpeg(detailed(80, 99).convert("L"), exif=turned_by(6)),
    **{f"turned{k}": lambda k=k: jpeg(detailed(90 + k, 60), exif=turned_by(k)) for k in range(10)},
    "pixel": lambda: jpeg(photograph(1, 1)),
    "tiny": lambda: jpeg(photograph(5, 3)),
    "large": lambda: jpeg(photograph(700, 460)),
}
"""What the device decodes: name -> file."""
OTHER = {
    "png": lambda: encoded(detailed(70, 50), "PNG"),
    "cmyk": lambda: jpeg(detailed(70, 50).convert("CMYK")),
    "rgb": lambda: jpeg(detailed(70, 50), keep_rgb=True),
    "webp": lambda: encoded(detailed(70, 50), "WEBP", lossless=True),
    "deep": lambda: encoded(Image.fromarray((np.arange(3000).reshape(50, 60) * 20).astype(np.uint16)), "PNG"),
    "several": several_in_one,
    "followed": lambda: jpeg(detailed(70, 50)) + bytes(10),
    "line": lambda: jpeg(photograph(2000, 5)),
}
"""What worker processes decode."""


def places(height: int, width: int) -> list[CropSpec]:
    """Cuts for training and evaluation."""
    training = [train_crop(height, width, 1, 0, k, hflip=True) for k in range(12)]
    return [*training, *(eval_crop(height, width, SIDE, resize) for resize in (SIDE, 36, 41))]


@pytest.mark.parametrize("size", [(71, 97), (97, 71), (32, 32), (20, 25), (1, 1), (3, 5), (460, 700)])
def test_cuts_are_pillows(size: tuple[int, int]) -> None:
    """Of the same decoded image: what is left is that Pillow rounds twice."""
    image = np.asarray(detailed(size[1], size[0]))
    for crop in places(*size):
        assert fits(crop, SIDE)
        made = crop_tensor(torch.from_numpy(image.copy()).permute(2, 0, 1), crop, SIDE).add(0.5).to(torch.uint8)
        difference = np.abs(made.permute(1, 2, 0).numpy().astype(int) - crop_array(image, crop, SIDE))
        assert difference.mean() <= 0.5 and difference.max() <= 1, crop


def test_cuts_that_would_take_undue_memory_are_left_to_the_loading_processes() -> None:
    assert fits(eval_crop(500, 375, 224, 256), 224) and fits(eval_crop(4000, 3000, 224, 256), 224)
    assert not fits(eval_crop(10, 3000, 224, 256), 224)
    assert not fits(eval_crop(4000, 3000, 8, 9), 8)


@pytest.mark.parametrize("orientation", range(10))
def test_images_are_turned_as_by_pillow(orientation: int) -> None:
    data = jpeg(detailed(40, 30), exif=turned_by(orientation), subsampling=0)
    stored = torch.from_numpy(np.array(Image.open(io.BytesIO(data)))).permute(2, 0, 1)
    assert torch.equal(upright(stored, orientation).permute(1, 2, 0), torch.from_numpy(decode(data).copy()))


@pytest.mark.parametrize("name", [*PLAIN, *OTHER, *BAD])
def test_who_decodes_what(name: str) -> None:
    """Of a file that is handed over the crop is made for the upright image."""
    files = {**PLAIN, **OTHER, **BAD}
    asked: list[tuple[int, int]] = []

    def place(height: int, width: int) -> CropSpec:
        asked.append((height, width))
        return eval_crop(height, width, SIDE, 36)

    found = for_device(files[name](), place, SIDE)
    if name in PLAIN:
        assert found is not None and asked == [decode(found.data).shape[:2]] and found.area == np.prod(asked[0])
    elif name in OTHER:
        assert found is None
    elif found is not None:
        assert name == "no_tables.jpg"  # its header is in order


def write_photos(root: Path, part: str = "train", bad: int = 0) -> ImageFolder:
    """All kinds of files, twice, in two classes, and bad ones."""
    for label in "ab":
        (root / part / label).mkdir(parents=True)
        for number, (name, make) in enumerate([*PLAIN.items(), *OTHER.items()]):
            (root / part / label / f"{number:02}_{name}.jpg").write_bytes(make())
    for number in range(bad):
        write_bad(root / part / "ab"[number % 2], list(BAD)[number % len(BAD)], number)
    return ImageFolder(str(root), "trainval" if part == "train" else part, im_size=SIDE, val_size=1)


def levels(batch: Batch, data: ImageFolder) -> torch.Tensor:
    """``[n, C, S, S]`` in grey levels."""
    std, mean = (torch.tensor(values)[:, None, None] for values in (data.std, data.mean))
    return (batch.images.cpu() * std + mean) * 255


def assert_same(found: list[Batch], expected: list[Batch], data: ImageFolder, tolerance: float = TOLERANCE) -> None:
    """Order and labels are the same, and the pixels of each image within the tolerance."""
    assert [batch.ids.tolist() for batch in found] == [batch.ids.tolist() for batch in expected]
    assert [batch.labels.tolist() for batch in found] == [batch.labels.tolist() for batch in expected]
    for ours, theirs in zip(found, expected, strict=True):
        difference = (levels(ours, data) - levels(theirs, data)).abs().mean(dim=(1, 2, 3))
        worst = int(difference.argmax())
        assert difference[worst] <= tolerance, (data.describe(int(ours.ids[worst])), difference[worst])


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("channels_last", [True, False])
def test_training_batches_are_those_of_the_loading_processes(tmp_path: Path, native: bool, channels_last: bool) -> None:
    data = write_photos(tmp_path)

    def batches(decode_on_device: bool) -> list[Batch]:
        loader = TrainLoader(data, 9, seed=5, native=native, channels_last=channels_last,
                             decode_on_device=decode_on_device)  # fmt: skip
        return [batch for epoch in range(3) for batch in loader.epoch(epoch)]

    assert_same(batches(True), batches(False), data)


def test_real_photographs(real_data: str, tmp_path: Path) -> None:
    files = sorted((Path(real_data) / "imagenet_photos").rglob("*.JPEG"))[::6]
    if not files:
        pytest.skip("PYCLS_TEST_DATA holds no imagenet_photos")
    (tmp_path / "val" / "photo").mkdir(parents=True)
    for file in files:
        (tmp_path / "val" / "photo" / file.name).symlink_to(file)
    data = ImageFolder(str(tmp_path), "val", im_size=224)
    assert_same(*(list(EvalLoader(data, 8, decode_on_device=on)) for on in (True, False)), data)
    made = [list(TrainLoader(data, 8, decode_on_device=on).epoch(0)) for on in (True, False)]
    assert_same(*made, data)


@pytest.mark.parametrize("resize", [0, SIDE, 40])
def test_evaluation_batches_are_those_of_the_loading_processes(tmp_path: Path, resize: int) -> None:
    data = write_photos(tmp_path, "val")
    made = [list(EvalLoader(data, 10, resize=resize, decode_on_device=on_device)) for on_device in (True, False)]
    assert_same(*made, data)


def test_any_number_of_processes_and_a_start_in_the_middle(tmp_path: Path) -> None:
    """The same bits, and progressive sizes."""
    data = write_photos(tmp_path)
    sizes = [(0, 16), (1, 24)]
    whole = TrainLoader(data, 8, seed=2, im_sizes=sizes, decode_on_device=True)
    expected = [list(whole.epoch(epoch)) for epoch in range(2)]
    assert [batches[0].images.shape[-1] for batches in expected] == [16, 24]
    for workers, start, ranks in ((1, 0, 1), (2, 2, 1), (1, 1, 2)):
        loaders = [TrainLoader(data, 8, seed=2, im_sizes=sizes, num_workers=workers, rank=rank, world_size=ranks,
                               decode_on_device=True) for rank in range(ranks)]  # fmt: skip
        for epoch in (1, 0):
            parts = [list(loader.epoch(epoch, start)) for loader in loaders]
            found = [torch.cat([part.images for part in together]) for together in zip(*parts, strict=True)]
            assert len(found) == len(expected[epoch]) - start
            assert all(torch.equal(a, b.images) for a, b in zip(found, expected[epoch][start:], strict=True))


def test_an_epoch_that_is_left_in_the_middle(tmp_path: Path) -> None:
    """Its thread ends; the next epoch is whole."""
    data = write_photos(tmp_path)
    loader = TrainLoader(data, 8, seed=2, num_workers=2, decode_on_device=True)
    expected = [batch.ids.tolist() for batch in loader.epoch(1)]
    running = loader.epoch(0)
    next(running)
    running.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]
    assert [batch.ids.tolist() for batch in loader.epoch(1)] == expected


def test_augmentation_comes_after_decoding(tmp_path: Path) -> None:
    """Operations that depend on neighbours or histograms magnify a grey level: most images are near, and none is untouched."""
    data = write_photos(tmp_path)
    much = Augmentation(policy=parse("rand-m9-n2-inc1"), color_jitter=0.4, pca_std=0.1, erase_prob=0.5)
    made = [next(TrainLoader(data, 20, seed=4, augmentation=much, decode_on_device=on).epoch(0)) for on in (True, False)]
    plain = next(TrainLoader(data, 20, seed=4).epoch(0))
    near = (levels(made[0], data) - levels(made[1], data)).abs().mean(dim=(1, 2, 3))
    assert near.median() <= TOLERANCE < (levels(made[0], data) - levels(plain, data)).abs().mean(dim=(1, 2, 3)).min()


@pytest.mark.parametrize("workers", [0, 2])
def test_the_account_of_unreadable_files_in_training(tmp_path: Path, workers: int) -> None:
    data = write_photos(tmp_path, bad=40)
    found, expected = Unreadable(40, "train"), Unreadable(40, "train")
    ours = TrainLoader(data, 12, seed=3, num_workers=workers, unreadable=found, decode_on_device=True)
    theirs = TrainLoader(data, 12, seed=3, unreadable=expected, native=False)
    for epoch in range(2):
        assert_same(list(ours.epoch(epoch)), list(theirs.epoch(epoch)), data)
    assert set(found.reasons) == set(expected.reasons) and len(found.reasons) == 40


def test_the_account_of_unreadable_files_in_evaluation(tmp_path: Path) -> None:
    data = write_photos(tmp_path, "val", bad=40)
    found, expected = Unreadable(40, "val"), Unreadable(40, "val")
    ours, theirs = EvalLoader(data, 9, unreadable=found, decode_on_device=True), EvalLoader(data, 9, unreadable=expected)
    assert_same(list(ours), list(theirs), data)
    assert found.reasons == expected.reasons and ours.left_out == theirs.left_out == 40


def test_one_unreadable_file_too_many_ends_the_run(tmp_path: Path) -> None:
    data = write_photos(tmp_path, bad=40)
    for account, message in ((None, "cannot be loaded: "), (Unreadable(3, "train"), "with it 4 images of train are unread")):
        with pytest.raises(RunError, match=message):
            list(TrainLoader(data, 12, num_workers=2, unreadable=account, decode_on_device=True).epoch(0))


def test_what_the_device_refuses_the_cpu_decodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    """One fails the whole call, as nvJPEG has it; the others of the batch are still the device's."""
    data = write_photos(tmp_path)
    decode_jpegs, calls = device_jpegs.decode_jpegs, []

    def choosy(files: list[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
        if any(len(file) % 3 == 0 for file in files):
            raise RuntimeError("Error while decoding JPEG images: 5")
        calls.append(len(files))
        return decode_jpegs(files, device)

    ours = TrainLoader(data, 16, seed=1, decode_on_device=True)
    monkeypatch.setattr(device_jpegs, "decode_jpegs", choosy)
    found = list(ours.epoch(0))
    assert 0 < sum(calls) < 16 * len(found)
    assert_same(found, list(TrainLoader(data, 16, seed=1, native=False).epoch(0)), data)
    assert caplog.text.count("a JPEG that the device refuses is decoded on the CPU") == 1


def test_no_more_is_decoded_at_a_time_than_there_is_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_photos(tmp_path, "val")
    expected = list(EvalLoader(data, 20, decode_on_device=True))
    monkeypatch.setattr(device_jpegs, "AREA", 20_000)
    for found, batch in zip(EvalLoader(data, 20, decode_on_device=True), expected, strict=True):
        assert torch.equal(found.images, batch.images)


def test_a_device_that_decodes_otherwise_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_photos(tmp_path)

    def broken(files: list[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
        raise RuntimeError("decode_jpegs_cuda: torchvision not\ncompiled with nvJPEG support")

    decode_jpegs = device_jpegs.decode_jpegs
    for wrong, message in (
        (broken, r"torchvision does not decode JPEGs on cpu: .* not compiled with nvJPEG support; DATA_LOADER.DECODER auto"),
        (lambda *given: [image.flip(0) for image in decode_jpegs(*given)], "to other pixels"),
    ):
        monkeypatch.setattr(device_jpegs, "decode_jpegs", wrong)
        with pytest.raises(InputError, match=message):
            TrainLoader(data, 8, decode_on_device=True)


def test_a_loading_process_that_dies_ends_the_run_in_one_line(tmp_path: Path) -> None:
    data = write_photos(tmp_path)
    batches = TrainLoader(data, 2, num_workers=2, decode_on_device=True).epoch(0)
    next(batches)
    os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
    with pytest.raises(RunError, match=r"^a worker process ended: DataLoader worker"):
        list(batches)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
class TestOnAGpu:
    """nvJPEG itself, beside the worker processes' batches."""

    @pytest.mark.parametrize("train", [True, False])
    def test_batches(self, tmp_path: Path, train: bool) -> None:
        """Each image within the tolerance, and all of a batch there when it is used: the host waits for nothing here."""
        data = write_photos(tmp_path, "train" if train else "val", bad=40)
        made = []
        for device, on_device in (("cuda", True), ("cpu", False)):
            options = {"device": device, "unreadable": Unreadable(40, "all"), "num_workers": 2, "native": False,
                       "pin_memory": True, "decode_on_device": on_device}  # fmt: skip
            epochs = TrainLoader(data, 12, **options).epoch if train else lambda _, o=options: iter(EvalLoader(data, 12, **o))
            batches = [batch for epoch in range(3) for batch in epochs(epoch)]
            made.append(batches)
            assert len(options["unreadable"].reasons) == 40
        assert made[0][0].images.is_cuda
        assert_same(*made, data)

    def test_memory_is_not_reused_too_early(self, tmp_path: Path) -> None:
        """Two epochs of the same draws, the second beside work that keeps the GPU behind: the same bits."""
        data = write_photos(tmp_path)
        loader = TrainLoader(data, 8, seed=2, device="cuda", num_workers=2, pin_memory=True, decode_on_device=True)
        quiet = [batch.images.cpu() for batch in loader.epoch(0)]
        busy, square = [], torch.randn(4096, 4096, device="cuda")
        for batch in loader.epoch(0):
            for _ in range(20):
                square = torch.nn.functional.normalize(square @ square)
            busy.append(batch.images.sum(dim=1))
        for found, expected in zip(busy, quiet, strict=True):
            assert torch.allclose(found.cpu(), expected.sum(dim=1), atol=1e-4)
