"""Small C sources of this package, compiled once a machine where there is a compiler. Nothing may depend on one."""

import contextlib
import ctypes
import functools
import hashlib
import logging
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from pycls.errors import InputError
from pycls.runtime.cache import cache_dir, keep

logger = logging.getLogger(__name__)

COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-O3", "-fPIC")
OPENMP = ("-fopenmp", "-fno-math-errno", "-fno-trapping-math")
WITH_MEMORY = (Tensor, nn.Parameter)
"""The types of tensors whose memory C may work with: a subclass of Tensor may have none."""

TUNING = (("-march=native",), ("-mcpu=native",), ())


class Unfit(Exception):
    """There is no library that does what it should; the text says why, or what to install."""


def library(
    source: Path, compile_flags: Sequence[str] = (), link_flags: Sequence[str] = (), headers: Sequence[Path] = ()
) -> ctypes.CDLL:
    """The library made of one C file: found in the cache directory, or compiled and put there.

    Args:
        source: the file.
        compile_flags: besides ``FLAGS``. They are not given to the linker: with ``-fopenmp`` the library has the OpenMP
            runtime that torch has loaded, and not a second one whose threads would fight with the first one's.
        link_flags: libraries.
        headers: files beside ``source`` that it includes.

    Raises:
        Unfit: there is no compiler, it fails, or what it made cannot be loaded.
    """
    path = _compiler()
    if path is None:
        raise Unfit("there is no C compiler (cc, gcc or clang)")

    def write(target: Path) -> None:
        with tempfile.TemporaryDirectory() as folder:
            made = f"{folder}/{source.stem}.o"
            if not any(_runs([path, *FLAGS, *compile_flags, *tuning, "-c", str(source), "-o", made]) for tuning in TUNING):
                raise Unfit("it cannot be compiled")
            if not _runs([path, "-shared", made, "-o", str(target), *link_flags]):
                raise Unfit("it cannot be linked")

    name = f"{source.stem}-{_key([source, *headers], path, *compile_flags, *link_flags)}.so"
    try:
        with contextlib.suppress(InputError):  # as without a home directory
            kept = cache_dir() / name
            if kept.exists() or keep(kept, write):
                return ctypes.CDLL(str(kept))
        with tempfile.TemporaryDirectory() as folder:  # nowhere to keep it
            write(Path(folder) / name)
            return ctypes.CDLL(str(Path(folder) / name))
    except (OSError, subprocess.SubprocessError) as error:
        raise Unfit(f"it cannot be compiled or loaded ({error})") from error


def compiled(source: Path, headers: Sequence[Path] = ()) -> ctypes.CDLL | None:
    """The library made of a C file that uses OpenMP and the C library's mathematics, for which there is another way where there
    cannot be one: None."""
    try:
        return library(source, OPENMP, link_flags=["-lm"], headers=headers)
    except Unfit as error:
        logger.debug("%s is not used: %s", source.name, error)
        return None


def _compiler() -> str | None:
    return next((path for path in map(shutil.which, COMPILERS) if path), None)


@functools.cache
def _machine() -> str:
    """The system and the processor, for whose instructions the library is compiled."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    processor = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return f"{platform.platform()}\n{processor}"


def _key(sources: Sequence[Path], *facts: str) -> str:
    """What the library is a function of."""
    about = "\n".join([*(source.read_text(encoding="utf-8") for source in sources), *facts, _machine()])
    return hashlib.sha256(about.encode()).hexdigest()[:16]


def _runs(command: list[str]) -> bool:
    return subprocess.run(command, capture_output=True, check=False, timeout=120).returncode == 0
