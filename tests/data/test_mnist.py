"""IDX files: read, refused, downloaded."""

import gzip
import hashlib

import numpy as np
import pytest
import torch
from data_makers import idx_bytes, write_idx

import pycls.runtime.download
from pycls.data.index import download
from pycls.data.sets.mnist import read_idx
from pycls.errors import InputError
from pycls.registry import DATASETS


@pytest.mark.parametrize("place", ["MNIST/raw", "MNIST", "mnist/raw", "mnist"])
@pytest.mark.parametrize("zipped", [True, False])
def test_found_where_people_put_them(tmp_path, place, zipped):
    images = write_idx(tmp_path / place, zipped=zipped)
    mnist = DATASETS.get("mnist")
    everything = mnist(str(tmp_path), "trainval", download=False)
    assert torch.equal(everything.images[:, 0], torch.from_numpy(images))
    assert everything.labels.tolist() == [i % 10 for i in range(40)]
    train, val = (mnist(str(tmp_path), split, download=False, val_size=10) for split in ("train", "val"))
    assert torch.bincount(val.labels).tolist() == [1] * 10 and len(train) == 30
    rows = {image.numpy().tobytes() for image in everything.images}
    assert {image.numpy().tobytes() for image in torch.cat([train.images, val.images])} == rows
    test = mnist(str(tmp_path), "test", download=False)
    assert len(test) == 20 and not rows & {image.numpy().tobytes() for image in test.images}
    assert len(mnist(str(tmp_path), "train", download=False, val_size=0)) == 40
    with pytest.raises(InputError, match=r"VAL_SIZE .* 1\.\.39 of 40, not 0"):
        mnist(str(tmp_path), "val", download=False, val_size=0)


IMAGES = idx_bytes(np.zeros((5, 28, 28)))


@pytest.mark.parametrize(
    "data, message",
    [
        (IMAGES[:-1], r"3,935 bytes \(unpacked\), but its header \[5, 28, 28\] asks for 3,936"),
        (IMAGES + b"x", "3,937 bytes"),
        (IMAGES[:3], "starts with 000008, not 00000803"),
        (IMAGES[:9], "9 bytes"),
        (b"", "starts with nothing"),
        (idx_bytes(np.zeros(5)), "starts with 00000801, not 00000803"),
        (b"<html>not found</html>", "starts with 3c68746d"),
    ],
)
def test_damaged_files_are_named(tmp_path, data, message):
    (tmp_path / "images").write_bytes(data)
    with pytest.raises(InputError, match=message) as plain:
        read_idx(tmp_path / "images", 3)
    assert str(tmp_path / "images") in str(plain.value) and "\n" not in str(plain.value)
    (tmp_path / "images.gz").write_bytes(gzip.compress(data))
    with pytest.raises(InputError, match=message):
        read_idx(tmp_path / "images.gz", 3)


@pytest.mark.parametrize("damage", [lambda z: z[:-20], lambda z: b"x" + z[1:], lambda z: z[:40] + b"zz" + z[42:]])
def test_damaged_gzip(tmp_path, damage):
    noise = np.random.default_rng(0).integers(0, 256, (5, 28, 28))
    (tmp_path / "images.gz").write_bytes(damage(gzip.compress(idx_bytes(noise))))
    with pytest.raises(InputError, match=r"images\.gz cannot be read"):
        read_idx(tmp_path / "images.gz", 3)


def test_counts_that_differ_and_labels_out_of_range(tmp_path):
    folder = tmp_path / "MNIST" / "raw"
    write_idx(folder, zipped=False)
    (folder / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(39)))
    with pytest.raises(InputError, match=r"train-images.* has 40 images, but .*train-labels.* 39 labels"):
        DATASETS.get("mnist")(str(tmp_path), "train")
    (folder / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.full(40, 10)))
    with pytest.raises(InputError, match="train-labels-idx1-ubyte has the label 10"):
        DATASETS.get("mnist")(str(tmp_path), "train")


def test_missing_says_what_to_put_where(tmp_path):
    with pytest.raises(InputError) as error:
        DATASETS.get("mnist")(str(tmp_path), "test", download=False)
    message = str(error.value)
    for part in ("t10k-images-idx3-ubyte", "t10k-labels", str(tmp_path / "MNIST/raw"), "DATA.ROOT", "$PYCLS_DATA"):
        assert part in message
    assert "train-" not in message and "\n" not in message


def offer(monkeypatch, folder, *mirrors):
    files = tuple((path.name, hashlib.md5(path.read_bytes()).hexdigest()) for path in sorted(folder.iterdir()))
    monkeypatch.setitem(download.SOURCES, "mnist", lambda: download.Source(mirrors, files))


def test_download(tmp_path, server, monkeypatch):
    folder, address = server
    images = write_idx(folder)
    offer(monkeypatch, folder, address + "no_such_mirror/", address)
    data = DATASETS.get("mnist")(str(tmp_path), "trainval")
    assert torch.equal(data.images[:, 0], torch.from_numpy(images))
    assert sorted(path.name for path in (tmp_path / "MNIST" / "raw").iterdir()) == sorted(
        p.name for p in folder.iterdir()
    )
    monkeypatch.setitem(download.SOURCES, "mnist", lambda: pytest.fail("nothing is missing any more"))
    assert len(DATASETS.get("mnist")(str(tmp_path), "test")) == 20


def test_download_with_a_wrong_checksum_leaves_nothing(tmp_path, server, monkeypatch):
    folder, address = server
    write_idx(folder)
    offer(monkeypatch, folder, address)
    victim = folder / "t10k-images-idx3-ubyte.gz"
    victim.write_bytes(victim.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"download failed: .*t10k-images.*is not what was expected: its md5") as error:
        DATASETS.get("mnist")(str(tmp_path), "test")
    assert "\n" not in str(error.value) and "DATA.ROOT" in str(error.value)
    assert list((tmp_path / "MNIST" / "raw").iterdir()) == []


def test_no_network(tmp_path, monkeypatch):
    monkeypatch.setattr(pycls.runtime.download, "BACKOFF_S", 0.001)
    monkeypatch.setitem(
        download.SOURCES,
        "mnist",
        lambda: download.Source(("http://127.0.0.1:9/",), (("t10k-images-idx3-ubyte.gz", "0"),)),
    )
    with pytest.raises(InputError, match="the download failed") as error:
        DATASETS.get("mnist")(str(tmp_path), "test")
    assert "\n" not in str(error.value)


def test_torchvision_still_says_where_the_files_are():
    for name, count in (("mnist", 4), ("fashion_mnist", 4), ("cifar10", 1), ("cifar100", 1)):
        source = download.SOURCES[name]()
        assert source.mirrors and all(mirror.endswith("/") for mirror in source.mirrors)
        assert len(source.files) == count and all(len(md5) == 32 for _, md5 in source.files)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_real_files(real_data, name):
    train, val, test = (DATASETS.get(name)(real_data, split, download=False) for split in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (55_000, 5_000, 10_000)
    pixels = train.images.double() / 255
    assert float(pixels.mean()) == pytest.approx(train.mean[0], abs=5e-4)
    assert float(pixels.std()) == pytest.approx(train.std[0], abs=5e-4)
    if name == "mnist":
        assert test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
