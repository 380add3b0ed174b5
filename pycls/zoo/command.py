"""The command line of the Model Zoo (``tools/zoo.py``)."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields

from pycls.errors import InputError, RunError
from pycls.runtime import pipe
from pycls.runtime.cache import place_of
from pycls.runtime.log import setup_logging
from pycls.zoo.catalogue import Entry, entries, find
from pycls.zoo.store import fetch, pins, weights_dir


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done, 1 something cannot be fetched or is damaged, 2 no such thing."""
    parser = argparse.ArgumentParser(prog="zoo.py", description="Published weights: what there is, and fetching it.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("list", help="every entry: name, parameters, image size, published error")
    commands.add_parser("show", help="all that is known of an entry").add_argument("name")
    for name, text in (("download", "fetch weights into the cache"), ("verify", "check what is in the cache, or some of it")):
        commands.add_parser(name, help=text).add_argument("names", nargs="+" if name == "download" else "*", metavar="NAME")
    flags = parser.parse_args(argv)
    try:
        if flags.command == "list":
            print(table())
        elif flags.command == "show":
            print(describe(find(flags.name)))
        elif flags.command == "download":
            download([find(name) for name in flags.names])
        else:
            return verify([find(name) for name in flags.names] or list(entries().values()), bool(flags.names))
    except (InputError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130
    return 0


def console() -> None:
    """The script."""
    sys.exit(pipe.run(main))


def table() -> str:
    """One line an entry."""
    width = max(map(len, entries()))
    lines = [f"{'name':{width}}  params  image  top-1  top-5"]
    for entry in entries().values():
        millions = f"{entry.params / 1e6:.1f} M"
        lines.append(f"{entry.name:{width}} {millions:>7} {entry.crop:>6} {entry.top1_err:6.2f} {entry.top5_err:6.2f}")
    return "\n".join([*lines, "errors as published, in percent, on the validation images of ImageNet"])


def describe(entry: Entry) -> str:
    """One line a fact, and where the file is, or would be."""
    facts = {field.name: getattr(entry, field.name) for field in fields(entry)}
    facts["options"] = ", ".join(f"{key} {value:g}" for key, value in entry.options.items())
    facts["sha256"] = entry.sha256 or "not published"
    facts["pinned"] = pins().get(entry.url, "")
    place = place_of(entry.url, weights_dir())
    facts["file"] = f"{place}{'' if place.is_file() else ' (not fetched yet)'}"
    return "\n".join(f"{key:<14} {_shown(value)}" for key, value in facts.items() if value != "")


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else f"{value:,}" if isinstance(value, int) else str(value)


def download(wanted: Sequence[Entry]) -> None:
    """Fetches what is not in the cache, and prints each place."""
    setup_logging()
    for entry in wanted:
        print(fetch(entry.url, entry.sha256))


def verify(wanted: Sequence[Entry], named: bool) -> int:
    """Checks the files of these entries, and says what is missing where entries were named. 1 if something is wrong."""
    wrong = checked = 0
    for entry in wanted:
        if not place_of(entry.url, weights_dir()).is_file():
            wrong += named
            if named:
                print(f"{entry.name}: not in the cache")
            continue
        checked += 1
        try:
            fetch(entry.url, entry.sha256)
            print(f"{entry.name}: good")
        except (InputError, RunError) as error:
            wrong += 1
            print(f"{entry.name}: {error}")
    print(f"{checked} in {weights_dir()}, {wrong} wrong or missing")
    return int(wrong > 0)
