"""Stage download@D: a dataset's training and test arrays, verified.

    python -m stages.download DATASET --train FOLDER --test FOLDER

Where the environment variable CIFAR_MIRROR names a folder or an address prefix, archives are looked
for there first. It is the machine's business, so it is not a parameter.
"""

import importlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import requests
import tenacity
import urllib3
from tqdm import tqdm

from stages.shared import params
from stages.shared.dataset import save_split
from stages.shared.stage import (
    StageError,
    argument_parser,
    detail,
    duration,
    outputs,
    remove,
    run,
    size,
)

DOWNLOADS = Path("downloads")  # git-ignored, a folder per dataset: what a cut connection left
ATTEMPTS = 5
TIMEOUT_SECONDS = 30
RETRIED_STATUS = {408, 425, 429, 500, 502, 503, 504}


def main() -> None:
    parser = argument_parser("Download a dataset and check every byte.")
    parser.add_argument("dataset", help="a key of params.yaml's datasets")
    parser.add_argument("--train", type=Path, required=True, help="the training split's folder")
    parser.add_argument("--test", type=Path, required=True, help="the test split's folder")
    args = parser.parse_args()

    start = time.perf_counter()
    config = params.load().dataset(args.dataset).model_dump()
    source = importlib.import_module(f"stages.datasets.{config.pop('source')}")
    with outputs(args.train, args.test) as (train_folder, test_folder):
        train, test = source.prepare(config, lambda url: fetch(url, DOWNLOADS / args.dataset))
        save_split(train, train_folder)
        save_split(test, test_folder)
    remove(DOWNLOADS / args.dataset)  # the arrays are kept by DVC from here on
    print(
        f"download {args.dataset}: {len(train.images):,} training and {len(test.images):,} test "
        f"images of {len(train.classes)} classes, every byte checked; "
        f"{size(args.train, args.test)} in {duration(time.perf_counter() - start)}"
    )


def fetch(url: str, folder: Path) -> Path:
    """The local path of the file at an address, from the mirror if it has it, else downloaded.

    Args:
        url: the file's official address.
        folder: where what is downloaded is kept.

    Raises:
        StageError: if no place has the file, or the connection keeps failing.
    """
    name = url.rsplit("/", 1)[-1]
    mirror = os.environ.get("CIFAR_MIRROR", "")
    try:
        if mirror.startswith(("http://", "https://")):
            return download(f"{mirror.rstrip('/')}/{name}", folder / "mirror" / name)
        if mirror and (Path(mirror) / name).is_file():
            detail(f"{url}: taken from CIFAR_MIRROR")
            return Path(mirror) / name
        if mirror:
            raise StageError(f"{mirror} has no {name}.")
    except StageError as error:
        print(f"CIFAR_MIRROR did not help: {error} Trying {url}.")
    return download(url, folder / name)


def download(url: str, path: Path) -> Path:
    """Downloads a file, resuming a partial one, and returns its path.

    Network errors and overload statuses are retried with exponential back-off; each retry goes on
    where the connection broke. Any other status is an error at once.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    attempts = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(requests.RequestException),
        stop=tenacity.stop_after_attempt(ATTEMPTS),
        wait=tenacity.wait_exponential_jitter(initial=1, max=30),
        before_sleep=_say_retry,
        reraise=True,
    )
    try:
        attempts(_receive, url, partial)
    except requests.RequestException as error:
        raise StageError(
            f"{url} could not be downloaded in {ATTEMPTS} attempts. Received: {error}. "
            "Run again to resume, or set CIFAR_MIRROR to a folder that holds the file."
        ) from None
    os.replace(partial, path)
    return path


def _receive(url: str, partial: Path) -> None:
    """One attempt to append what is missing to the partial file."""
    start = partial.stat().st_size if partial.exists() else 0
    headers = {"Range": f"bytes={start}-"} if start else {}
    headers["Accept-Encoding"] = "identity"  # the bytes as stored, so that ranges add up
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS) as response:
        if response.status_code == 416:  # the partial file is not a part of this one
            partial.unlink()
            raise requests.ConnectionError("The partial file did not fit; starting over.")
        if response.status_code in RETRIED_STATUS:
            response.raise_for_status()
        if response.status_code not in (200, 206):
            raise StageError(
                f"{url} must exist. Received: HTTP {response.status_code} {response.reason}. "
                "Correct the dataset's url, or set CIFAR_MIRROR to a folder that holds the file."
            )
        if response.status_code == 200:
            start = 0
        expected = start + int(response.headers.get("Content-Length", 0))
        with (
            open(partial, "ab" if start else "wb") as file,
            tqdm(
                desc=partial.stem,
                initial=start,
                total=expected or None,
                unit="B",
                unit_scale=True,
                disable=None,
            ) as bar,
        ):
            for chunk in _stored_bytes(response):
                file.write(chunk)
                bar.update(len(chunk))
    size = partial.stat().st_size
    if expected > start and size != expected:
        raise requests.ConnectionError(f"The connection ended after {size} of {expected} bytes.")


def _stored_bytes(response: requests.Response) -> Iterator[bytes]:
    """The body as it is stored, even if the server calls a .tar.gz a gzip-encoded .tar."""
    try:
        yield from response.raw.stream(1 << 18, decode_content=False)
    except urllib3.exceptions.HTTPError as error:
        raise requests.ConnectionError(error) from error


def _say_retry(state: tenacity.RetryCallState) -> None:
    assert state.outcome is not None and state.next_action is not None
    reason = state.outcome.exception()
    print(f"Attempt {state.attempt_number} of {ATTEMPTS} failed ({reason}); trying again.")


if __name__ == "__main__":
    run(main)
