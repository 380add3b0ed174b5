"""WebDataset tar files: samples by place, what is no whole tar file, and parts that share one."""

import io
import os
import pickle
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from bad_files import encoded

from pycls.data.dataset import MissingSplit
from pycls.data.index.tar_index import expand
from pycls.data.loader import EvalLoader
from pycls.data.sets.webdataset import WebDataset
from pycls.errors import InputError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("PYCLS_CACHE", str(folder))
    return folder


def write_tar(path: Path, first: int, count: int, label: str = "cls") -> None:
    with tarfile.open(path, "w") as tar:
        for i in range(first, first + count):
            label_text = str(i % 3) if label == "cls" else f'{{"label": {i % 3}}}'
            for suffix, content in (("jpg", encoded("JPEG", quality=50 + i)), (label, label_text.encode()), ("txt", b"x")):
                info = tarfile.TarInfo(f"part/{i:04}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize("label", ["cls", "json"])
def test_tar_files(tmp_path: Path, cache: Path, label: str) -> None:
    for k in range(3):
        write_tar(tmp_path / f"train-{k:03}.tar", 5 * k, 5, label)
    write_tar(tmp_path / "val.tar", 50, 4, label)
    options = {"train": "train-{000..002}.tar", "val": "val.tar", "im_size": 16}
    for _ in range(2):  # the second time by the kept index
        data = WebDataset(str(tmp_path), "train", **options)
        assert len(data) == 15 and data.labels.tolist() == [i % 3 for i in range(15)] and data.class_names == ["0", "1", "2"]
        assert [data.read(i) == encoded("JPEG", quality=50 + i) for i in (14, 0, 7)] == [True] * 3
        assert data.describe(7) == f"{tmp_path}/train-001.tar:part/0007"
        assert len(list(cache.iterdir())) >= 3
    data.read(0)
    assert pickle.loads(pickle.dumps(data)).read(3) == data.read(3)
    assert len(WebDataset(str(tmp_path), "trainval", **options)) == 19
    val = WebDataset(str(tmp_path), "val", **options)
    passes = [[b.images for b in EvalLoader(val, 2, num_workers=n)] for n in (0, 2)]
    assert all(torch.equal(a, b) for a, b in zip(*passes, strict=True))


def test_tar_files_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"name the tar files with WEBDATASET\.TRAIN"):
        WebDataset(str(tmp_path), "train")
    with pytest.raises(InputError, match=r"a-1\.tar cannot be read: No such file"):
        WebDataset(str(tmp_path), "train", train="a-{1..2}.tar")
    (tmp_path / "a.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(InputError, match=r"a\.tar is no readable tar file"):
        WebDataset(str(tmp_path), "train", train="a.tar")
    write_tar(tmp_path / "b.tar", 0, 2, "tag")
    with pytest.raises(InputError, match=r"b\.tar: the image part/0000 has no label"):
        WebDataset(str(tmp_path), "train", train="b.tar")
    with pytest.raises(MissingSplit):
        WebDataset(str(tmp_path), "test", train="b.tar")


def test_patterns() -> None:
    assert expand("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expand("{x,y}/{1..2}.tar") == ["x/1.tar", "x/2.tar", "y/1.tar", "y/2.tar"]
    assert expand("plain.tar") == ["plain.tar"]
    with pytest.raises(InputError, match=r"a-\{2\.\.1\}\.tar: \{2\.\.1\} must count upwards"):
        expand("a-{2..1}.tar")


SAMPLE = (("a.jpg", b"image"), ("a.cls", b"1"))


def write_members(path: Path, members: Sequence[tuple[str, bytes]]) -> str:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path.name


def test_capitals(tmp_path: Path) -> None:
    upper = [(name.upper(), content) for name, content in (*SAMPLE, ("b.png", b"x"), ("b.json", b'{"label": 2}'))]
    data = WebDataset(str(tmp_path), "train", train=write_members(tmp_path / "a.tar", upper))
    assert data.labels.tolist() == [1, 2] and data.read(0) == b"image"


@pytest.mark.parametrize(
    "members, message",
    [
        ([("a.b.jpg", b""), ("a.b.cls", b"1")], r"a\.tar: a\.b\.jpg is no image of a sample: .* \.b\.jpg of the sample a;"),
        ([*SAMPLE, ("c.D.JPG", b"")], r"c\.D\.JPG is no image of a sample"),
        ([*SAMPLE, ("./a.JPG", b"")], r"the sample a is twice in .*a\.tar: as a\.jpg and as \./a\.JPG"),
        ([*SAMPLE, ("a.png", b"")], r"the sample a is twice in .*a\.tar: as a\.jpg and as a\.png"),
        ([*SAMPLE, ("a.cls", b"1")], r"the sample a is twice in .*a\.tar: as a\.cls and as a\.cls"),
        ([*SAMPLE, ("a.json", b'{"label": 2}')], r"a\.tar: the sample a has two labels, 1 and, in a\.json, 2"),
        ([*SAMPLE, ("c.cls", b"1")], r"a\.tar: the label c has no image"),
        ([("a.txt", b"1")], r"a\.tar has no images"),
        ([("a.jpg", b""), ("a.cls", b"[" * 100_000)], r"a\.cls holds no label"),
        ([("a.jpg", b""), ("a.cls", b"9" * 30)], r"a\.cls holds no label"),
    ],
)
def test_samples_that_are_not_whole(tmp_path: Path, members: list[tuple[str, bytes]], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        WebDataset(str(tmp_path), "train", train=write_members(tmp_path / "a.tar", members))
    assert "\n" not in str(error.value)


def test_further_images_of_a_sample_and_links(tmp_path: Path) -> None:
    data = WebDataset(str(tmp_path), "train", train=write_members(tmp_path / "a.tar", [("a.mask.png", b"x"), *SAMPLE]))
    assert len(data) == 1 and data.read(0) == b"image"
    with tarfile.open(tmp_path / "a.tar", "a") as tar:
        link = tarfile.TarInfo("b.jpg")
        link.type, link.linkname = tarfile.LNKTYPE, "a.jpg"
        tar.addfile(link)
    with pytest.raises(InputError, match=r"a\.tar: b\.jpg is a link"):
        WebDataset(str(tmp_path), "train", train="a.tar")


def test_a_tar_file_that_is_cut_anywhere(tmp_path: Path) -> None:
    members = [*SAMPLE, ("b.jpg", b"x" * 600), ("b.cls", b"0"), (f"{'c' * 120}.jpg", b"x"), (f"{'c' * 120}.cls", b"0")]
    write_members(tmp_path / "whole.tar", members)
    whole = (tmp_path / "whole.tar").read_bytes()
    with tarfile.open(tmp_path / "whole.tar") as tar:
        tar.getmembers()
        end = tar.offset
    for size in [*range(100, end + 1024, 256), end, end + 1023]:
        (tmp_path / f"{size}.tar").write_bytes(whole[:size])
        with pytest.raises(InputError, match=rf"{size}\.tar is .*byte {size:,}|is damaged or cut off: at byte"):
            WebDataset(str(tmp_path), "train", train=f"{size}.tar")
    (tmp_path / "least.tar").write_bytes(whole[: end + 1024])
    assert len(WebDataset(str(tmp_path), "train", train="least.tar")) == 3
    (tmp_path / "joined.tar").write_bytes(whole + whole)
    with pytest.raises(InputError, match=r"joined\.tar goes on behind its end, .* tar -A, not by cat"):
        WebDataset(str(tmp_path), "train", train="joined.tar")
    (tmp_path / "damaged.tar").write_bytes(whole[:2048] + b"x" + whole[2049:])
    with pytest.raises(InputError, match=r"damaged\.tar is damaged"):
        WebDataset(str(tmp_path), "train", train="damaged.tar")


def test_a_name_is_once_in_a_part(tmp_path: Path) -> None:
    for name in ("a.tar", "b.tar"):
        write_members(tmp_path / name, SAMPLE)
    with pytest.raises(InputError, match=r"the sample a is in .*a\.tar and again in .*b\.tar"):
        WebDataset(str(tmp_path), "train", train="{a,b}.tar")
    assert len(WebDataset(str(tmp_path), "trainval", train="a.tar", val="b.tar")) == 2, "two parts may have the same names"


@pytest.mark.parametrize("split", ["train", "val", "trainval"])
def test_a_tar_file_is_of_one_part(tmp_path: Path, split: str) -> None:
    for k in range(3):
        write_tar(tmp_path / f"{k}.tar", 5 * k, 5)
    (tmp_path / "link.tar").symlink_to("1.tar")
    os.link(tmp_path / "1.tar", tmp_path / "hard.tar")
    (tmp_path / "folder").mkdir()
    for name in ("1.tar", "link.tar", "hard.tar", "./1.tar", "folder/../1.tar", str(tmp_path / "1.tar"), "{1..2}.tar"):
        with pytest.raises(InputError, match=r"^1\.tar of WEBDATASET\.TRAIN and .*\.tar of WEBDATASET\.VAL are the same tar"):
            WebDataset(str(tmp_path), split, train="{0..1}.tar", val=name)
    with pytest.raises(InputError, match=r"WEBDATASET\.VAL and 2\.tar of WEBDATASET\.TEST are the same"):
        WebDataset(str(tmp_path), split, train="0.tar", val="{1..2}.tar", test="2.tar")
    with pytest.raises(InputError, match=r"WEBDATASET\.TRAIN .* has a tar file twice: as 1\.tar and as link\.tar"):
        WebDataset(str(tmp_path), split, train="{0,1,link}.tar", val="2.tar")


def test_addresses(tmp_path: Path) -> None:
    file_io = pytest.importorskip("iopath.common.file_io")

    class Shelf(file_io.PathHandler):  # type: ignore[misc, name-defined]
        def _get_supported_prefixes(self) -> list[str]:
            return ["shelf://"]

        def _get_local_path(self, path: str, force: bool = False, **_: object) -> str:
            return str(shutil.copy(tmp_path / path.removeprefix("shelf://top/"), tmp_path / "fetched.tar"))

    write_members(tmp_path / "a.tar", SAMPLE)
    for address in ("nowhere://bucket/a.tar", "s3://bucket//a.tar", f"file://{tmp_path}/a.tar", "https://127.0.0.1/a.tar"):
        scheme = address.partition("://")[0]
        with pytest.raises(InputError, match=rf"^WEBDATASET\.TRAIN: {address} cannot be fetched: no handler for {scheme}://"):
            WebDataset(str(tmp_path), "train", train=address)
    with pytest.raises(InputError, match=r"C://a\.tar cannot be read|C:/a\.tar cannot be read"):
        WebDataset(str(tmp_path), "train", train="C://a.tar")
    with pytest.raises(InputError, match=r"^WEBDATASET\.CLASSES is s3://b/c, an address; it must be a path"):
        WebDataset(str(tmp_path), "train", train="a.tar", classes="s3://b/c")
    manager = file_io.PathManagerFactory.get()
    manager.register_handler(Shelf())
    try:
        assert WebDataset(str(tmp_path), "train", train="shelf://top/a.tar").read(0) == b"image"
        with pytest.raises(InputError, match=r"^WEBDATASET\.TRAIN: shelf://top/b\.tar cannot be fetched: .*No such file"):
            WebDataset(str(tmp_path), "train", train="shelf://top/b.tar")
        with pytest.raises(InputError, match=r"shelf://top/a\.tar of WEBDATASET\.VAL are the same tar file"):
            WebDataset(str(tmp_path), "val", train="shelf://top/a.tar", val="shelf://top/a.tar")
    finally:
        manager._path_handlers.pop("shelf://")
