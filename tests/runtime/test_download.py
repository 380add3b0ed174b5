"""Downloads from a real server that is slow, cuts, lies and fails; real processes, and kills."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from web import Site, serve

from pycls.errors import InputError, RunError
from pycls.runtime import download as module
from pycls.runtime.cache import cache_dir, place_of
from pycls.runtime.download import WrongContent, digest_of, download, has_digest, shown

CONTENT = os.urandom(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
GOOD = has_digest("sha256", SHA256)
Start = Callable[..., "subprocess.Popen[str]"]
pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def site() -> Iterator[Site]:
    with serve() as site:
        site.files["model.pth"] = CONTENT
        yield site


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BACKOFF_S", 0.001)
    monkeypatch.setattr(module, "TIMEOUT_S", 5.0)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "model.pth"


def names(place: Path) -> list[str]:
    return sorted(path.name for path in place.parent.iterdir())


def test_a_file_arrives_once(site: Site, place: Path) -> None:
    assert download(site.url("model.pth"), place, GOOD) == place
    assert place.read_bytes() == CONTENT and names(place) == ["model.pth"]
    download(site.url("model.pth"), place, GOOD)
    assert site.requests == [("model.pth", 0)]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_cut_connection_is_taken_up(site: Site, place: Path, ranges: bool) -> None:
    site.cut, site.cuts, site.ranges = 100_000, 2, ranges
    download(site.url("model.pth"), place, GOOD)
    assert place.read_bytes() == CONTENT and names(place) == ["model.pth"]
    if ranges:
        assert [start for _, start in site.requests] == [0, 100_000, 200_000] and site.sent == len(CONTENT)
    else:
        assert len(site.requests) == 3 and site.sent == len(CONTENT) + 200_000


def test_without_a_validator_nothing_is_spliced(site: Site, place: Path) -> None:
    site.cut, site.cuts, site.validators = 100_000, 1, False
    download(site.url("model.pth"), place, GOOD)
    assert [start for _, start in site.requests] == [0, 0] and place.read_bytes() == CONTENT


def test_a_later_call_goes_on_where_an_earlier_one_gave_up(site: Site, place: Path) -> None:
    site.cut, site.cuts = 10_000, module.TRIES + 1
    words = r"cannot fetch http.*model\.pth: the connection ended after .* bytes, 4 times in a row"
    with pytest.raises(RunError, match=words) as error:
        download(site.url("model.pth"), place, GOOD)
    assert "\n" not in str(error.value) and not place.exists()
    given = [start for _, start in site.requests]
    site.cuts = 0
    download(site.url("model.pth"), place, GOOD)
    assert site.requests[-1][1] == given[-1] + 10_000 and place.read_bytes() == CONTENT


def test_the_file_changes_between_requests(site: Site, place: Path) -> None:
    site.cut, site.cuts, newer = 100_000, 1, CONTENT[::-1]

    def change() -> None:
        if len(site.requests) == 2:
            site.files["model.pth"] = newer

    site.before = change
    download(site.url("model.pth"), place, has_digest("md5", hashlib.md5(newer).hexdigest()))
    assert place.read_bytes() == newer and names(place) == ["model.pth"]


def test_a_part_of_other_bytes_is_found_and_fetched_anew(site: Site, place: Path) -> None:
    """A power cut may leave a part of the right length with zeros in it."""
    site.cut, site.cuts = 10_000, module.TRIES
    with pytest.raises(RunError):
        download(site.url("model.pth"), place, GOOD)
    part = place.with_name(".model.pth.part")
    part.write_bytes(bytes(part.stat().st_size))
    site.cuts = 0
    download(site.url("model.pth"), place, GOOD)
    assert place.read_bytes() == CONTENT and site.requests[-1] == ("model.pth", 0)


@pytest.mark.parametrize(
    "damage", [b"", b"not json", b'{"url": "other"}', json.dumps({"url": "u", "validator": "v", "size": 1}).encode()]
)
def test_a_part_of_unknown_origin_is_no_part(site: Site, place: Path, damage: bytes) -> None:
    place.parent.mkdir()
    place.with_name(".model.pth.part").write_bytes(b"x" * 1000)
    place.with_name(".model.pth.part.json").write_bytes(damage)
    download(site.url("model.pth"), place, GOOD)
    assert place.read_bytes() == CONTENT and site.requests == [("model.pth", 0)] and names(place) == ["model.pth"]


def test_a_part_that_is_longer_than_the_file(site: Site, place: Path) -> None:
    place.parent.mkdir()
    tag = f'"{hashlib.md5(CONTENT).hexdigest()}"'
    origin = {"url": site.url("model.pth"), "validator": tag, "size": None}
    place.with_name(".model.pth.part").write_bytes(CONTENT + b"more")
    place.with_name(".model.pth.part.json").write_text(json.dumps(origin))
    download(site.url("model.pth"), place, GOOD)
    assert place.read_bytes() == CONTENT


def test_wrong_bytes_are_refused_and_forgotten(site: Site, place: Path) -> None:
    site.files["model.pth"] = b"<html>please log in</html>"
    words = rf"model\.pth is not what was expected: its sha256 is \w+, and should be {SHA256}"
    with pytest.raises(WrongContent, match=words) as error:
        download(site.url("model.pth"), place, GOOD)
    assert "\n" not in str(error.value) and names(place) == [] and len(site.requests) == 1


def test_a_check_that_raises_leaves_nothing(site: Site, place: Path) -> None:
    def refuse(path: Path) -> None:
        assert path.read_bytes() == CONTENT
        raise InputError("it holds code")

    with pytest.raises(InputError, match="it holds code"):
        download(site.url("model.pth"), place, refuse)
    assert names(place) == []


def test_a_length_that_is_wrong(site: Site, place: Path) -> None:
    site.extra = 10
    with pytest.raises(RunError, match=rf"cannot fetch .*, {module.TRIES} times in a row"):
        download(site.url("model.pth"), place, GOOD)
    assert not place.exists()
    site.extra = -10
    with pytest.raises(WrongContent):
        download(site.url("model.pth"), place, GOOD)
    assert names(place) == []


def test_no_length_at_all(site: Site, place: Path) -> None:
    site.lengths, site.cut, site.cuts = False, 1000, 1
    with pytest.raises(WrongContent):
        download(site.url("model.pth"), place, GOOD)
    assert names(place) == []
    download(site.url("model.pth"), place, GOOD)
    assert place.read_bytes() == CONTENT


@pytest.mark.parametrize(("status", "words"), [(404, "404 Not Found"), (403, "403 Forbidden"), (410, "410 Gone")])
def test_no_such_file(site: Site, place: Path, status: int, words: str) -> None:
    site.statuses = [status]
    with pytest.raises(InputError, match=rf"^cannot fetch {site.address}model\.pth: the server answers {words}$"):
        download(site.url("model.pth") + "?token=secret", place, GOOD)
    assert names(place) == [] and len(site.requests) == 1


def test_a_server_in_trouble_is_asked_again(site: Site, place: Path) -> None:
    site.statuses = [500, 503, 429]
    download(site.url("model.pth"), place, GOOD)
    assert place.read_bytes() == CONTENT and len(site.requests) == 4


def test_a_server_that_only_fails(site: Site, place: Path) -> None:
    site.statuses = [500] * 100
    with pytest.raises(RunError, match=r"the server answers 500 Internal Server Error, 4 times in a row$"):
        download(site.url("model.pth"), place, GOOD)
    assert len(site.requests) == module.TRIES and names(place) == []


def test_redirections_are_followed_but_not_for_ever(site: Site, place: Path) -> None:
    site.files["elsewhere"], site.statuses = CONTENT, [302]
    download(site.url("model.pth"), place, GOOD)
    assert place.read_bytes() == CONTENT
    site.statuses = [302] * 50
    with pytest.raises(InputError, match="302") as error:
        download(site.url("model.pth"), place.with_name("other"), GOOD)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(("reason", "words"), [("Gone\x1b[31m \x07for good", "404 Gone [31m for good"), ("", "404")])
def test_what_a_server_says_is_shown_as_plain_text(site: Site, place: Path, reason: str, words: str) -> None:
    site.statuses, site.reason = [404], reason
    with pytest.raises(InputError) as error:
        download(site.url("model.pth"), place, GOOD)
    assert str(error.value) == f"cannot fetch {site.url('model.pth')}: the server answers {words}"


def test_nobody_listens(place: Path) -> None:
    with pytest.raises(RunError, match=r"cannot fetch http://127\.0\.0\.1:9/x: Connection refused, 4 times"):
        download("http://127.0.0.1:9/x", place, GOOD)
    assert names(place) == []


def test_no_such_host(place: Path) -> None:
    with pytest.raises(RunError, match=r"cannot fetch https://nonesuch\.invalid/x: ") as error:
        download("https://nonesuch.invalid/x", place, GOOD)
    assert "\n" not in str(error.value)


def test_a_silent_server(site: Site, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT_S", 0.1)
    monkeypatch.setattr(module, "TRIES", 2)
    site.pause_s = 0.5
    with pytest.raises(RunError, match="timed out"):
        download(site.url("model.pth"), place, GOOD)


@pytest.mark.parametrize("url", [
    "file:///etc/passwd", "ftp://host/x", "data://,x", "http://", "https:///x", "http://h:0/", "http://h:x/",
    "http://host/a b", "http://host/\0", "http://host/\r\nX: y", "http://host/é",
])  # fmt: skip
def test_no_url(place: Path, url: str) -> None:
    with pytest.raises(InputError, match="a URL starts with https://"):
        download(url, place, GOOD)
    assert not place.parent.exists()


def test_a_folder_that_cannot_be(tmp_path: Path, site: Site) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"cannot write .*/file/model\.pth: "):
        download(site.url("model.pth"), tmp_path / "file" / "model.pth", GOOD)


def test_a_disk_that_is_full(site: Site, place: Path, python: Start) -> None:
    """The kernel refuses to let the file grow; nothing is simulated."""
    process = python("""
        import resource, signal, sys
        from pathlib import Path
        from pycls.errors import RunError
        from pycls.runtime.download import download, has_digest
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            download(sys.argv[1], Path(sys.argv[2]), has_digest("sha256", "00000000"))
        except RunError as error:
            print(error)
    """, site.url("model.pth"), str(place))  # fmt: skip
    out, err = process.communicate()
    assert "cannot write" in out and "File too large" in out and not err and not place.exists()


FETCH = """
    import sys
    from pathlib import Path
    from pycls.runtime.download import download, has_digest
    print("ready", flush=True)
    sys.stdin.readline()
    download(sys.argv[1], Path(sys.argv[2]), has_digest("sha256", sys.argv[3]))
    print(len(Path(sys.argv[2]).read_bytes()))
"""


def test_eight_processes_at_once_fetch_once(site: Site, place: Path, env: dict[str, str]) -> None:
    site.pause_s = 0.05
    crowd = [
        subprocess.Popen([sys.executable, "-c", textwrap.dedent(FETCH), site.url("model.pth"), str(place), SHA256],
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        for _ in range(8)
    ]  # fmt: skip
    for process in crowd:
        assert process.stdout and process.stdout.readline() == "ready\n"
    for process in crowd:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.communicate()[0] for process in crowd] == ["300000\n"] * 8
    assert site.requests == [("model.pth", 0)] and names(place) == ["model.pth"]


def test_killed_in_the_middle_it_goes_on(site: Site, place: Path, python: Start) -> None:
    site.pause_s = 0.1
    process = python(FETCH.replace("sys.stdin.readline()", ""), site.url("model.pth"), str(place), SHA256)
    part = place.with_name(".model.pth.part")
    deadline = time.monotonic() + 20
    while not (part.is_file() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    arrived = part.stat().st_size
    assert 0 < arrived < len(CONTENT) and not place.exists()
    site.pause_s = 0.0
    download(site.url("model.pth"), place, GOOD)
    assert site.requests[-1] == ("model.pth", arrived) and place.read_bytes() == CONTENT
    assert names(place) == ["model.pth"], "not even the dead process's lock is left"


def test_digests(place: Path) -> None:
    place.parent.mkdir()
    place.write_bytes(CONTENT)
    assert digest_of(place) == SHA256
    has_digest("sha256", SHA256[:8].upper())(place)
    with pytest.raises(WrongContent):
        has_digest("sha256", "0" * 8)(place)


def test_secrets_of_a_url_are_not_shown() -> None:
    assert shown("https://me:pw@host:8080/a/b.pth?X-Signature=1#x") == "https://host:8080/a/b.pth"


@pytest.mark.parametrize("url", [
    "https://h/a/../../x.pth", "https://h/%2e%2e%2f%2e%2e%2fetc%2fpasswd", "https://h/..", "https://h/", "https://h",
    "https://h/a%00b.pth", "https://h/.bashrc", "https://h/a%5c..%5cb", "https://h/" + "a" * 4000 + ".pyth",
    "https://h/%ff%fe", "https://h/C:%5Cx", "https://h/-rf", "https://h/~", "https://h/%2Fetc%2Fpasswd",
])  # fmt: skip
def test_a_name_does_not_leave_the_cache(tmp_path: Path, url: str) -> None:
    place = place_of(url, tmp_path)
    assert place.parent == tmp_path and place.resolve().parent == tmp_path.resolve()
    assert not place.name.startswith(".") and len(place.name) < 200 and place.name.isascii()
    place.touch()


def test_each_url_has_a_place_of_its_own(tmp_path: Path) -> None:
    urls = [f"https://{host}/{path}.pth?v={v}" for host in "ab" for path in ("m", "n/m") for v in range(2)]
    assert len({place_of(url, tmp_path) for url in urls}) == len(urls)
    assert place_of("https://h/x/resnet50-0676ba61.pth", tmp_path).name.startswith("resnet50-0676ba61-")


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.delenv("PYCLS_CACHE", raising=False)
    assert cache_dir() == tmp_path / ".cache" / "pycls"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_dir() == Path("/xdg/pycls")
    monkeypatch.setenv("PYCLS_CACHE", "~/mine")
    assert cache_dir() == tmp_path / "mine"
