"""What reads foreign bytes accepts or refuses them: it never hangs, crashes, writes or runs them.

A case's input is a function of its number alone, and a failure names it, as in `archives, case 17`.
`Random("archives 17")` given to that target's mutating function makes the same bytes again.
"""

import base64
import copy
import gzip
import hashlib
import io
import json
import marshal
import multiprocessing
import os
import pickle
import re
import resource
import sys
import tarfile
import tempfile
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import yaml
from rerunning import project_tree

from stages import evaluate
from stages.datasets.cifar import Layout, Member, read_archive
from stages.shared import params
from stages.shared.backend import import_keras
from stages.shared.dataset import Split, load_split, save_split
from stages.shared.stage import StageError, remove

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="measures memory as Linux does")

SECONDS = 30.0  # what a case may take
START_SECONDS = 300.0  # what a child process may take to import what it needs
MEMORY_BYTES = 16 << 20  # what a case may add to the child's peak; whole inputs have kilobytes
MODEL_MEMORY_BYTES = 256 << 20  # the same where TensorFlow takes and keeps some for itself
ADDRESS_BYTES = 16 << 30  # what a child may map: the machine's protection, should a check fail
ADDRESS_BYTES += (os.cpu_count() or 1) * (256 << 20)  # each core's threads map some, and use little
BOMB_BYTES = 64 << 20
TEMPORARY = tempfile.gettempdir()
FORBIDDEN = {  # what no reader has a reason to do
    *"os.system os.exec os.fork os.forkpty os.posix_spawn os.spawn subprocess.Popen".split(),
    *"os.mkdir os.remove os.rename os.rmdir os.link os.symlink os.truncate os.chmod".split(),
    *"socket.connect socket.bind socket.getaddrinfo urllib.Request shutil.rmtree".split(),
}


# --- the child process ------------------------------------------------------------------------


class Child:
    """A process that reads one input after the other: what hangs or crashes it fails its case."""

    process: SpawnProcess | None = None

    def run(self, read: Callable[[Path], object], path: Path) -> str:
        """`accepted`, `refused`, or what went wrong."""
        seconds = SECONDS if self.process else START_SECONDS
        if self.process is None:
            self.start()
        assert self.process
        try:
            self.connection.send((read, path))
            if self.connection.poll(seconds):
                return str(self.connection.recv())
            self.process.kill()
        except (EOFError, ConnectionError):
            pass  # it crashed
        self.process.join()
        status, self.process = self.process.exitcode, None
        return f"after at most {seconds} s the process ended with status {status}"

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other,), daemon=True)
        self.process.start()
        other.close()

    def end(self) -> None:
        if self.process:
            self.process.kill()
            self.process.join()


@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    shared = Child()
    yield shared
    shared.end()


@pytest.fixture(scope="module")
def model_child() -> Iterator[Child]:
    """Another one for models, in which TensorFlow needs its own time and memory."""
    shared = Child()
    yield shared
    shared.end()


def serve(connection: Connection) -> None:
    """What the child does: it reads what it is told to, and answers with the outcome."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_BYTES, ADDRESS_BYTES))
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a GPU's driver maps more than that
    warnings.simplefilter("ignore")
    sys.dont_write_bytecode = True
    deeds: list[str] = []

    def note(event: str, args: tuple[Any, ...]) -> None:
        if is_deed(event, args):
            deeds.append(f"{event} {args}")

    sys.addaudithook(note)
    while True:
        read, path = connection.recv()
        os.chdir(path.parent)
        deeds.clear()
        before = peak_bytes()
        found = outcome(partial(read, path))
        added = peak_bytes() - before
        if added > (MODEL_MEMORY_BYTES if path.suffix == ".keras" else MEMORY_BYTES):
            found = f"{added:,} bytes of memory were taken, then: {found}"
        connection.send(f"{deeds}, then: {found}" if deeds else found)


def is_deed(event: str, args: tuple[Any, ...]) -> bool:
    """Whether an audit event changes something outside of the process."""
    if event in ("open", "os.remove") and str(args[0]).startswith(f"{TEMPORARY}/tmp"):
        return False  # a temporary file, where the file system knows no unnamed ones
    if event != "open":
        return event in FORBIDDEN
    writes = args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    return bool(writes) and args[0] != TEMPORARY  # unnamed files there are fine


def peak_bytes() -> int:
    """The most memory that this process had; `ru_maxrss` would begin with its parent's."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def outcome(read: Callable[[], object]) -> str:
    """`accepted`, `refused`, or the traceback of what went wrong."""
    try:
        read()
    except StageError:
        return "refused"
    except Exception:
        return traceback.format_exc()
    return "accepted"


def read_archive_exactly(path: Path) -> None:
    """Reads a toy archive, and checks all that was read."""
    records = [np.frombuffer(data, np.uint8) for data in toy_contents().values()]
    for split, expected in zip(
        read_archive(path, toy_layout()), (records[:2], records[2:]), strict=True
    ):
        images = [each[1:].reshape(3, 32, 32).transpose(1, 2, 0) for each in expected]
        np.testing.assert_array_equal(split.images, images)
        np.testing.assert_array_equal(split.labels, [each[0] for each in expected])
        assert (split.classes, split.coarse_labels) == (CLASSES, None)


def read_params(path: Path) -> None:
    for key, variant in params.load(path).variants.items():
        params.check_config(key, variant)


def read_dataset(path: Path) -> None:
    np.array(load_split(path).images)  # reads every pixel


# --- cases ------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file below a folder with its bytes, and every folder with None."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def fuzz(
    child: Child,
    target: str,
    cases: int,
    path: Path,
    write: Callable[[Random | None], object],
    read: Callable[[Path], object],
) -> None:
    """Fails, naming the case, unless each is accepted or refused and leaves all files as they were.

    Args:
        child: where the inputs are read.
        target: names and seeds the cases.
        cases: how many.
        path: where the inputs are, one after the other; all of its folder is watched.
        write: puts a mutated input there, or without a random generator the original.
        read: reads it.
    """
    outcomes = Counter(accepted=0, refused=0)
    for case in range(-1, cases):
        remove(path.parent)
        path.parent.mkdir(parents=True)
        write(Random(f"{target} {case}") if case >= 0 else None)
        before = contents(path.parent)
        found = child.run(read, path)
        assert found in outcomes, f"{target}, case {case}: {found}"
        assert contents(path.parent) == before, f"{target}, case {case} changed its folder"
        assert case >= 0 or found == "accepted", f"{target}: the original is {found}"
        outcomes[found] += case >= 0
    print(f"{target}: {outcomes['accepted']} accepted, {outcomes['refused']} refused")
    assert all(outcomes.values()), f"{target}: the mutations are too weak or too strong"


def cases(few: int, many: int) -> pytest.MarkDecorator:
    """Runs a test with few cases, and with many where the slow tests run."""
    return pytest.mark.parametrize("cases", [few, pytest.param(many, marks=pytest.mark.slow)])


# --- bytes ------------------------------------------------------------------------------------


def flipped(random: Random, data: bytes, start: int = 0, stop: int | None = None) -> bytes:
    """The data with one to eight bytes of a range changed."""
    changed = bytearray(data)
    positions = range(start, min(len(data), stop or len(data)))
    for _ in range(random.randint(1, 8)):
        if positions:
            changed[random.choice(positions)] ^= random.choice(
                [1, 2, 128, 255, random.randint(1, 255)]
            )
    return bytes(changed)


def cut(random: Random, data: bytes) -> bytes:
    return data[: random.randrange(len(data) + 1)]


def lengthened(random: Random, data: bytes) -> bytes:
    position = random.choice([len(data), random.randrange(len(data) + 1)])
    return data[:position] + random_bytes(random) + data[position:]


def random_bytes(random: Random) -> bytes:
    size = random.choice([0, 1, 20, 512, 5000])
    return random.choice([random.randbytes(size), bytes(size), b"\xff" * size, b"[" * size])


def shortened(random: Random, data: bytes) -> bytes:
    """The data without a piece from within."""
    start = random.randrange(len(data) + 1)
    return data[:start] + data[start + random.choice([1, 2, 100, 512, 1024]) :]


def repeated(random: Random, data: bytes) -> bytes:
    return data + cut(random, data)


def damaged(random: Random, data: bytes) -> bytes:
    """The data with some change that heeds no structure."""
    change = random.choice(
        [
            flipped,
            flipped,
            flipped,
            cut,
            lengthened,
            shortened,
            repeated,
            lambda r, _: random_bytes(r),
        ]
    )
    return change(random, data)


def choices(text: str) -> list[str]:
    """The pieces of a text that two or more spaces separate."""
    return re.split(r"\s{2,}", text.strip())


# --- archives ---------------------------------------------------------------------------------

RECORD_BYTES = 3073
CLASSES = ("cat", "dog")
NAMES = ("toy/one.bin", "toy/two.bin", "toy/test.bin")
OTHER_NAMES = ("toy/readme.txt", "../up", "/etc/passwd", "toy/", "", "a/../../b", "ü", "\udcff")
FIELDS = {  # of a tar header: where each begins, and its length
    "name": (0, 100),
    "mode": (100, 8),
    "uid": (108, 8),
    "gid": (116, 8),
    "size": (124, 12),
    "mtime": (136, 12),
    "checksum": (148, 8),
    "type": (156, 1),
    "link": (157, 100),
    "magic": (257, 8),
    "user": (265, 32),
    "device": (329, 8),
    "prefix": (345, 155),
    "sparse": (386, 96),
    "extended": (482, 1),
    "real size": (483, 12),
}
TYPES = [bytes([each]) for each in b"0123456701234567LKSxgDNVMX\0\xff"]


@dataclass
class Piece:
    """A header of a tar file and the data after it."""

    header: bytes
    data: bytes

    def tobytes(self) -> bytes:
        return self.header + self.data + bytes(-len(self.data) % 512)


@cache
def toy_contents() -> dict[str, bytes]:
    random = Random(0)
    return {name: b"\1" + random.randbytes(RECORD_BYTES - 1) for name in NAMES}


@cache
def toy_layout() -> Layout:
    one, two, test = (
        Member(name, hashlib.sha256(data).hexdigest(), 1) for name, data in toy_contents().items()
    )
    return Layout((one, two), (test,), CLASSES)


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo("name")
    info.size, info.type = size, kind
    return changed_field(
        info.tobuf(tarfile.GNU_FORMAT), "name", name.encode(errors="surrogateescape")
    )


def changed_field(old: bytes, field: str, value: bytes) -> bytes:
    """A header with another value in a field, and its checksum made to fit."""
    start, size = FIELDS[field]
    new = old[:start] + value[:size].ljust(size, b"\0") + old[start + size :]
    return new if field == "checksum" else sealed(new)


def sealed(old: bytes) -> bytes:
    checksum = tarfile.calc_chksums(old)[0]
    return old[:148] + b"%06o\0 " % checksum + old[156:]


def tar_number(random: Random, size: int) -> bytes:
    """A number field as a writer of archives would write it, or not."""
    value = random.choice([0, 1, 511, 512, 513, RECORD_BYTES, 2**20, 2**31, 2**40, 2**62])
    value *= random.choice([1, 1, -1])
    binary = (value % 256 ** (size - 1)).to_bytes(size - 1, "big")
    return random.choice(
        [
            b"%0*o" % (size - 1, abs(value)),
            (b"\xff" if value < 0 else b"\x80") + binary,
            random.randbytes(size),
            random.choice([b"", b" " * size, b"-1", b"9" * size, b"7" * size, b"0x1f", b"1_0"]),
        ]
    )


def field_value(random: Random, field: str) -> bytes:
    size = FIELDS[field][1]
    if field == "type":
        return random.choice(TYPES)
    if field in ("name", "link", "prefix", "user"):
        name = random.choice(NAMES + OTHER_NAMES).encode(errors="surrogateescape")
        return random.choice([name, name, random.randbytes(size), b"a" * size, b"\xff" * size])
    if field == "magic":
        return random.choice([b"ustar\00000", b"ustar  \0", bytes(8), random.randbytes(8)])
    if field == "extended":
        return random.choice([b"\1", b"\0", b"\xff"])
    if field == "sparse":
        return b"".join(tar_number(random, 12).ljust(12, b"\0")[:12] for _ in range(8))
    return tar_number(random, size)


def change_header(random: Random, pieces: list[Piece]) -> None:
    piece = random.choice(pieces)
    for _ in range(random.choice([1, 1, 1, 2, 3])):
        field = random.choice([*FIELDS, "name", "size", "size", "type", "type"])
        piece.header = changed_field(piece.header, field, field_value(random, field))


def damage_header(random: Random, pieces: list[Piece]) -> None:
    piece = random.choice(pieces)
    piece.header = flipped(random, piece.header)
    if random.random() < 0.8:
        piece.header = sealed(piece.header)


def damage_data(random: Random, pieces: list[Piece]) -> None:
    piece = random.choice(pieces)
    piece.data = damaged(random, piece.data)
    if random.random() < 0.5:
        size = b"%011o" % len(piece.data)
        piece.header = changed_field(piece.header, "size", size)


def drop(random: Random, pieces: list[Piece]) -> None:
    del pieces[random.randrange(len(pieces))]


def duplicate(random: Random, pieces: list[Piece]) -> None:
    pieces.insert(random.randrange(len(pieces) + 1), copy.copy(random.choice(pieces)))


def shuffle(random: Random, pieces: list[Piece]) -> None:
    random.shuffle(pieces)


def insert(random: Random, pieces: list[Piece]) -> None:
    """Adds a member, or headers that say something about the next one."""
    made = [other_member, other_member, pax, pax, long_name, long_names, blocks]
    make = random.choice(made) if random.random() < 0.99 else bomb  # which takes long to compress
    position = random.randrange(len(pieces) + 1)
    pieces[position:position] = make(random)


def other_member(random: Random) -> list[Piece]:
    """A file, folder, link or device, in the place of one that is looked for or beside it."""
    size = random.choice([0, 0, 1, 512, RECORD_BYTES])
    name, kind = random.choice(NAMES + OTHER_NAMES), random.choice(TYPES)
    data = random.randbytes(random.choice([size, size, size, 0]))
    piece = Piece(header(name, size, kind), data)
    if random.random() < 0.3:
        change_header(random, [piece])
    return [piece]


def pax(random: Random) -> list[Piece]:
    """An extended header with values that name, size or map the next member."""
    keys = """
        path linkpath size mtime uid hdrcharset charset comment GNU.sparse.major GNU.sparse.minor
        GNU.sparse.name GNU.sparse.realsize GNU.sparse.size GNU.sparse.map GNU.sparse.offset
        GNU.sparse.numbytes GNU.sparse.numblocks SCHILY.realsize
    """.split()
    values = [
        *(name.encode(errors="surrogateescape") for name in NAMES + OTHER_NAMES),
        *(b"0", b"1", b"-1", b"3073", b"1" * 30, b"9" * 5000, b"nan", b"inf", b"1e999", b"", b"\0"),
        *(b"BINARY", b"0,1", b"0,3073", b"0,-5,7", b"a,b", b"1," * 1000, b"\xff\xfe", b"\n\n"),
    ]
    records = b""
    for _ in range(random.randint(1, 4)):
        entry = b" %s=%s\n" % (random.choice(keys).encode(), random.choice(values))
        size = len(entry) + len(str(len(entry) + 2))
        right = str(size).encode()
        records += random.choice([right, right, right, b"0", b"-9", b"9" * 20, b"x", b""]) + entry
    size = random.choice([len(records), len(records), len(records), 0, 10**6])
    kind = random.choice([tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE])
    sparse = Piece(header(random.choice(NAMES), 1536), random.choice([b"1\n0\n1\n", b"9" * 600]))
    return [Piece(header("pax", size, kind), records), *random.choice([[], [], [sparse]])]


def long_name(random: Random) -> list[Piece]:
    """A GNU header with the next member's name, or the target of its link."""
    name = random.choice([*NAMES, *OTHER_NAMES, "x" * 5000]).encode(errors="surrogateescape")
    size = random.choice([len(name) + 1, len(name) + 1, 0, 10**6, 2**33 - 1])
    kind = random.choice([tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
    return [Piece(header("././@LongLink", size, kind), name + b"\0")]


def long_names(random: Random) -> list[Piece]:
    """So many of them that a reader which calls itself for each runs out of stack."""
    return long_name(random) * random.choice([2, 100, 1000])


def blocks(random: Random) -> list[Piece]:
    """Blocks that are no header; two empty ones end an archive."""
    block = random.choice([bytes(512), bytes(512), random.randbytes(512), b"\xff" * 512])
    return [Piece(block, b"")] * random.choice([1, 2, 3])


def bomb(_: Random | None = None) -> list[Piece]:
    """A name that takes a few kilobytes in the archive, and far more in memory."""
    return [Piece(header("name", BOMB_BYTES, tarfile.GNUTYPE_LONGNAME), bytes(BOMB_BYTES))]


def mutated_tar(random: Random) -> bytes:
    """The toy archive before compression, with up to three changes."""
    pieces = [Piece(header(name, len(data)), data) for name, data in toy_contents().items()]
    for _ in range(random.choice([0, 1, 1, 1, 2, 3])):
        if pieces:
            change = random.choice(
                [change_header] * 4
                + [insert] * 4
                + [damage_header] * 2
                + [damage_data, drop, duplicate, shuffle]
            )
            change(random, pieces)
    tar = b"".join(piece.tobytes() for piece in pieces)
    tar += bytes(random.choice([1024, 1024, 1024, 512, 0, 8192]))
    return damaged(random, tar) if random.random() < 0.1 else tar


def mutated_archive(random: Random) -> bytes:
    """The toy archive with changes before or after compression, or both."""
    archive = gzip.compress(mutated_tar(random), compresslevel=1, mtime=0)
    if random.random() < 0.7:
        return archive
    changes: list[Callable[[Random, bytes], bytes]] = [
        damaged,
        lambda random, data: flipped(random, data, stop=12),  # the header
        lambda random, data: flipped(random, data, start=len(data) - 8),  # checksum and size
        lambda random, data: data[: random.randrange(20)],
        lambda random, data: data[:3] + bytes([random.randrange(256)]) + data[4:],  # the flags
        lambda random, data: data + gzip.compress(random.randbytes(50), mtime=0),
        lambda random, data: data + data,
        lambda random, data: gzip.compress(b"", mtime=0) + data,
        lambda random, data: gzip.compress(data, mtime=0),
    ]
    return random.choice(changes)(random, archive)


def original_archive() -> bytes:
    pieces = [Piece(header(name, len(data)), data) for name, data in toy_contents().items()]
    return gzip.compress(b"".join(piece.tobytes() for piece in pieces), mtime=0)


@cases(few=300, many=10_000)
def test_a_mutated_archive_is_read_exactly_or_refused(
    child: Child, tmp_path: Path, cases: int
) -> None:
    path = tmp_path / "in" / "toy.tar.gz"
    fuzz(
        child,
        "archives",
        cases,
        path,
        lambda random: path.write_bytes(mutated_archive(random) if random else original_archive()),
        read_archive_exactly,
    )


def test_the_size_that_a_header_claims_is_not_believed(child: Child, tmp_path: Path) -> None:
    path = tmp_path / "toy.tar.gz"
    path.write_bytes(original_archive())
    assert child.run(read_archive_exactly, path) == "accepted"
    for kind in (b"0", b"3", b"5", b"L", b"K", b"S", b"x", b"g", b"?"):
        for size in (2**31, 2**40, 2**62, 2**88 - 1, -1, -512, -(2**62)):
            claim = (b"\xff" if size < 0 else b"\x80") + (size % 256**11).to_bytes(11, "big")
            liar = changed_field(header("toy/readme.txt", 0, kind), "size", claim)
            path.write_bytes(gzip.compress(liar + bytes(5000), mtime=0))
            found = child.run(read_archive_exactly, path)
            assert found == "refused", f"type {kind!r}, size {size}: {found}"


def test_a_long_name_is_not_unpacked_into_memory(child: Child, tmp_path: Path) -> None:
    path = tmp_path / "toy.tar.gz"
    path.write_bytes(original_archive())
    assert child.run(read_archive_exactly, path) == "accepted"
    path.write_bytes(gzip.compress(b"".join(piece.tobytes() for piece in bomb()), mtime=0))
    assert child.run(read_archive_exactly, path) == "refused"


# --- params.yaml ------------------------------------------------------------------------------

VARIANTS = ("cifar10-deep-bn", "shapes-lenet")
SCALARS = """
    nan  .nan  .inf  -.inf  1e999  -1e999  1e-999  -1  0  1  0.5  1.5  true  null  ~  ''  ""  []  {}
    [[]]  {a: 1}  [1, 2]  shapes  lenet  demo  sgd  2026-01-01  9999-99-99  2026-01-01T25:61:61Z
    1:30  190:20:30.15  0x1F  0o17  017  0b1  1_000  +1  .5  5.  1.  _  -  ?  :  ,  &  *  !  |  >
    %  @  `  #  '  "  "\\0"  "\\ud800"  "\\U0001F600"  "\\UFFFFFFFF"  "\\x"  &a  *a  &a [*a]  =
    {<<: []}  {<<: {a: 1}}  <<: {}  !!str  !!int  !!int []  !!int ''  !!int "x"  !!float  !!float ''
    !!bool  !!bool "x"  !!null  !!timestamp "x"  !!binary "x"  !!binary "ÿ"  !!set {a}  !!pairs [a]
    !!omap [a: 1]  !!python/object:os.system  !!python/object/apply:os.system [touch marker]
    !!python/name:os.system  !!python/tuple [1]  !x  !!x  !<x>  !!map []  !!map x  !!seq {}  {[]: 1}
    {{}: 1}  {? [a] : 1}  {1: 2}  {null: 1}  {true: 1}  {1.5: 1}  ./../train  é  \u0007  \ufeff  a.b
"""


@cache
def toy_params() -> dict[str, Any]:
    return project_tree(*VARIANTS)


def original_params() -> bytes:
    return dumped(toy_params()).encode()


def dumped(tree: Any) -> str:
    return yaml.safe_dump(tree, sort_keys=False, default_flow_style=None, width=1000)


def scalar(random: Random) -> str:
    """A YAML value, most of which are not what is meant anywhere."""
    digits = random.choice([5, 20, 400, 4000, 5000])
    return random.choice(
        [
            *choices(SCALARS),
            str(random.randrange(-10, 1000)),
            "9" * digits,
            "0x" + "f" * digits,
            "1" + ":1" * digits,
            "1e" + "9" * digits,
            "x" * digits,
            nested(random),
            random.choice(["\u2028", "\x85", "\xa0", "\t", "\r"]),
        ]
    )


def nested(random: Random) -> str:
    depth = random.choice([3, 30, 90, 300, 3000])
    opening, closing = random.choice(
        ["[]", "{}", ("{a: ", "}"), ("[a, ", "]"), ("- ", ""), ("? ", "")]
    )
    return opening * depth + closing * random.choice([depth, depth, 0])


def change_line(random: Random, lines: list[str]) -> None:
    """Deletes, repeats, moves, indents or replaces a line, or something in it."""
    here, there = random.randrange(len(lines)), random.randrange(len(lines))
    line = lines[here]
    key, colon, _ = line.partition(": ")
    change = random.randrange(12)
    if change == 0:
        del lines[here]
    elif change == 1:
        lines.insert(there, line)
    elif change == 2:
        lines[here], lines[there] = lines[there], line
    elif change == 3:
        lines[here] = random.choice([" ", "  ", "    ", "\t", "- ", "? ", "\u00a0"]) + line
    elif change == 4:
        lines[here] = line[random.choice([1, 2, 4]) :]
    elif change == 5:
        lines[here] = scalar(random)
    elif change == 6:
        position = random.randrange(len(line) + 1)
        lines[here] = line[:position] + scalar(random) + line[position:]
    elif change == 7:
        position = random.randrange(len(line) + 1)
        lines[here] = line[:position] + line[position + 1 :]
    elif change == 8:
        lines[here] = random.choice(["---", "...", "%YAML 9.9", "%TAG ! x", "# " + line, ""])
    else:
        lines[here] = key + (colon or ": ") + scalar(random)


def mutated_text(random: Random) -> str:
    """The toy file with a few of its lines changed."""
    lines = original_params().decode().splitlines()
    for _ in range(random.choice([0, 1, 1, 1, 2, 5])):
        if lines:
            change_line(random, lines)
    text = "\n".join(lines) + "\n"
    return text[: random.randrange(len(text))] if random.random() < 0.05 else text


def nodes(tree: Any) -> list[tuple[Any, Any]]:
    """Every place of a tree: the dictionary or list, and the key or index in it."""
    found: list[tuple[Any, Any]] = []
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        found += [(node, key) for key in keys]
        waiting += [node[key] for key in keys if isinstance(node[key], (dict, list))]
    return found


def change_node(random: Random, tree: Any, values: list[Any]) -> None:
    """Removes, renames, replaces, copies or wraps a node of a tree."""
    places = nodes(tree)
    if not places:
        return
    (node, key), (other, other_key) = random.choice(places), random.choice(places)
    value = copy.deepcopy(node[key])
    change = random.randrange(8)
    if change == 0:
        del node[key]
    elif change == 1 and isinstance(node, dict):
        renamed = random.choice(
            [f"{key}s", str(key)[:-1], "", "a.b", "é", "x" * 999, "\ud800", other_key]
        )
        node[renamed] = node.pop(key)
    elif change == 2:
        other[other_key] = value
    elif change == 3:
        node[key] = random.choice([[value], [value, value], {"a": value}, {key: value}, str(value)])
    elif change == 4 and isinstance(node, dict):
        node["added"] = value
    else:
        node[key] = copy.deepcopy(random.choice(values))


def tree_values(random: Random) -> list[Any]:
    """What may come out of a YAML or a JSON file in the place of something else."""
    names: list[Any] = ["", "x", "\ud800", "\0", "é" * 100, "sgd", "adamw", "cosine", "all", "best"]
    numbers: list[Any] = [0, -1, 1, 2, 2**32, 10**20, 10**400, 0.5, 1e300, 1e-300]
    special: list[Any] = [float("nan"), float("inf"), -float("inf"), None, True, False]
    return [*names, *numbers, *special, [], {}, [[]], [1, 2], {"a": 1}, random.randint(-5, 500)]


def mutated_tree(random: Random) -> str:
    """The toy file with a few of its nodes changed."""
    tree = copy.deepcopy(toy_params())
    for _ in range(random.choice([0, 1, 1, 1, 2, 4])):
        values = [*tree_values(random), b"bytes", {1, 2}, {None: 1}, {(1, 2): 3}, {True: 1}]
        change_node(random, tree, values)
    return dumped(tree)


def mutated_params(random: Random) -> bytes:
    text = (mutated_text if random.random() < 0.6 else mutated_tree)(random)
    codec = random.choice(["utf-8"] * 30 + ["utf-16", "utf-32", "utf-8-sig"])
    data = text.encode(codec, errors="replace")
    return damaged(random, data) if random.random() < 0.1 else data


@cases(few=300, many=10_000)
def test_mutated_params_are_accepted_or_refused(child: Child, tmp_path: Path, cases: int) -> None:
    path = tmp_path / "in" / "params.yaml"
    fuzz(
        child,
        "params",
        cases,
        path,
        lambda random: path.write_bytes(mutated_params(random) if random else original_params()),
        read_params,
    )


# --- datasets ---------------------------------------------------------------------------------

DTYPES = """
    '|u1'  '<u1'  '|i1'  '<u2'  '>u8'  '<f4'  '<f8'  '<c16'  '|b1'  '|O'  'O8'  '|S1'  '|S0'  '<U1'
    '|V1'  '|V0'  '<M8[s]'  '<M8[77777777777777777777s]'  '<M8[x]'  'u1,u1'  'u1,,'  '(2,3)u1'  'x'
    '(99999999999,)u1'  '|u99999999999999999999'  '|S2147483648'  'uint8'  ''  '\\0'  []  [(1, 2)]
    [('a', '|u1')]  [('a', '|u1'), ('a', '|u1')]  [('', '|O')]  [('a', '|u1', (1000000000,))]  None
    {'names': ['a'], 'formats': ['|u1'], 'offsets': [9999999999]}  ('|u1', (32,))  1  1.5  True  ()
    {'names': ['a'], 'formats': ['|u1'], 'itemsize': 0}  {'a': ('|u1', -5)}  ('|u1', {'x': 'y'})
"""
SHAPES = """
    (3, 32, 32, 3)  (3,)  ()  (0,)  (0, 32, 32, 3)  (-1, 32, 32, 3)  (2, 32, 32, 3)  (3, 3, 32, 32)
    (1000000000, 32, 32, 3)  (9223372036854775807,)  (99999999999999999999,)
    (4294967296, 4294967296)
    (3.0,)  (True,)  (None,)  ('3',)  [3]  3  (3, 32, 32, 3, 1, 1)  (3L, 32L, 32L, 3L)  (-3,)
    (1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1)
    ((3,),)  (3 ** 9 ** 9,)  (1 + 2j,)  __import__('os').system('touch marker')  (3  ...  {}  ((3))
"""


def npy_header(random: Random) -> bytes:
    """What says in a .npy file which array follows, with some of it changed."""
    dtype, order, shape = "'|u1'", "False", random.choice(["(3, 32, 32, 3)", "(3,)"])
    change = random.randrange(8)
    if change in (0, 1, 2):
        dtype = random.choice(choices(DTYPES))
    if change in (2, 3, 4):
        shape = random.choice(choices(SHAPES))
    if change == 5:
        order = random.choice(["True", "None", "1", "'C'", ""])
    text = f"{{'descr': {dtype}, 'fortran_order': {order}, 'shape': {shape}, }}"
    if change == 6:
        text = random.choice([text[:-3], text[1:], nested(random), "(" * 9000, f"{{**{text}}}", ""])
    if change == 7:
        text = text.replace("descr", random.choice(["Descr", "descr': 1, 'x", "shape"]))
    version = random.choice([1, 1, 1, 1, 2, 3, random.randrange(256)])
    data = text.encode("latin1", errors="replace").ljust(random.choice([117, 117, 0])) + b"\n"
    width = 2 if version == 1 else 4
    claim = random.choice([len(data)] * 6 + [0, 60000, len(data) - 1]) % 256**width
    return b"\x93NUMPY" + bytes([version, 0]) + claim.to_bytes(width, "little") + data


def mutated_npy(random: Random, data: bytes) -> bytes:
    """An array file with changes before or in its values, or another kind of file."""
    change = random.randrange(10)
    if change < 5:
        return npy_header(random) + random.choice([data[128:], data[128:], b"", bytes(1 << 16)])
    if change == 5:
        return flipped(random, data, stop=128)
    if change == 6:
        return data[:128] + bytes(len(data) - 128)
    if change == 7:
        packed = io.BytesIO()
        np.savez(packed, images=np.zeros(3, np.uint8))
        return damaged(random, packed.getvalue()) if random.random() < 0.8 else packed.getvalue()
    if change == 8:
        return pickle.dumps(Path("x")) + data
    return damaged(random, data)


def mutated_names(random: Random, data: bytes) -> bytes:
    """The class names with changes to the text or to the lists."""
    change = random.randrange(4)
    if change == 0:
        return damaged(random, data)
    if change == 1:
        position = random.randrange(len(data))
        return data[:position] + scalar(random).encode(errors="replace") + data[position:]
    tree = json.loads(data)
    for _ in range(random.choice([1, 1, 2])):
        change_node(random, tree, [*tree_values(random), ["x"] * 300])
    return json.dumps(tree).encode(random.choice(["utf-8", "utf-8", "utf-16", "utf-32"]))


def toy_split(coarse: bool) -> Split:
    return Split(
        images=np.arange(3 * 32 * 32 * 3, dtype=np.uint8).reshape(3, 32, 32, 3),
        labels=np.array([0, 1, 0], np.uint8),
        classes=CLASSES,
        coarse_labels=np.array([0, 0, 0], np.uint8) if coarse else None,
        coarse_classes=("animal",) if coarse else (),
    )


def write_split(random: Random | None, folder: Path) -> None:
    """Saves a split, mutated if there is a random generator."""
    save_split(toy_split(coarse=random is None or random.random() < 0.5), folder)
    if random:
        change_files(random, folder)


def change_files(random: Random, folder: Path) -> None:
    """Changes, removes or replaces up to two of a folder's files."""
    files = {path: path.read_bytes() for path in sorted(folder.iterdir())}
    for path in random.sample(list(files), random.choice([0, 1, 1, 1, 2])):
        change = random.randrange(12)
        if change == 0:
            path.unlink()
        elif change == 1:
            path.unlink()
            path.mkdir()
        elif change == 2:
            path.unlink()
            path.symlink_to(random.choice(["nowhere", path.name, "."]))
        elif change == 3:
            path.write_bytes(random.choice(list(files.values())))
        elif path.suffix == ".npy":
            path.write_bytes(mutated_npy(random, files[path]))
        else:
            path.write_bytes(mutated_names(random, files[path]))


@cases(few=300, many=1_000)
def test_a_mutated_dataset_is_loaded_or_refused(child: Child, tmp_path: Path, cases: int) -> None:
    path = tmp_path / "in" / "train"
    fuzz(child, "datasets", cases, path, lambda random: write_split(random, path), read_dataset)


def test_items_of_no_size_are_not_copied_one_by_one(child: Child, tmp_path: Path) -> None:
    save_split(toy_split(coarse=False), tmp_path / "train")
    assert child.run(read_dataset, tmp_path / "train") == "accepted"
    text = "{'descr': '|V0', 'fortran_order': False, 'shape': (1000000000, 1000)}".ljust(118)
    labels = b"\x93NUMPY\1\0\x76\0" + text.encode() + bytes(3)
    (tmp_path / "train" / "labels.npy").write_bytes(labels)
    assert child.run(read_dataset, tmp_path / "train") == "refused"


# --- models -----------------------------------------------------------------------------------

SIZES = [0, -1, 1, 2, 3, 33, 5000, 10**5, 3 * 10**7, 10**9, 10**12, 2**31, 2**63, 10**30]


def save_toy_model(path: Path) -> None:
    """Saves a network of a few hundred weights as the train stage saves its own."""
    import_keras()
    import keras
    from keras import layers

    from stages.training.fitting import save_model

    keras.utils.set_random_seed(0)
    core = keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            layers.Conv2D(2, 5, strides=4, activation="relu"),
            layers.BatchNormalization(),
            layers.MaxPooling2D(2),
            layers.Dropout(0.1),
            layers.Flatten(),
            layers.Dense(3, kernel_regularizer=keras.regularizers.L2(0.001)),
        ],
        name="toy",
    )
    pixels = keras.Input((32, 32, 3), dtype="uint8", name="pixels")
    logits = core(layers.Rescaling([0.1, 0.2, 0.3], name="normalisation")(pixels))
    probabilities = layers.Activation("softmax", name="probabilities")(logits)
    save_model(keras.Model(pixels, probabilities, name="toy"), path)


def read_model(path: Path) -> None:
    """Loads a model as the evaluate stage does, and asks for what it compares with the data."""
    model = evaluate.load_model(path)
    assert isinstance(model, import_keras().Model)
    assert model.input_shape and model.output_shape and model.get_weights()


def code_nodes() -> list[Any]:
    """Parts of a config.json that name something to run, load or fetch."""
    code = marshal.dumps(compile("open('marker', 'w').close()", "marker", "exec"))
    dumped = [base64.b64encode(code).decode(), None, None]
    function = {"class_name": "__lambda__", "config": {"value": dumped}}
    names = """
        os.system  subprocess.run  subprocess.Popen  builtins.exec  builtins.eval  builtins.open
        pathlib.Path  shutil.rmtree  pickle.loads  tensorflow.io.write_file  keras.utils.get_file
        keras.models.load_model  keras.saving.load_model  keras.config.enable_unsafe_deserialization
        keras.src.utils.python_utils.func_load  keras.src.saving.saving_lib.os.system
        stages.train.main
    """
    nodes: list[Any] = [function]
    for name in choices(names):
        module, _, last = name.rpartition(".")
        place = {"module": module, "registered_name": last}
        nodes.append({**place, "class_name": "function", "config": last})
        nodes.append({**place, "class_name": last, "config": {"args": ["touch", "marker"]}})
        nodes.append({**place, "class_name": last, "config": "touch marker"})
    for name, config in (
        ("Lambda", {"function": function}),
        ("Lambda", {"function": "os.system", "function_type": "function", "module": "os"}),
        ("TFSMLayer", {"filepath": "marker", "call_endpoint": "serve"}),
        ("TorchModuleWrapper", {"module": "gASVHgAAAAAAAACMBXBvc2l4lIwGc3lzdGVtlJOULg=="}),
        ("StringLookup", {"vocabulary": "/etc/passwd", "name": "x"}),
        ("TextVectorization", {"vocabulary": "/etc/passwd", "name": "x"}),
    ):
        nodes.append({"module": "keras.layers", "class_name": name, "config": config})
    return nodes


def unpacked(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = compression
            archive.writestr(info, data)
    return file.getvalue()


def change_zip(random: Random, data: bytes) -> bytes:
    """Changes that leave the members alone: in the headers, the directory or the whole."""
    directory = data.index(b"PK\1\2")
    return random.choice(
        [
            damaged,
            lambda random, data: flipped(random, data, start=directory),
            lambda random, data: flipped(random, data, start=directory),
            lambda random, data: flipped(random, data, stop=60),
            lambda random, data: data[:directory] + damaged(random, data[directory:]),
            lambda random, data: packed(unpacked(data), zipfile.ZIP_DEFLATED),
        ]
    )(random, data)


def change_members(random: Random, members: dict[str, bytes]) -> None:
    """Drops, renames, adds or swaps whole members."""
    one, other = random.choice(list(members)), random.choice(list(members))
    change = random.randrange(5)
    if change == 0:
        del members[one]
    elif change == 1:
        new = ["model.weights.npz", "../" + one, "/tmp/x", "assets/x", one + "/", "", one.upper()]
        members[random.choice(new)] = members.pop(one)
    elif change == 2:
        name = random.choice(["assets/marker", "../marker", "/tmp/marker", "marker", "\udcff"])
        members[name.encode(errors="replace").decode()] = b"x"
    elif change == 3:
        members[one], members[other] = members[other], members[one]
    else:
        members[one] = random.choice([b"", bytes(5000), b"{}", b"null", b"[]"])


def change_config(random: Random, members: dict[str, bytes]) -> None:
    """Changes the text or the tree of the network's description, mostly so that it still parses."""
    name = random.choice(["config.json"] * 9 + ["metadata.json"])
    if random.random() < 0.1:
        members[name] = damaged(random, members[name])
        return
    tree = json.loads(members[name])
    for _ in range(random.choice([1, 1, 1, 2])):
        sizes = [
            (node, key) for node, key in nodes(tree) if type(node[key]) is int or key == "name"
        ]
        change = random.randrange(4)
        if change == 0 and sizes:
            node, key = random.choice(sizes)
            node[key] = random.choice(SIZES)
        elif change == 1:
            change_node(random, tree, code_nodes())
        elif change == 2:
            change_class(random, tree)
        else:
            change_node(random, tree, tree_values(random))
    members[name] = json.dumps(tree).encode()


def change_class(random: Random, tree: Any) -> None:
    """Makes one of the objects another one, or takes it from another module."""
    described = [node[key] for node, key in nodes(tree) if isinstance(node[key], dict)]
    described = [each for each in described if "class_name" in each]
    if not described:
        return
    each = random.choice(described)
    each[random.choice(["class_name", "class_name", "module", "registered_name"])] = random.choice(
        """
        Lambda Functional Sequential Model Layer InputLayer Dense Conv2D Conv1D DepthwiseConv2D LSTM
        RNN Bidirectional TimeDistributed Embedding Reshape Permute RepeatVector Add Concatenate
        UpSampling2D ZeroPadding2D Resizing RandomRotation Normalization Hashing StringLookup
        MultiHeadAttention SpectralNormalization GlorotUniform Orthogonal Constant Adam SGD Mean
        SparseCategoricalCrossentropy DTypePolicy SeedGenerator Variable KerasTensor __tensor__
        __numpy__ __slice__ __typespec__ __lambda__ __keras_tensor__ function system Popen exec
        keras keras.layers keras.models keras.ops keras.src.ops.numpy keras.src.models.sequential os
        subprocess builtins tensorflow stages.train
        """.split()
    )


def change_weights(random: Random, members: dict[str, bytes]) -> None:
    """Changes bytes of the HDF5 file; its checksum in the archive is right all the same."""
    change = random.choice([flipped, flipped, flipped, flipped, flipped, damaged])
    members["model.weights.h5"] = change(random, members["model.weights.h5"])


def mutated_model(random: Random, original: bytes) -> bytes:
    """The toy model with changes to its config, weights, members or archive, or to several."""
    members = unpacked(original)
    kind = random.random()
    if kind < 0.6:
        change_config(random, members)
    if 0.5 < kind < 0.9:
        change_weights(random, members)
    if random.random() < 0.1:
        change_members(random, members)
    data = packed(members)
    return change_zip(random, data) if random.random() < 0.15 else data


def edited(original: bytes, changes: dict[str, Any], part: str | None = None) -> bytes:
    """The toy model with changes to the description of its convolution, or to a part of that."""
    members = unpacked(original)
    tree = json.loads(members["config.json"])
    (found,) = (node for node, key in nodes(tree) if node[key] == "Conv2D" and "config" in node)
    (found[part] if part else found).update(changes)
    members["config.json"] = json.dumps(tree).encode()
    return packed(members)


@pytest.fixture(scope="module")
def toy_model(model_child: Child, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("toy") / "toy.keras"
    assert model_child.run(save_toy_model, path).endswith("accepted")
    assert model_child.run(read_model, path) == "accepted"
    return path.read_bytes()


@cases(few=60, many=500)
def test_a_mutated_model_is_loaded_or_refused(
    model_child: Child, toy_model: bytes, tmp_path: Path, cases: int
) -> None:
    path = tmp_path / "in" / "seed-1.keras"
    fuzz(
        model_child,
        "models",
        cases,
        path,
        lambda random: path.write_bytes(mutated_model(random, toy_model) if random else toy_model),
        read_model,
    )


def test_a_model_that_needs_more_memory_than_its_file_has_is_refused(
    model_child: Child, toy_model: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "seed-1.keras"
    for filters in (10**4, 10**6, 10**8, 10**10, 10**13):
        path.write_bytes(edited(toy_model, {"filters": filters}, part="config"))
        assert model_child.run(read_model, path) == "refused", f"{filters} filters"


def test_a_part_of_a_model_that_names_code_does_not_run(
    model_child: Child, toy_model: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "seed-1.keras"
    for node in code_nodes():
        for data in (
            edited(toy_model, {"activation": node}, part="config"),
            edited(toy_model, node if "module" in node else {"config": node}),
        ):
            path.write_bytes(data)
            assert model_child.run(read_model, path) == "refused", node
            assert list(contents(tmp_path)) == [path.name], node
