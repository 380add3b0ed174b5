"""A resized copy of a tree of images: smaller files, which are read and decoded several times as fast."""

import argparse
import json
import multiprocessing
import os
import secrets
import shutil
import signal
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from pycls.data.images.decoding import upright
from pycls.data.images.image_files import EXTENSIONS
from pycls.errors import InputError
from pycls.runtime import pipe

RECORD = ".prepared.json"
JPEGS = (".jpg", ".jpeg")


@dataclass(frozen=True)
class CopyFormat:
    """How images are written.

    Attributes:
        size: of the short side, in pixels; smaller images are copied as they are.
        quality: of JPEG, 1..100.
    """

    size: int = 256
    quality: int = 95


def prepare(source: Path, target: Path, copy_format: CopyFormat, processes: int) -> dict[str, str]:
    """Writes the copy, under the same names. What is there already is left: a stopped run goes on where it was.

    Args:
        source: the tree.
        target: the copy; made if need be.
        copy_format: of the images.
        processes: how many work at it.

    Returns:
        Name -> reason, of the files that cannot be read; they are left out.

    Raises:
        InputError: no images, or a copy in another format is there.
    """
    files = sorted(path.relative_to(source) for path in source.rglob("*") if path.suffix.lower() in EXTENSIONS)
    if not files:
        raise InputError(f"there are no images in {source} ({', '.join(EXTENSIONS)})")
    if source.resolve() == target.resolve():
        raise InputError(f"the copy must have another folder than {source}")
    _refuse_other_format(target, copy_format)
    for folder in sorted({(target / file).parent for file in files}):
        folder.mkdir(parents=True, exist_ok=True)
    (target / RECORD).write_text(json.dumps(asdict(copy_format)) + "\n", encoding="utf-8")
    work = partial(_copy, source, target, copy_format)
    bad: dict[str, str] = {}
    with multiprocessing.Pool(processes, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        done = pool.imap_unordered(work, files, chunksize=16)
        for name, reason in tqdm(done, total=len(files), unit=" img", disable=not sys.stderr.isatty(), dynamic_ncols=True):
            if reason:
                bad[name] = reason
    return bad


def _refuse_other_format(target: Path, copy_format: CopyFormat) -> None:
    record = target / RECORD
    if not target.exists():
        return
    if not record.is_file():
        if any(target.iterdir()):
            raise InputError(f"{target} has other files: the copy needs its own folder")
        return
    try:
        before = json.loads(record.read_text(encoding="utf-8"))
    except ValueError:
        before = None
    if before != asdict(copy_format):
        raise InputError(f"{target} holds a copy in another format, {before}; give another folder, or remove it")


def _copy(source: Path, target: Path, copy_format: CopyFormat, file: Path) -> tuple[str, str]:
    """(name, why it cannot be read or "")."""
    new = target / file
    if new.exists():
        return str(source / file), ""
    beside = new.with_name(f".{secrets.token_hex(4)}{new.suffix}")
    try:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                _write(source / file, beside, copy_format)
        except Exception as error:  # decoders raise nearly anything for a damaged file
            return str(source / file), " ".join(str(error).split()) or type(error).__name__
        os.replace(beside, new)
    finally:
        beside.unlink(missing_ok=True)
    return str(source / file), ""


def _write(file: Path, new: Path, copy_format: CopyFormat) -> None:
    with Image.open(file) as opened:
        image = upright(opened)  # also of a small one: what loading will refuse is not copied
    width, height = image.size
    if min(width, height) <= copy_format.size:
        shutil.copyfile(file, new)
        return
    shrink = copy_format.size / min(width, height)
    size = (max(copy_format.size, round(width * shrink)), max(copy_format.size, round(height * shrink)))
    resized = image.resize(size, Image.Resampling.BICUBIC)
    if new.suffix.lower() in JPEGS:
        resized.save(new, "JPEG", quality=copy_format.quality)
    else:
        resized.save(new, "PNG")  # whatever its name: what reads it looks at its content


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done, 2 what was given cannot work, 130 stopped."""
    options = argparse.ArgumentParser(description="A copy of a folder of images, resized; goes on where it was stopped.")
    options.add_argument("source", type=Path, help="the folder, with any folders below it")
    options.add_argument("target", type=Path, help="the copy; the same names")
    options.add_argument("--size", type=int, default=256, help="short side, in pixels (256)")
    options.add_argument("--quality", type=int, default=95, help="of JPEG, 1..100 (95)")
    options.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="that work at it (all cores)")
    given = options.parse_args(argv)
    try:
        if given.size < 1 or given.processes < 1 or not 1 <= given.quality <= 100:
            raise InputError("--size and --processes are 1 or more, --quality is 1..100")
        bad = prepare(given.source, given.target, CopyFormat(given.size, given.quality), given.processes)
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, reason in bad.items():
        print(f"warning: {name} cannot be read and is left out: {reason}", file=sys.stderr)
    print(f"in {given.target}: a copy of {given.source}" + (f", without {len(bad)} files that cannot be read" * bool(bad)))
    return 0


def console() -> None:
    """The script."""
    sys.exit(pipe.run(main))
