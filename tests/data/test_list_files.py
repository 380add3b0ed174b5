"""Lists as people and programs write them: encodings, separators, headers, and labels that are numbers, names or neither."""

from pathlib import Path

import pytest

from pycls.data.images.image_files import read_classes
from pycls.data.index.lists import ImageList, read_list
from pycls.errors import InputError
from pycls.registry import DATASETS


def read(folder: Path, content: str | bytes, name: str = "l.csv", **options: str) -> ImageList:
    data = content if isinstance(content, bytes) else content.encode()
    (folder / name).write_bytes(data)
    return read_list(folder / name, option="IMAGE_LIST.TRAIN", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfpath,label\na.jpg,1\nb.jpg,0\n",
        b"path,label\r\na.jpg,1\r\n\r\nb.jpg,0\r\n\r\n,\r\n",
        b"path,label\ra.jpg,1\rb.jpg,0",
        b" Path , LABEL \n a.jpg , 1 \nb.jpg,0  \n",
        b"path;label\na.jpg;1\nb.jpg;0\n",
        b"path\tlabel\na.jpg\t1\nb.jpg\t0\n",
        b'"path", "label"\n"a.jpg", "1"\n"b.jpg", "0"\n',
        b"# made by hand, twice\npath,label,\n# the first\na.jpg,1,\nb.jpg,0\n",
        b"id,label,size,path\n0,1.0,7,a.jpg\n1,0.0,,b.jpg\n",
        b"path,label\na.jpg,+1\nb.jpg,0e0\n",
    ],
)
def test_the_same_list_in_many_forms(tmp_path: Path, content: bytes) -> None:
    for name in ("l.csv", "l.TSV"):
        found = read(tmp_path, content, name)
        assert found.paths.tolist() == [b"a.jpg", b"b.jpg"] and found.labels.tolist() == [1, 0]


@pytest.mark.parametrize("content", [
    b"\xef\xbb\xbfa.jpg 1\nb.jpg 0\n", b"a.jpg 1  \r\n\r\n  b.jpg\t0\r\n   \n", b"# path label\na.jpg 1.0\n  # more\nb.jpg 0\n",
])  # fmt: skip
def test_the_same_lines_in_many_forms(tmp_path: Path, content: bytes) -> None:
    found = read(tmp_path, content, "l.txt")
    assert found.paths.tolist() == [b"a.jpg", b"b.jpg"] and found.labels.tolist() == [1, 0]
    assert found.where(1) == f"IMAGE_LIST.TRAIN: {tmp_path}/l.txt:{content[: content.index(b'b.jpg')].count(10) + 1}"
    assert read(tmp_path, "#1.jpg 0\n", "l.txt").paths.tolist() == [b"#1.jpg"]


@pytest.mark.parametrize(
    "labels, read_as",
    [
        (["0.0", "1.0", "10.0"], [0, 1, 10]),
        (["1e1", "01", "2."], [10, 1, 2]),
        (["B", "7"], ["B", "7"]),
        (["7", "8", "A", "B", "C"], ["7", "8", "A", "B", "C"]),
        (["cat", "cat", "0.5"], ["cat", "cat", "0.5"]),
        (["honey; bee", "ant"], ["honey; bee", "ant"]),
    ],
)
def test_numbers_and_names(tmp_path: Path, labels: list[str], read_as: list[object]) -> None:
    found = read(tmp_path, "path,label\n" + "".join(f"{k}.jpg,{label}\n" for k, label in enumerate(labels)))
    assert found.labels.tolist() == read_as and found.named == isinstance(read_as[0], str)


@pytest.mark.parametrize("missing", ["NaN", "nan", "-nan", "None", "NA", "N/A", "null", "<NA>", "inf", "-Inf", "", "  ", '""'])
def test_a_label_that_is_missing(tmp_path: Path, missing: str) -> None:
    for others in ("0 1 2", "ant bee cat"):
        labels = [*others.split()[:2], missing, *others.split()[2:]]
        with pytest.raises(InputError, match=r"^IMAGE_LIST\.TRAIN: .*l\.csv:4: the label (is empty|'.*' stands for a missing)"):
            read(tmp_path, "path,label\n" + "".join(f"{k}.jpg,{label}\n" for k, label in enumerate(labels)))


@pytest.mark.parametrize(
    "text, message",
    [
        ("path,label\na.jpg,0\nb.jpg,1\nc.jpg,cat\n", r"l\.csv:4: the label 'cat' is no whole number, as most labels here are"),
        ("path,label\na.jpg,0\nb.jpg,0.5\n", r"l\.csv:3: the label '0\.5' is no whole number"),
        ("path,label\na.jpg,0\nb.jpg,-1.0\n", r"l\.csv:3: the label '-1\.0' is negative"),
        ("path,label\na.jpg,0\nb.jpg,99999999999999999999\n", r"l\.csv:3: the label '9*' is too large"),
        ("path,label\na.jpg,0\n\nb.jpg,1e99\n", r"l\.csv:4: the label '1e99' is too large"),
        ('path,label\n"a\nb.jpg",0\n,1\n', r"l\.csv:4: the path is empty"),
        ("path,label\na.jpg\n", r"l\.csv:2: expected a path and a label: there are 1 of 2 columns"),
        ("path,label\na, b.jpg,0\n", r"l\.csv:2: there are 3 columns where the header has 2; .* ',' is put in quotes"),
        ('path,label\na.jpg,0\nb.jpg,"1\nc.jpg,1\n', r"l\.csv:3: this is no CSV: unexpected end of data"),
        ("path,label\na.jpg,ant\n Path,Label\nb.jpg,bee\n", r"l\.csv:3: this is the header once more"),
        ("path,label,Label \na.jpg,0,1\n", r"l\.csv:1: there are 2 columns 'label'"),
        ("a.jpg,0\n", r"l\.csv:1: there is no column 'path', only a\.jpg, 0; name the columns with IMAGE_LIST\.PATH_COLUMN"),
        ("", r"l\.csv:1: there is no column 'path', only nothing"),
        ("path,label\n", r"l\.csv: the list is empty"),
    ],
)
def test_csv_that_cannot_be(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match="^IMAGE_LIST.TRAIN: .*" + message) as error:
        read(tmp_path, text)
    assert "\n" not in str(error.value)


def test_columns_are_two(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="paths and labels are both to be in the column 'path'"):
        read(tmp_path, "path,label\na.jpg,0\n", label_column="path")
    with pytest.raises(InputError, match=r"a list with commas, and a header, is called \.csv"):
        read(tmp_path, "a.jpg,0\n", "l.txt")


@pytest.mark.parametrize(
    "data, message",
    [
        ("path,label\na.jpg,0\n".encode("utf-16"), r"is not UTF-8 but UTF-16 or UTF-32: save it as UTF-8"),
        ("path,label\na.jpg,0\n".encode("utf-16-le"), r"is not UTF-8 but UTF-16"),
        ("path,label\na.jpg,0\n".encode("utf-32"), r"is not UTF-8 but UTF-16"),
        ("path,label\na.jpg,0\né.jpg,0\n".encode("latin-1"), r"is not UTF-8: line 3 holds the byte 0xe9"),
        (b"path,label\na\0.jpg,0\n", r"is no text: line 2 holds a zero byte"),
    ],
)
def test_other_encodings(tmp_path: Path, data: bytes, message: str) -> None:
    for name in ("l.csv", "l.txt"):
        with pytest.raises(InputError, match=rf"^IMAGE_LIST\.TRAIN: the list .*{name} {message}"):
            read(tmp_path, data, name)
    with pytest.raises(InputError, match=rf"^the file of classes .*l\.txt {message}"):
        read_classes(tmp_path / "l.txt")
    (tmp_path / "l.txt").write_bytes(b"\xef\xbb\xbfant\nbee\n")
    assert list(read_classes(tmp_path / "l.txt")) == ["ant", "bee"]


def test_numbers_are_names_where_they_are_in_training(tmp_path: Path) -> None:
    for name in "abcd":
        (tmp_path / f"{name}.jpg").touch()
    (tmp_path / "train.csv").write_text("path,label\na.jpg,B\nb.jpg,7\n")
    (tmp_path / "val.csv").write_text("path,label\nc.jpg,7\nd.jpg,7\n")
    data = DATASETS.get("image_list")(str(tmp_path), "val", train="train.csv", val="val.csv")
    assert data.class_names == ["7", "B"] and data.labels.tolist() == [0, 0]


def test_addresses_of_lists_and_folders(tmp_path: Path) -> None:
    pytest.importorskip("iopath")
    for option, address in (("train", "s3://bucket/l.txt"), ("folder", "s3://bucket/photos"), ("classes", "s3://bucket/c")):
        options = {"train": "l.txt", option: address}
        with pytest.raises(InputError, match=rf"^IMAGE_LIST\.{option.upper()}(: {address} cannot be fetched| is {address})"):
            DATASETS.get("image_list")(str(tmp_path), "train", **options)
    for options in ({"folder": "s3://b/photos"}, {"classes": "s3://b/c"}):
        with pytest.raises(InputError, match=r"^IMAGE_FOLDER\.(FOLDER|CLASSES) is s3://b/.*, an address; it must be a path"):
            DATASETS.get("image_folder")(str(tmp_path), "train", **options)
    with pytest.raises(InputError, match=r"^DATA\.ROOT .* is s3://bucket, an address; it must be a path on this machine"):
        DATASETS.get("image_folder")("s3://bucket", "train")
    with pytest.raises(InputError, match=r"is ~nobody-here/x, and there is no such home folder"):
        DATASETS.get("image_folder")("~nobody-here/x", "train")
