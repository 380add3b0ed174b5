"""The resized copy: right, resumable, and clear about what it cannot do."""

from pathlib import Path

import numpy as np
import pytest
from bad_files import encoded, photograph
from PIL import Image

from pycls.data.images.prepare import CopyFormat, main, prepare
from pycls.data.sets.image_folder import ImageFolder
from pycls.errors import InputError


def write_tree(root: Path) -> Path:
    (root / "train" / "a").mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    photograph(90, 60).save(root / "train/a/wide.jpg")
    photograph(60, 90).save(root / "train/a/turned.JPEG", exif=exif)
    photograph(20, 30).save(root / "train/a/small.png")
    photograph(90, 60).convert("P").save(root / "train/a/palette.gif")
    photograph(90, 60).convert("L").save(root / "train/a/grey.jpg")
    photograph(90, 60).convert("CMYK").save(root / "train/a/four.jpg")
    (root / "train/a/broken.jpg").write_bytes(encoded("JPEG")[:-300])
    (root / "train/a/notes.txt").write_text("no image")
    return root


def test_the_copy(tmp_path: Path) -> None:
    source, target = write_tree(tmp_path / "in"), tmp_path / "out"
    bad = prepare(source, target, CopyFormat(size=30), processes=2)
    assert list(bad) == [str(source / "train/a/broken.jpg")] and "runcated" in bad[str(source / "train/a/broken.jpg")]
    sizes = {}
    for path in (target / "train/a").iterdir():
        with Image.open(path) as image:
            sizes[path.name] = image.size
    assert sizes == {"wide.jpg": (45, 30), "turned.JPEG": (45, 30), "small.png": (20, 30), "palette.gif": (45, 30),
                     "grey.jpg": (45, 30), "four.jpg": (45, 30)}  # fmt: skip
    assert (target / "train/a/small.png").read_bytes() == (source / "train/a/small.png").read_bytes()
    before, after = (ImageFolder(str(root), "trainval", val_size=1) for root in (source, target))
    names = [Path(after.describe(i)).name for i in range(len(after))]
    for i, name in enumerate(names):
        original = next(k for k in range(len(before)) if Path(before.describe(k)).name == name)
        height, width = after.load(i).shape[:2]
        expected = Image.fromarray(before.load(original)).resize((width, height), Image.Resampling.BICUBIC)
        assert np.abs(after.load(i).astype(int) - np.asarray(expected)).mean() < 4, name


def test_it_goes_on_where_it_was(tmp_path: Path) -> None:
    source, target = write_tree(tmp_path / "in"), tmp_path / "out"
    prepare(source, target, CopyFormat(size=30), processes=1)
    (target / "train/a/wide.jpg").unlink()
    kept = (target / "train/a/grey.jpg").stat().st_mtime_ns
    prepare(source, target, CopyFormat(size=30), processes=1)
    assert (target / "train/a/wide.jpg").exists() and (target / "train/a/grey.jpg").stat().st_mtime_ns == kept
    assert not [path for path in target.rglob(".*") if path.name != ".prepared.json"]
    with pytest.raises(InputError, match="holds a copy in another format"):
        prepare(source, target, CopyFormat(size=31), processes=1)


@pytest.mark.parametrize(
    "arguments, message",
    [(["nowhere", "out"], "no images in nowhere"), (["in", "in"], "another folder"), (["in", "other"], "has other files"),
     (["in", "out", "--size", "0"], "1 or more")],
)  # fmt: skip
def test_what_cannot_be(tmp_path: Path, monkeypatch, capsys, arguments: list[str], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    write_tree(Path("in"))
    Path("other").mkdir()
    Path("other/file").write_text("")
    assert main(arguments) == 2 and message in capsys.readouterr().err


def test_the_command(tmp_path: Path, capsys) -> None:
    source = write_tree(tmp_path / "in")
    assert main([str(source), str(tmp_path / "out"), "--size", "30", "--processes", "1"]) == 0
    said = capsys.readouterr()
    assert "without 1 files" in said.out and "broken.jpg cannot be read" in said.err
