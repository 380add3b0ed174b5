"""The log: plain lines for people, ``json_stats:`` lines for programs, in pycls's format.

Rank 0 speaks on standard output and in ``OUT_DIR/stdout.log``, the other ranks only to warn. The ``json_stats`` lines
go to the file alone: what is printed is for people, also in a pipe. Nothing of the environment
is ever logged.
"""

import contextlib
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import simplejson

from pycls.runtime import pipe

LOG_FILE = "stdout.log"
_TAG = "json_stats: "
_TYPE = "_type"

logger = logging.getLogger(__name__)


def setup_logging(out_dir: str | os.PathLike[str] | None = None, rank: int = 0) -> None:
    """Send the log where it belongs, replacing an earlier call's arrangement. Handlers of others are left alone.

    Args:
        out_dir: the run's folder, where rank 0 appends to ``stdout.log``; None for the terminal only.
        rank: this process's rank.
    """
    root = logging.getLogger()
    for handler in [h for h in root.handlers if isinstance(h, _Terminal | _File)]:
        root.removeHandler(handler)
        handler.close()
    root.addHandler(_Terminal(rank))
    logging.getLogger("pycls").setLevel(logging.INFO)
    if rank == 0 and out_dir is not None:
        root.addHandler(_File(Path(out_dir) / LOG_FILE))


def log_json_stats(stats: Mapping[str, Any], kind: str) -> None:
    """Log one line ``json_stats: {"_type": kind, ...}``: keys sorted, floats to 6 significant digits, NaN as null.

    Args:
        stats: what to log: numbers, strings, lists and mappings of these; a tensor or array of one element is a number.
        kind: what the line is about, such as ``train_iter`` or ``test_epoch``.
    """
    data = {**{key: _plain(value) for key, value in stats.items()}, _TYPE: kind}
    logger.info("%s%s", _TAG, simplejson.dumps(data, sort_keys=True, ignore_nan=True))


def read_json_stats(path: str | os.PathLike[str], kind: str | None = None) -> list[dict[str, Any]]:
    """The ``json_stats`` lines of a log, in order, those of one kind or all. Lines cut short by a kill are skipped.

    After a resume the steps since the last checkpoint are in the log twice; the later lines are the ones that count.
    """
    found = []
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            _, tag, text = line.partition(_TAG)
            if tag:
                with contextlib.suppress(ValueError):
                    found.append(simplejson.loads(text))
    return [data for data in found if isinstance(data, dict) and _TYPE in data and kind in (None, data[_TYPE])]


def load_log_data(path: str | os.PathLike[str]) -> dict[str, dict[str, list[Any]]]:
    """A log as columns, ``{kind: {key: [values]}}``, with None where a line lacks a key that another one has."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for data in read_json_stats(path):
        rows.setdefault(data.pop(_TYPE), []).append(data)
    return {
        kind: {key: [row.get(key) for row in lines] for key in dict.fromkeys(key for row in lines for key in row)}
        for kind, lines in rows.items()
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item") and not isinstance(value, str | int | float):
        value = value.item()
    return float(f"{value:.6g}") if isinstance(value, float) else value


class _Terminal(logging.Handler):
    """Plain lines on standard output, above a progress bar if there is one; problems on standard error."""

    def __init__(self, rank: int) -> None:
        super().__init__(logging.INFO if rank == 0 else logging.WARNING)
        self.prefix = f"[rank {rank}] " if rank else ""

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        problem = record.levelno >= logging.WARNING
        stream = sys.stderr if problem else sys.stdout
        if text.startswith(_TAG):
            return
        line = f"{self.prefix}{record.levelname.lower()}: {text}" if problem else f"{self.prefix}{text}"
        try:
            tqdm = sys.modules.get("tqdm")  # if it is not imported, there is no bar to keep clear of
            if tqdm is not None:
                tqdm.tqdm.write(line, file=stream)
            else:
                stream.write(line + "\n")
            stream.flush()
        except (OSError, ValueError):  # the reader of a pipe has gone: no reason to end a run
            pipe.discard_unread()


class _File(logging.FileHandler):
    """Appends to the log file. If the disk is full it says so once and the run goes on: the log is not worth a run."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8")
        self.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        self.failed = False
        if _is_cut_short(path):
            with open(path, "a", encoding="utf-8") as file:
                file.write("\n")

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not self.failed:
            self.failed = True
            print(f"warning: cannot write {self.baseFilename} ({error}); the run goes on", file=sys.stderr)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


def _is_cut_short(path: Path) -> bool:
    """Whether the file ends within a line, as when its writer was killed."""
    with open(path, "rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"
