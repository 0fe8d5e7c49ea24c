"""Downloading: archives are read exactly or refused, and connections may fail in every way."""

import contextlib
import gzip
import hashlib
import http.server
import io
import os
import re
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import PARAMS, ROOT

from stages import download
from stages.datasets import cifar
from stages.datasets.cifar import Layout, Member, read_archive
from stages.shared.dataset import Split, load_split, save_split
from stages.shared.stage import StageError, outputs

CLASSES = ("cat", "dog", "frog")
COARSE = ("mammals", "amphibians")
MUCH_LATER = 20  # seconds


@dataclass
class Archive:
    """A toy archive: its layout, the bytes of its members, and what must be read from it."""

    layout: Layout
    contents: dict[str, bytes]
    train: Split
    test: Split

    def write(self, path: Path, extra: Callable[[tarfile.TarFile], None] | None = None) -> Path:
        """Writes the .tar.gz, with what `extra` adds before the members."""
        with tarfile.open(path, "w:gz") as archive:
            if extra:
                extra(archive)
            for name, data in self.contents.items():
                add(archive, name, data)
        return path


def add(archive: tarfile.TarFile, name: str, data: bytes = b"", **attributes: object) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for attribute, value in attributes.items():
        setattr(info, attribute, value)
    archive.addfile(info, io.BytesIO(data))


def toy_archive(coarse: bool) -> Archive:
    """Five and five training images in two members, four test images, of random pixels."""
    random = np.random.default_rng(0)
    labels = random.integers(0, len(CLASSES), 14).astype(np.uint8)
    coarse_labels = random.integers(0, len(COARSE), 14).astype(np.uint8)
    images = random.integers(0, 256, (14, 32, 32, 3), np.uint8)
    records = []
    for image, label, coarse_label in zip(images, labels, coarse_labels, strict=True):
        planes = b"".join(image[:, :, channel].tobytes() for channel in range(3))
        records.append((bytes([coarse_label]) if coarse else b"") + bytes([label]) + planes)
    contents = {
        "toy/one.bin": b"".join(records[:5]),
        "toy/two.bin": b"".join(records[5:10]),
        "toy/test.bin": b"".join(records[10:]),
    }
    members = [
        Member(name, hashlib.sha256(data).hexdigest(), images)
        for (name, data), images in zip(contents.items(), (5, 5, 4), strict=True)
    ]
    layout = Layout(tuple(members[:2]), tuple(members[2:]), CLASSES, COARSE if coarse else ())
    train, test = (
        Split(
            images[part],
            labels[part],
            CLASSES,
            coarse_labels[part] if coarse else None,
            COARSE if coarse else (),
        )
        for part in (slice(10), slice(10, 14))
    )
    return Archive(layout, contents, train, test)


@pytest.fixture
def toy() -> Archive:
    return toy_archive(coarse=False)


def assert_equal(split: Split, expected: Split) -> None:
    np.testing.assert_array_equal(split.images, expected.images, strict=True)
    np.testing.assert_array_equal(split.labels, expected.labels, strict=True)
    assert (split.coarse_labels is None) == (expected.coarse_labels is None)
    if split.coarse_labels is not None:
        np.testing.assert_array_equal(split.coarse_labels, expected.coarse_labels, strict=True)
    assert (split.classes, split.coarse_classes) == (expected.classes, expected.coarse_classes)


def refusal(path: Path, layout: Layout) -> str:
    """The message with which an archive is refused, when it is read as the stage reads it."""
    data = path.parent / "data"
    with (
        pytest.raises(StageError) as caught,
        outputs(data / "train", data / "test") as (train_folder, test_folder),
    ):
        train, test = read_archive(path, layout)
        save_split(train, train_folder)
        save_split(test, test_folder)
    assert list(data.iterdir()) == []
    return str(caught.value)


@pytest.mark.parametrize("coarse", [False, True])
def test_an_archive_is_read_pixel_for_pixel(tmp_path: Path, coarse: bool) -> None:
    toy = toy_archive(coarse)
    train, test = read_archive(toy.write(tmp_path / "toy.tar.gz"), toy.layout)
    assert_equal(train, toy.train)
    assert_equal(test, toy.test)


@pytest.mark.parametrize("coarse", [False, True])
def test_red_green_and_blue_planes_become_the_last_axis(tmp_path: Path, coarse: bool) -> None:
    red = bytes([10, 11]) + bytes(30) + bytes([12]) + bytes(991)  # two of row 0, one of row 1
    green = bytes([20]) + bytes(1022) + bytes([21])  # the first pixel and the last
    blue = bytes(31) + bytes([30]) + bytes(992)  # the last of row 0
    record = (b"\x01" if coarse else b"") + b"\x02" + red + green + blue
    member = Member("a.bin", hashlib.sha256(record).hexdigest(), 1)
    layout = Layout((member,), (member,), CLASSES, COARSE if coarse else ())
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        add(archive, "a.bin", record)
    split, _ = read_archive(tmp_path / "a.tar.gz", layout)
    expected = np.zeros((1, 32, 32, 3), np.uint8)
    expected[0, 0, 0] = [10, 20, 0]
    expected[0, 0, 1] = [11, 0, 0]
    expected[0, 1, 0] = [12, 0, 0]
    expected[0, 31, 31] = [0, 21, 0]
    expected[0, 0, 31] = [0, 0, 30]
    np.testing.assert_array_equal(split.images, expected)
    assert split.labels.tolist() == [2]
    assert (split.coarse_labels is None) if not coarse else (split.coarse_labels == [1]).all()


def test_the_published_layouts_hold_fifty_and_ten_thousand_images() -> None:
    for layout, classes, coarse in ((cifar.CIFAR10, 10, 0), (cifar.CIFAR100, 100, 20)):
        assert sum(member.images for member in layout.train) == 50_000
        assert sum(member.images for member in layout.test) == 10_000
        assert (len(set(layout.classes)), len(set(layout.coarse_classes))) == (classes, coarse)
        assert list(layout.classes) == sorted(layout.classes)
        assert list(layout.coarse_classes) == sorted(layout.coarse_classes)


def test_any_repackaging_of_the_same_bytes_is_accepted(tmp_path: Path, toy: Archive) -> None:
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz", compresslevel=1) as archive:
        add(archive, "toy", type=tarfile.DIRTYPE)
        add(archive, "toy/readme.html", b"hello")
        for name in reversed(toy.contents):
            add(archive, name, toy.contents[name], mode=0o600, mtime=1, uname="somebody")
        add(archive, "toy/more.bin", bytes(5000))
    train, test = read_archive(tmp_path / "a.tar.gz", toy.layout)
    assert_equal(train, toy.train)
    assert_equal(test, toy.test)


def test_a_repackaging_with_dots_before_the_names_is_accepted(tmp_path: Path, toy: Archive) -> None:
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        for name, data in toy.contents.items():
            add(archive, f"./{name}", data)
    assert_equal(read_archive(tmp_path / "a.tar.gz", toy.layout)[0], toy.train)


@pytest.mark.parametrize("part", [0, 1, 9, 10, 100, 0.1, 0.5, 0.9])
def test_a_truncated_archive_is_refused(tmp_path: Path, toy: Archive, part: float) -> None:
    path = toy.write(tmp_path / "toy.tar.gz")
    data = path.read_bytes()
    path.write_bytes(data[: part if isinstance(part, int) else int(len(data) * part)])
    message = refusal(path, toy.layout)
    assert str(path) in message
    assert "Received: " in message or "Missing: " in message


@pytest.mark.parametrize("size", [0, 100, 512, 512 + 15_365, 20_000, 40_000])
def test_a_truncated_tar_in_a_whole_gzip_stream_is_refused(
    tmp_path: Path, toy: Archive, size: int
) -> None:
    path = toy.write(tmp_path / "toy.tar.gz")
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:size], mtime=0))
    message = refusal(path, toy.layout)
    assert str(path) in message
    assert "Received: " in message or "Missing: " in message


@pytest.mark.parametrize("name", ["toy/one.bin", "toy/two.bin", "toy/test.bin"])
@pytest.mark.parametrize("position", [0, 1, 7000, -1])
def test_one_wrong_byte_is_refused(tmp_path: Path, toy: Archive, name: str, position: int) -> None:
    data = bytearray(toy.contents[name])
    data[position] ^= 1
    toy.contents[name] = bytes(data)
    message = refusal(toy.write(tmp_path / "toy.tar.gz"), toy.layout)
    assert f"{name} must have the published SHA-256" in message
    assert f"Received: {hashlib.sha256(data).hexdigest()}." in message


@pytest.mark.parametrize("name", ["toy/one.bin", "toy/two.bin", "toy/test.bin"])
def test_a_missing_member_is_refused(tmp_path: Path, toy: Archive, name: str) -> None:
    del toy.contents[name]
    message = refusal(toy.write(tmp_path / "toy.tar.gz"), toy.layout)
    assert message.endswith(f"Missing: {name}.")


@pytest.mark.parametrize("change", [-3073, -1, 1, 3073])
def test_a_member_of_another_size_is_refused(tmp_path: Path, toy: Archive, change: int) -> None:
    data = toy.contents["toy/two.bin"]
    toy.contents["toy/two.bin"] = data[:change] if change < 0 else data + bytes(change)
    message = refusal(toy.write(tmp_path / "toy.tar.gz"), toy.layout)
    assert "toy/two.bin must have 15365 bytes" in message
    assert f"Received: {15365 + change}." in message


@pytest.mark.parametrize("name", ["../x", "toy/../../x", "/etc/x", "toy/.."])
def test_a_name_that_leads_outside_is_refused(tmp_path: Path, toy: Archive, name: str) -> None:
    path = toy.write(tmp_path / "toy.tar.gz", lambda archive: add(archive, name, b"x"))
    message = refusal(path, toy.layout)
    assert "must stay inside the archive" in message
    assert f"Received: {name}." in message


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
)
@pytest.mark.parametrize("name", ["toy/one.bin", "toy/other"])
def test_what_is_not_a_file_or_folder_is_refused(
    tmp_path: Path, toy: Archive, kind: bytes, name: str
) -> None:
    path = toy.write(
        tmp_path / "toy.tar.gz",
        lambda archive: add(archive, name, type=kind, linkname="/etc/passwd"),
    )
    message = refusal(path, toy.layout)
    assert "members must be files or folders" in message
    assert f"Received: {name}" in message


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<html>Not found</html>",
        bytes(10_240),
        gzip.compress(b"", mtime=0),
        gzip.compress(b"hello" * 1000, mtime=0),
        gzip.compress(bytes(10_240), mtime=0),
        b"\x1f\x8b" + bytes(100),
        b"PK\x03\x04" + bytes(100),
    ],
)
def test_what_is_not_an_archive_is_refused(tmp_path: Path, toy: Archive, data: bytes) -> None:
    path = tmp_path / "toy.tar.gz"
    path.write_bytes(data)
    assert str(path) in refusal(path, toy.layout)


@pytest.mark.parametrize(
    ("coarse", "offset", "name"), [(False, 0, ""), (True, 0, "coarse_"), (True, 1, "")]
)
def test_a_label_out_of_range_is_refused(
    tmp_path: Path, coarse: bool, offset: int, name: str
) -> None:
    toy = toy_archive(coarse)
    data = bytearray(toy.contents["toy/test.bin"])
    data[3 * (len(data) // 4) + offset] = 3
    toy.contents["toy/test.bin"] = bytes(data)
    member = replace(toy.layout.test[0], sha256=hashlib.sha256(data).hexdigest())
    path = toy.write(tmp_path / "toy.tar.gz")
    message = refusal(path, replace(toy.layout, test=(member,)))
    count = len(COARSE) if name else len(CLASSES)
    assert f"{name}labels must be between 0 and {count - 1}. Received: 3 at index 3." in message


@dataclass
class Server:
    """What a local HTTP server holds, how it replies, and what it was asked.

    Each request takes the next of `replies`; the last one stays. A number is a status without a
    file; the others are "whole" (ranges are ignored), "range", "cut" (half of what was asked for,
    then the connection ends), "stall" (half of it, and the rest only when the test has ended, or
    much later), "chunked" (no length is given) and "encoded" (as gzip).
    """

    url: str
    content: bytes
    replies: list[int | str] = field(default_factory=lambda: ["range"])
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)


def handler(server: Server) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers["Range"]
            server.requests.append((self.path, asked))
            reply = server.replies.pop(0) if len(server.replies) > 1 else server.replies[0]
            if isinstance(reply, int):
                self.send_error(reply)
                return
            start = 0
            if asked and reply in ("range", "cut", "stall"):
                start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start and start >= len(server.content):
                self.send_error(416)
                return
            body = server.content[start:]
            self.send_response(206 if start else 200)
            if start:
                end = len(server.content)
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{end}")
            if reply == "encoded":
                self.send_header("Content-Encoding", "gzip")
            if reply != "chunked":
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            half = len(body) // 2 if reply in ("cut", "stall") else len(body)
            self.wfile.write(body[:half])
            if reply == "stall":
                server.ended.wait(MUCH_LATER)
                with contextlib.suppress(OSError):  # nobody listens any more
                    self.wfile.write(body[half:])

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """A server of two million random bytes; waiting between attempts takes no time."""
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda seconds: None)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("CIFAR_MIRROR", raising=False)
    monkeypatch.chdir(tmp_path)
    server = Server("", np.random.default_rng(0).bytes(2_000_000))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler(server)) as listener:
        server.url = f"http://127.0.0.1:{listener.server_port}/pub/file.tar.gz"
        thread = threading.Thread(target=listener.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.ended.set()
        listener.shutdown()
        thread.join()


def ranges(server: Server) -> list[str | None]:
    return [asked for _, asked in server.requests]


def test_a_file_is_downloaded_whole(server: Server) -> None:
    path = download.fetch(server.url, download.DOWNLOADS)
    assert path == Path("downloads/file.tar.gz")
    assert path.read_bytes() == server.content
    assert [each.name for each in path.parent.iterdir()] == ["file.tar.gz"]
    assert server.requests == [("/pub/file.tar.gz", None)]


def test_a_file_without_a_length_is_downloaded_whole(server: Server) -> None:
    server.replies = ["chunked"]
    assert download.fetch(server.url, download.DOWNLOADS).read_bytes() == server.content


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_a_file_that_is_not_there_is_an_error_at_once(server: Server, status: int) -> None:
    server.replies = [status]
    with pytest.raises(StageError, match=rf"{server.url} must exist\. Received: HTTP {status} "):
        download.fetch(server.url, download.DOWNLOADS)
    assert len(server.requests) == 1
    assert list(Path("downloads").iterdir()) == []


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_an_overloaded_server_is_asked_again(server: Server, status: int) -> None:
    server.replies = [status, status, "range"]
    assert download.fetch(server.url, download.DOWNLOADS).read_bytes() == server.content
    assert len(server.requests) == 3


def test_an_overloaded_server_is_not_asked_for_ever(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("tenacity.nap.time.sleep", waits.append)
    server.replies = [503]
    with pytest.raises(StageError) as caught:
        download.fetch(server.url, download.DOWNLOADS)
    assert f"could not be downloaded in {download.ATTEMPTS} attempts. Received: 503" in str(
        caught.value
    )
    assert "CIFAR_MIRROR" in str(caught.value)
    assert len(server.requests) == download.ATTEMPTS
    assert len(waits) == download.ATTEMPTS - 1
    assert [int(seconds) for seconds in waits] == [1, 2, 4, 8]  # and a part of a second more


def test_a_server_that_is_not_there_is_an_error(server: Server) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # but not listening
        url = f"http://127.0.0.1:{bound.getsockname()[1]}/file.tar.gz"
        with pytest.raises(StageError, match=f"{url} could not be .* in {download.ATTEMPTS} "):
            download.fetch(url, download.DOWNLOADS)


def test_a_cut_connection_is_resumed_where_it_broke(server: Server) -> None:
    server.replies = ["cut", "cut", "range"]
    assert download.fetch(server.url, download.DOWNLOADS).read_bytes() == server.content
    first, *later = ranges(server)
    assert first is None
    starts = [int(str(asked).removeprefix("bytes=").removesuffix("-")) for asked in later]
    assert 0 < starts[0] <= 1_000_000 < starts[1]


def test_a_connection_that_stalls_is_given_up_for_another(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "TIMEOUT_SECONDS", 0.3)
    server.replies = ["stall", "range"]
    assert download.fetch(server.url, download.DOWNLOADS).read_bytes() == server.content
    assert len(server.requests) > 1


def test_what_a_killed_run_left_is_resumed(server: Server) -> None:
    Path("downloads").mkdir()
    Path("downloads/file.tar.gz.partial").write_bytes(server.content[:1234])
    assert download.fetch(server.url, download.DOWNLOADS).read_bytes() == server.content
    assert ranges(server) == ["bytes=1234-"]


def test_a_connection_that_is_always_cut_leaves_its_part_for_the_next_run(server: Server) -> None:
    server.replies = ["cut"]
    with pytest.raises(StageError, match="Run again to resume"):
        download.fetch(server.url, download.DOWNLOADS)
    part = Path("downloads/file.tar.gz.partial").read_bytes()
    assert 1_500_000 < len(part) < 2_000_000
    server.replies = ["range"]
    assert download.fetch(server.url, download.DOWNLOADS).read_bytes() == server.content
    assert ranges(server)[-1] == f"bytes={len(part)}-"


def test_a_server_that_ignores_ranges_sends_everything_again(server: Server) -> None:
    server.replies = ["cut", "whole"]
    assert download.fetch(server.url, download.DOWNLOADS).read_bytes() == server.content
    assert ranges(server)[1] is not None


@pytest.mark.parametrize("size", [2_000_000, 2_000_001, 3_000_000])
def test_a_part_that_is_not_of_this_file_is_dropped(server: Server, size: int) -> None:
    Path("downloads").mkdir()
    Path("downloads/file.tar.gz.partial").write_bytes(bytes(size))
    assert download.fetch(server.url, download.DOWNLOADS).read_bytes() == server.content
    assert ranges(server) == [f"bytes={size}-", None]


def test_the_bytes_are_kept_as_stored_whatever_the_server_calls_them(server: Server) -> None:
    # some servers label any .gz as `Content-Encoding: gzip`; it is then unpacked, and the
    # sizes never agree
    server.content = gzip.compress(server.content, mtime=0)
    server.replies = ["encoded"]
    assert download.fetch(server.url, download.DOWNLOADS).read_bytes() == server.content


def test_a_mirror_folder_is_used_without_any_request(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (mirror / "file.tar.gz").write_bytes(b"from the mirror")
    monkeypatch.setenv("CIFAR_MIRROR", f"{mirror}/")
    assert download.fetch(server.url, download.DOWNLOADS) == mirror / "file.tar.gz"
    assert server.requests == []


def test_a_mirror_address_is_asked_first(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIFAR_MIRROR", server.url.replace("/pub/file.tar.gz", "/mirror/"))
    assert download.fetch(server.url, download.DOWNLOADS).read_bytes() == server.content
    assert server.requests == [("/mirror/file.tar.gz", None)]


@pytest.mark.parametrize("mirror", ["there/is/none", "."])
def test_a_mirror_folder_without_the_file_is_passed_over(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], mirror: str
) -> None:
    monkeypatch.setenv("CIFAR_MIRROR", mirror)
    assert download.fetch(server.url, download.DOWNLOADS).read_bytes() == server.content
    assert server.requests == [("/pub/file.tar.gz", None)]
    assert f"CIFAR_MIRROR did not help: {mirror} has no file.tar.gz." in capsys.readouterr().out


def test_a_mirror_address_without_the_file_is_passed_over(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CIFAR_MIRROR", server.url.replace("/pub/file.tar.gz", "/mirror"))
    server.replies = [404, "range"]
    assert download.fetch(server.url, download.DOWNLOADS).read_bytes() == server.content
    assert [path for path, _ in server.requests] == ["/mirror/file.tar.gz", "/pub/file.tar.gz"]
    assert "CIFAR_MIRROR did not help" in capsys.readouterr().out


def test_what_a_mirror_sent_is_not_continued_by_the_official_server(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIFAR_MIRROR", server.url.replace("/pub/file.tar.gz", "/mirror"))
    server.replies = ["cut", 404, "range"]
    download.fetch(server.url, download.DOWNLOADS)
    assert server.requests[-1] == ("/pub/file.tar.gz", None)


def test_without_a_mirror_no_file_of_the_working_folder_is_taken(server: Server) -> None:
    Path("file.tar.gz").write_bytes(b"some other file")
    assert download.fetch(server.url, download.DOWNLOADS).read_bytes() == server.content


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A folder with a params.yaml of few shapes."""
    params = yaml.safe_load(PARAMS.read_text())
    params["datasets"]["shapes"].update(train_images=30, test_images=20)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    return tmp_path


def command(folder: Path, dataset: str, first: str = "") -> "subprocess.CompletedProcess[str]":
    """Runs the stage after some lines of Python."""
    script = f"{first}\nimport runpy\nrunpy.run_module('stages.download', run_name='__main__')"
    return subprocess.run(
        [sys.executable, "-c", script, dataset, "--train", "data/train", "--test", "data/test"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1"},
        capture_output=True,
        text=True,
    )


def test_the_command_writes_both_splits(workplace: Path) -> None:
    result = command(workplace, "shapes")
    assert (result.returncode, result.stderr) == (0, "")
    said = "download shapes: 30 training and 20 test images of 10 classes, every byte checked; "
    assert re.fullmatch(rf"{said}154 kB in [0-9.]+ s\n", result.stdout)
    assert len(load_split(workplace / "data/train").images) == 30
    assert len(load_split(workplace / "data/test").images) == 20
    assert sorted(path.name for path in (workplace / "data").iterdir()) == ["test", "train"]


def test_an_unknown_dataset_is_a_clear_error(workplace: Path) -> None:
    result = command(workplace, "shape")
    assert result.returncode == 1
    assert result.stderr.startswith("error: params.yaml has no datasets.shape. Allowed: cifar10, ")
    assert "Received: 'shape'. Did you mean 'shapes'?" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (workplace / "data").exists()


@pytest.mark.parametrize("limit", [20, 500, 10_000, 80_000])
def test_a_full_disk_is_a_clear_error_and_leaves_nothing(workplace: Path, limit: int) -> None:
    result = command(
        workplace, "shapes", f"import resource as r; r.setrlimit(r.RLIMIT_FSIZE, ({limit},) * 2)"
    )
    assert result.returncode == 1
    assert result.stderr.startswith("error: No space left")
    assert "Traceback" not in result.stderr
    assert list((workplace / "data").iterdir()) == []


@pytest.fixture
def prepared(
    toy: Archive, server: Server, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> Server:
    """A server of the toy archive, in the place of CIFAR-10's."""
    server.content = toy.write(workplace / "toy.tar.gz").read_bytes()
    params = yaml.safe_load((workplace / "params.yaml").read_text())
    params["datasets"]["cifar10"]["url"] = server.url
    (workplace / "params.yaml").write_text(yaml.safe_dump(params))
    monkeypatch.setitem(cifar.LAYOUTS, 10, toy.layout)
    arguments = ["cifar10", "--train", "data/train", "--test", "data/test"]
    monkeypatch.setattr(sys, "argv", ["download", *arguments])
    return server


def test_an_archive_is_downloaded_read_and_removed(prepared: Server, toy: Archive) -> None:
    download.main()
    assert_equal(load_split(Path("data/train")), toy.train)
    assert_equal(load_split(Path("data/test")), toy.test)
    assert list(Path("downloads").iterdir()) == []


def test_a_wrong_archive_is_refused_and_fetched_anew_by_the_next_run(
    prepared: Server, toy: Archive
) -> None:
    right = prepared.content
    prepared.content = right[:-9000]
    with pytest.raises(StageError, match="must be a whole"):
        download.main()
    assert list(Path("data").iterdir()) == []
    prepared.content = right
    download.main()
    assert_equal(load_split(Path("data/train")), toy.train)


@pytest.mark.parametrize("folder", ["mirror", "downloads"])
def test_the_mirrors_own_file_is_kept(
    prepared: Server, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    Path(folder).mkdir()
    mirrored = Path(folder, "file.tar.gz")
    mirrored.write_bytes(prepared.content)
    monkeypatch.setenv("CIFAR_MIRROR", folder)
    download.main()
    assert mirrored.exists()
    assert prepared.requests == []
