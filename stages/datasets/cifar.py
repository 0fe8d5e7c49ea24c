"""CIFAR-10 and CIFAR-100 from their official binary archives (Krizhevsky, 2009).

The archives are read as a stream and never unpacked to disk. What is pinned is the SHA-256 of each
member file, so any repackaging of the same bytes is accepted, and nothing else is.

A CIFAR-10 record is 1 label byte and 3,072 pixel bytes; a CIFAR-100 record has 2 label bytes,
coarse and fine. The pixels are three planes, red, green and blue, of 32 rows of 32.
"""

import gzip
import hashlib
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from stages.shared.dataset import Split
from stages.shared.stage import StageError

PIXEL_BYTES = 32 * 32 * 3
DAMAGE = (  # what gzip and tarfile raise when a file is damaged
    tarfile.TarError,
    zlib.error,
    EOFError,
    OSError,
    ValueError,
    TypeError,
    ArithmeticError,
    LookupError,
    RecursionError,
)


@dataclass(frozen=True)
class Member:
    """One file of an archive: its name, the SHA-256 of its bytes, and how many images it holds."""

    name: str
    sha256: str
    images: int


@dataclass(frozen=True)
class Layout:
    """What an archive holds: the members of each split in order, and the names of the labels."""

    train: tuple[Member, ...]
    test: tuple[Member, ...]
    classes: tuple[str, ...]
    coarse_classes: tuple[str, ...] = ()

    @property
    def label_bytes(self) -> int:
        return 2 if self.coarse_classes else 1


def prepare(config: dict[str, Any], fetch: Callable[[str], Path]) -> tuple[Split, Split]:
    """Fetches and reads the archive.

    Args:
        config: `classes`, 10 or 100, and `url`, the archive's address.
        fetch: downloads an address and returns the local file's path.

    Returns:
        The training split (50,000 images) and the test split (10,000), in the official order.

    Raises:
        StageError: if the archive is not the published one.
    """
    return read_archive(fetch(config["url"]), LAYOUTS[config["classes"]])


def read_archive(path: Path, layout: Layout) -> tuple[Split, Split]:
    """Reads both splits from a gzip-compressed tar file.

    Raises:
        StageError: if the file is damaged, or lacks a member, or a member's size, bytes or labels
            are not what the layout says, or if it holds a link or a path that leads outside.
    """
    contents = _read_members(path, layout)
    return _split(contents, layout.train, layout), _split(contents, layout.test, layout)


def _read_members(path: Path, layout: Layout) -> dict[str, bytes]:
    wanted = {member.name: member for member in layout.train + layout.test}
    record_bytes = layout.label_bytes + PIXEL_BYTES
    contents: dict[str, bytes] = {}
    limit = 2 * record_bytes * sum(member.images for member in wanted.values()) + 2**20
    try:
        with (
            _BoundedGzip(path, limit) as stream,
            tarfile.open(fileobj=stream, mode="r|") as archive,
        ):
            for info in archive:
                _check_is_harmless(info, path)
                info.name = str(PurePosixPath(info.name))  # some write ./ before every name
                member = wanted.get(info.name)
                if member is None or info.isdir():
                    continue  # the home page's archives also hold a readme and the class names
                if info.size != member.images * record_bytes:
                    raise StageError(
                        f"{path}: {info.name} must have {member.images * record_bytes} bytes. "
                        f"Received: {info.size}."
                    )
                file = archive.extractfile(info)
                assert file is not None  # it is a regular file
                contents[info.name] = file.read()
                _check_bytes(contents[info.name], member, path)
                if len(contents) == len(wanted):
                    return contents
    except DAMAGE as error:
        raise StageError(
            f"{path} must be a whole .tar.gz archive. Received: {str(error) or 'a truncated file'}."
        ) from None
    missing = sorted(set(wanted) - set(contents))
    raise StageError(f"{path} must contain {', '.join(wanted)}. Missing: {', '.join(missing)}.")


class _BoundedGzip(gzip.GzipFile):
    """A compressed file that may be read only so far.

    tarfile keeps a long name whole, and goes on reading after the end of a file until it has
    skipped as much as a header claims. So both have to end.
    """

    def __init__(self, path: Path, limit: int) -> None:
        super().__init__(path, "rb")
        self.left = limit

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.left -= len(data) or tarfile.RECORDSIZE
        if self.left < 0:
            raise tarfile.ReadError("far more data than its members have, or a size that is wrong")
        return data


def _check_is_harmless(info: tarfile.TarInfo, path: Path) -> None:
    name = PurePosixPath(info.name)
    if name.is_absolute() or ".." in name.parts:
        raise StageError(f"{path}: member names must stay inside the archive. Received: {name}.")
    if not (info.isfile() or info.isdir()):
        raise StageError(f"{path}: members must be files or folders. Received: {name}, a link.")


def _check_bytes(data: bytes, member: Member, path: Path) -> None:
    digest = hashlib.sha256(data).hexdigest()
    if digest != member.sha256:
        raise StageError(
            f"{path}: {member.name} must have the published SHA-256 {member.sha256}. "
            f"Received: {digest}."
        )


def _split(contents: dict[str, bytes], members: tuple[Member, ...], layout: Layout) -> Split:
    data = np.frombuffer(b"".join(contents[member.name] for member in members), np.uint8)
    records = data.reshape(-1, layout.label_bytes + PIXEL_BYTES)
    planes = records[:, layout.label_bytes :].reshape(-1, 3, 32, 32)
    return Split(
        images=np.ascontiguousarray(planes.transpose(0, 2, 3, 1)),
        labels=records[:, layout.label_bytes - 1].copy(),
        classes=layout.classes,
        coarse_labels=records[:, 0].copy() if layout.coarse_classes else None,
        coarse_classes=layout.coarse_classes,
    )


CIFAR10 = Layout(
    train=tuple(
        Member(f"cifar-10-batches-bin/data_batch_{number}.bin", sha256, 10_000)
        for number, sha256 in enumerate(
            (
                "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
                "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
                "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
                "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
                "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
            ),
            start=1,
        )
    ),
    test=(
        Member(
            "cifar-10-batches-bin/test_batch.bin",
            "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
            10_000,
        ),
    ),
    classes=tuple("airplane automobile bird cat deer dog frog horse ship truck".split()),
)

CIFAR100 = Layout(
    train=(
        Member(
            "cifar-100-binary/train.bin",
            "f31298fc616915fa142368359df1c4ca2ae984d6915ca468b998a5ec6aeebf29",
            50_000,
        ),
    ),
    test=(
        Member(
            "cifar-100-binary/test.bin",
            "d8b1e6b7b3bee4020055f0699b111f60b1af1e262aeb93a0b659061746f8224a",
            10_000,
        ),
    ),
    classes=tuple(
        """
        apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
        butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch
        crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo
        keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain
        mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain
        plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
        skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone
        television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
        """.split()
    ),
    coarse_classes=tuple(
        """
        aquatic_mammals fish flowers food_containers fruit_and_vegetables
        household_electrical_devices household_furniture insects large_carnivores
        large_man-made_outdoor_things large_natural_outdoor_scenes large_omnivores_and_herbivores
        medium_mammals non-insect_invertebrates people reptiles small_mammals trees vehicles_1
        vehicles_2
        """.split()
    ),
)

LAYOUTS = {10: CIFAR10, 100: CIFAR100}
