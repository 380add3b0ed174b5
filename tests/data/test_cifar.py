"""CIFAR's two forms, and pickles that are up to something."""

import hashlib
import os
import pickle
import tarfile

import numpy as np
import pytest
import torch
from data_makers import cifar_batch, write_cifar10

from pycls.data.index import download
from pycls.errors import InputError
from pycls.registry import DATASETS
from pycls.runtime.unpickle import read_pickle

LABELS100 = {"fine_labels": 100, "coarse_labels": 20}


def write_cifar100(root, n=200):
    (root / "cifar-100-python").mkdir(parents=True)
    for split in ("train", "test"):
        batch = cifar_batch(n, LABELS100)
        (root / "cifar-100-python" / split).write_bytes(pickle.dumps(batch, protocol=2))
    return batch


def test_cifar10_python_form(tmp_path):
    pixels = write_cifar10(tmp_path)
    data = DATASETS.get("cifar10")(str(tmp_path), "trainval", download=False)
    assert torch.equal(data.images, torch.from_numpy(pixels).view(100, 3, 32, 32))
    assert data.labels.tolist() == [i % 20 % 10 for i in range(100)]
    assert data.class_names[3] == "cat"
    train, val = (
        DATASETS.get("cifar10")(str(tmp_path), split, download=False, val_size=10) for split in ("train", "val")
    )
    assert (len(train), len(val)) == (90, 10) and torch.bincount(val.labels).tolist() == [1] * 10


def test_both_forms_of_cifar100_are_the_same(tmp_path):
    batch = write_cifar100(tmp_path / "python")
    folder = tmp_path / "binary" / "cifar-100-binary"
    folder.mkdir(parents=True)
    labels = np.array([batch["coarse_labels"], batch["fine_labels"]], np.uint8).T
    np.concatenate([labels, batch["data"]], axis=1).tofile(folder / "train.bin")
    for kind, classes in (("fine", 100), ("coarse", 20)):
        python, binary = (
            DATASETS.get("cifar100")(str(tmp_path / form), "train", download=False, val_size=100, labels=kind)
            for form in ("python", "binary")
        )
        assert torch.equal(python.images, binary.images) and torch.equal(python.labels, binary.labels)
        assert python.num_classes == classes and int(python.labels.max()) == classes - 1


def test_val_is_the_same_for_fine_and_coarse_labels(tmp_path):
    write_cifar100(tmp_path)
    fine, coarse = (
        DATASETS.get("cifar100")(str(tmp_path), "val", download=False, val_size=100, labels=kind)
        for kind in ("fine", "coarse")
    )
    assert torch.equal(fine.images, coarse.images)
    assert torch.bincount(fine.labels).tolist() == [1] * 100
    with pytest.raises(InputError, match="fine or coarse"):
        DATASETS.get("cifar100")(str(tmp_path), "val", labels="finest")


class Attack:
    """A pickle that calls a function when it is read."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "function, argument, name",
    [
        (os.system, "touch {}", f"{os.system.__module__}.system"),
        (eval, "open({!r}, 'w')", "builtins.eval"),
        (exec, "open({!r}, 'w')", "builtins.exec"),
        (os.mkdir, "{}", f"{os.mkdir.__module__}.mkdir"),
    ],
)
def test_a_pickle_cannot_run_anything(tmp_path, protocol, function, argument, name):
    trace = tmp_path / "it_ran"
    (tmp_path / "cifar-100-python").mkdir()
    path = tmp_path / "cifar-100-python" / "train"
    batch = {**cifar_batch(4, LABELS100), "extra": Attack(function, argument.format(str(trace)))}
    path.write_bytes(pickle.dumps(batch, protocol=protocol))
    if protocol < 3:
        name = name.replace("builtins", "__builtin__")
    with pytest.raises(InputError, match=name.replace(".", r"\.")) as error:
        DATASETS.get("cifar100")(str(tmp_path), "train")
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert not trace.exists()


@pytest.mark.parametrize(
    "program",
    [
        b"c_codecs\nencode\n(Vabc\nVrot13\ntR.",  # an allowed function, asked to import a codec
        b"\x82\x01.",  # an extension code
        b"Pid\n.",  # a persistent id
        b"cnumpy\nload\n.",  # NumPy, but not an array's parts
        b"cnumpy.core.multiarray\n_reconstruct\n(cbuiltins\ndict\n(I0\ntVb\ntR.",  # a subtype of one's own
        b"cnumpy\ndtype\n(VO8\nI0\nI1\ntR.",  # an array of pointers
        b"cnumpy\ndtype\n.",
        b"c_codecs\nencode\n(dVx\nI1\nsb.",  # a state for what has none
        b"c_codecs\nencode\n(N(dV__doc__\nVchanged\nstb.",
        b"(lp0\ng0\na.",  # a list in itself
        b"",
        b"\x80\x02}q\x00",
        b"not a pickle",
    ],
)
def test_other_ways_to_go_wrong_are_refused(tmp_path, program):
    (tmp_path / "file").write_bytes(program)
    with pytest.raises(InputError, match=str(tmp_path / "file")) as error:
        read_pickle(tmp_path / "file")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_and_arrays_are_read(tmp_path, protocol):
    value = {
        "a": np.arange(6, dtype=np.uint8).reshape(2, 3),
        "f": np.asfortranarray(np.eye(3, 2, dtype=">i4")),
        "b": [1, 2.5, "x", None, True],
        "c": np.float64(3),
    }
    data = pickle.dumps(value, protocol=protocol)
    (tmp_path / "file").write_bytes(data)
    read = read_pickle(tmp_path / "file")
    assert np.array_equal(read["a"], value["a"]) and read["a"].dtype == np.uint8
    assert np.array_equal(read["f"], value["f"]) and read["f"].dtype == ">i4"
    assert read["b"] == value["b"] and read["c"] == 3
    (tmp_path / "file").write_bytes(data.replace(b"numpy._core.multiarray\n", b"numpy.core.multiarray\n"))
    assert np.array_equal(read_pickle(tmp_path / "file")["a"], value["a"])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"data": np.zeros((4, 3071), np.uint8)}, r"\[4, 3071\], not a uint8 array \[N, 3072\]"),
        ({"data": np.zeros((4, 3072), np.float32)}, "float32"),
        ({"data": [1, 2]}, "a list"),
        ({"fine_labels": [0, 1, 2]}, "4 images, but 3 fine_labels"),
        ({"fine_labels": [0, 1, 2, "x"]}, "no list of labels"),
        ({"fine_labels": [0, 1, 2, -1]}, "no list of labels"),
        ({"fine_labels": [0, 1, 2, 100]}, r"label 100; its labels are 0\.\.99"),
    ],
)
def test_inconsistent_batches(tmp_path, change, message):
    (tmp_path / "cifar-100-python").mkdir()
    batch = {**cifar_batch(4, LABELS100), **change}
    (tmp_path / "cifar-100-python" / "train").write_bytes(pickle.dumps(batch, protocol=2))
    with pytest.raises(InputError, match=message):
        DATASETS.get("cifar100")(str(tmp_path), "trainval", download=False)


def test_other_content_and_truncation(tmp_path):
    write_cifar100(tmp_path)
    path = tmp_path / "cifar-100-python" / "train"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1000])
    with pytest.raises(InputError, match=r"cifar-100-python/train cannot be read"):
        DATASETS.get("cifar100")(str(tmp_path), "train")
    path.write_bytes(pickle.dumps([1, 2], protocol=2))
    with pytest.raises(InputError, match="a dictionary, but a list"):
        DATASETS.get("cifar100")(str(tmp_path), "train")
    path.write_bytes(pickle.dumps({"data": 1}, protocol=2))
    with pytest.raises(InputError, match="no 'fine_labels', only data"):
        DATASETS.get("cifar100")(str(tmp_path), "train")


@pytest.mark.parametrize("size", [0, 3074 * 5 - 1])
def test_truncated_binary(tmp_path, size):
    (tmp_path / "cifar-100-binary").mkdir()
    (tmp_path / "cifar-100-binary" / "train.bin").write_bytes(bytes(size))
    with pytest.raises(InputError, match=rf"train\.bin has {size:,} bytes: not a multiple of 3,074"):
        DATASETS.get("cifar100")(str(tmp_path), "train", download=False)


def test_missing_batches_are_named(tmp_path):
    write_cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").unlink()
    with pytest.raises(InputError, match=r"cifar10: no data_batch_3 .*cifar-10-batches-py or .*cifar-10-batches-bin"):
        DATASETS.get("cifar10")(str(tmp_path), "train", download=False)
    assert len(DATASETS.get("cifar10")(str(tmp_path), "test", download=False)) == 20


def test_archives_are_unpacked(tmp_path, server, monkeypatch):
    folder, address = server
    write_cifar10(tmp_path / "made")
    archive = folder / "cifar.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "made" / "cifar-10-batches-py", "cifar-10-batches-py")
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    source = download.Source((address,), ((archive.name, md5),), archive=True)
    monkeypatch.setitem(download.SOURCES, "cifar10", lambda: source)
    root = tmp_path / "root"
    assert len(DATASETS.get("cifar10")(str(root), "trainval")) == 100
    assert sorted(path.name for path in root.iterdir()) == ["cifar-10-batches-py"]


def test_real_cifar100(real_data):
    train, val, test = (
        DATASETS.get("cifar100")(real_data, split, download=False) for split in ("train", "val", "test")
    )
    assert (len(train), len(val), len(test)) == (45_000, 5_000, 10_000)
    assert torch.bincount(test.labels).tolist() == [100] * 100
    assert torch.bincount(val.labels).tolist() == [50] * 100
    means = train.images.double().mean((0, 2, 3)) / 255
    assert means.tolist() == pytest.approx(train.mean, abs=2e-3)


def test_an_archive_does_not_write_elsewhere(tmp_path, server, monkeypatch):
    folder, address = server
    (tmp_path / "evil").write_text("x")
    archive = folder / "cifar.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "evil", "../../evil-from-archive")
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    source = download.Source((address,), ((archive.name, md5),), archive=True)
    monkeypatch.setitem(download.SOURCES, "cifar10", lambda: source)
    root = tmp_path / "a" / "b" / "root"
    with pytest.raises(InputError, match=r"the download failed: .*outside the destination"):
        DATASETS.get("cifar10")(str(root), "train")
    assert not list(tmp_path.rglob("evil-from-archive"))
