"""Nothing lost in a crash: whatever is killed, and when, the next repro ends with the same bits."""

import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml

from stages.shared.stage import _is_alive
from tools import doctor, node
from tools.pipeline import locked

VARIANT = "shapes-deep-bn"
EPOCHS = 12  # enough that a training goes on for a while after its second epoch
STAGES = [
    "download@shapes",
    "stats@shapes",
    "lineup",
    f"train@{VARIANT}",
    f"evaluate@{VARIANT}",
    "plot@shapes",
]
FORCE = "--force"  # also what is up to date
WAYS = ["kill the stage", "kill dvc", "terminate both", "interrupt both"]


def start(folder: Path, stage: str, *options: str) -> subprocess.Popen[str]:
    """Starts one stage by DVC in a process group of its own."""
    return subprocess.Popen(
        ["dvc", "repro", *options, "--single-item", stage],
        cwd=folder,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(folder: Path, stage: str, *options: str) -> str:
    """Runs one stage to its end, which must be a success, and returns what it printed."""
    process = start(folder, stage, *options)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return output


def git(folder: Path, *arguments: str) -> str:
    command = ["git", *arguments]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return result.stdout


@pytest.fixture(scope="module")
def workspace(clone: Path) -> Path:
    """One variant with everything that is random, two seeds; the clean run's results are in git."""
    return prepare(clone, VARIANT)


def prepare(
    folder: Path,
    variant: str,
    images_per_class: int | str = "all",
    epochs: int = EPOCHS,
    seeds: tuple[int, ...] = (1, 2),
) -> Path:
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["datasets"]["shapes"] |= {"train_images": 300, "test_images": 40}
    dataset = params["variants"][variant]["dataset"]
    params["variants"][variant] |= {"recipe": "demo-augmented", "seeds": list(seeds)}
    params["recipes"]["demo-augmented"] |= {
        "epochs": epochs,
        "precision": "mixed_bfloat16",
        "images_per_class": images_per_class,
    }
    params["datasets"] = {dataset: params["datasets"][dataset]}
    params["variants"] = {variant: params["variants"][variant]}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    command = ["dvc", "repro", f"plot@{dataset}"]
    subprocess.run(command, cwd=folder, check=True)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "The clean run")
    return folder


def trainer_of(dvc: psutil.Process) -> psutil.Process | None:
    """The stage's own process, below DVC."""
    for child in dvc.children(recursive=True):
        try:
            if any(argument.startswith("stages.") for argument in child.cmdline()):
                return child
        except psutil.Error:
            continue
    return None


def break_off(process: subprocess.Popen[str], way: str) -> str:
    """Ends a running stage in one of four ways, and waits until all of it is gone.

    Returns what it had printed.
    """
    dvc = psutil.Process(process.pid)
    stage = trainer_of(dvc)
    everyone = [dvc, *dvc.children(recursive=True)]
    try:
        if way == "kill the stage":
            (stage or dvc).kill()
        elif way == "kill dvc":
            dvc.kill()
        else:
            number = signal.SIGTERM if way == "terminate both" else signal.SIGINT
            os.killpg(process.pid, number)
    except (psutil.NoSuchProcess, ProcessLookupError, PermissionError):
        pass  # it had just finished
    output, _ = process.communicate()
    begin = time.monotonic()
    while any(map(_is_alive, everyone)):  # which one that nobody waits for is not
        assert time.monotonic() < begin + 60, "a stage outlived its DVC"
        time.sleep(0.01)
    return output


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Waits until something is the case while a process runs."""
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)


def test_a_training_that_is_broken_off_resumes_and_ends_with_the_same_bits(
    workspace: Path,
) -> None:
    """Broken off in each of the four ways, one after the other, each time further on."""
    stage = f"train@{VARIANT}"
    checkpoints = workspace / "checkpoints"
    resumed, expected = [], []
    for (seed, epoch), way in zip([(1, 2), (1, 6), (2, 2), (2, 6)], WAYS, strict=True):
        expected.append(newest(checkpoints, seed) > 0)
        process = start(workspace, stage, FORCE)
        wait_for(lambda s=seed, e=epoch: newest(checkpoints, s) >= e, process)
        output = break_off(process, way)
        assert not (workspace / "results/weights/shapes" / VARIANT).exists()
        resumed.append(f"Resuming seed {seed} after epoch" in output)
    assert resumed == expected and not resumed[0] and any(resumed)
    output = finish(workspace, stage, FORCE)
    assert f"Resuming seed 1 after epoch {EPOCHS}." in output
    assert "Resuming seed 2 after epoch" in output
    assert git(workspace, "status", "--porcelain") == ""
    assert not list(checkpoints.glob("*/*/seed-*"))


def newest(checkpoints: Path, seed: int) -> int:
    """The epoch of a seed's newest checkpoint, 0 if there is none."""
    files = checkpoints.glob(f"*/*/seed-{seed}/epoch-*.npz")
    return max((int(file.stem.rpartition("-")[2]) for file in files), default=0)


@pytest.mark.slow
def test_a_training_of_other_images_does_not_resume(workspace: Path) -> None:
    """Broken off, then started with other images, broken off again, and then as it was."""
    stage = f"train@{VARIANT}"
    images = workspace / "data/raw/shapes/train/images.npy"
    assert "Resuming" not in broken_off_after_an_epoch(workspace, stage)
    whole = images.read_bytes()
    images.unlink()  # it may be a link into DVC's cache
    images.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "Resuming" not in broken_off_after_an_epoch(workspace, stage)
    images.write_bytes(whole)
    assert "Resuming" not in finish(workspace, stage, FORCE)
    assert git(workspace, "status", "--porcelain") == ""


def broken_off_after_an_epoch(workspace: Path, stage: str) -> str:
    """Starts a training and kills it with its first new checkpoint; returns what it had printed."""
    checkpoints = workspace / "checkpoints"
    before = set(checkpoints.glob("*/*"))
    process = start(workspace, stage, FORCE)
    wait_for(
        lambda: any(
            newest(checkpoints, 1) and each not in before for each in checkpoints.glob("*/*/")
        ),
        process,
    )
    return break_off(process, "kill the stage")


def inject(folder: Path, stage: str, moments: list[float], ways: list[str]) -> Counter[str]:
    """Breaks a stage off at moments, as fractions of its clean run, and checks each aftermath."""
    began = time.monotonic()
    finish(folder, stage, FORCE)
    seconds = time.monotonic() - began
    outs = [out["path"] for out in locked(folder)[stage]["outs"]]
    clean = {out: node.contents(folder, [out]) for out in outs}
    outcomes: Counter[str] = Counter()
    for moment, way in zip(moments, ways, strict=True):
        process = start(folder, stage, FORCE)
        time.sleep(moment * seconds)  # the moment is the experiment
        break_off(process, way)
        recorded = process.returncode == 0
        for out in outs:
            assert node.contents(folder, [out]) in ({}, clean[out]), (stage, moment, way)
        outcomes.update(mend(folder))
        output = finish(folder, stage, FORCE)
        assert git(folder, "status", "--porcelain") == "", (stage, moment, way)
        outcomes["had finished" if recorded else way] += 1
        outcomes["resumed"] += "Resuming" in output
    assert outcomes["had finished"] < len(moments), "none was broken off"
    return outcomes


def mend(folder: Path) -> list[str]:
    """What a kill may have left of DVC's own files, put right as the README says; what it was."""
    found = []
    if "dvc.lock" in git(folder, "status", "--porcelain"):
        # DVC rewrites its lock file in place. Cut short, it is git's to give back (README).
        git(folder, "checkout", "--", "dvc.lock")
        found.append("lock file cut short")
    rwlock = folder / ".dvc/tmp/rwlock"
    if any(finding.level == "error" for finding in doctor.check_path_locks(rwlock)):
        # The same with DVC's list of who reads and writes what: empty, it stops DVC (README).
        rwlock.unlink()
        found.append("list of locks cut short")
    return found


@pytest.mark.parametrize(
    ("stage", "out", "way"),
    [
        ("download@shapes", "data/raw/shapes/train", "kill dvc"),
        (f"evaluate@{VARIANT}", f"results/metrics/shapes/{VARIANT}.json", "kill the stage"),
    ],
)
def test_a_stage_that_was_broken_off_leaves_no_wrong_output(
    workspace: Path, stage: str, out: str, way: str
) -> None:
    """Broken off as it begins; test_twenty_faults_in_a_stage does so at all times."""
    clean = node.contents(workspace, [out])
    process = start(workspace, stage, FORCE)
    wait_for(lambda: not (workspace / out).exists(), process)  # DVC removes it, and starts
    wait_for(lambda: trainer_of(psutil.Process(process.pid)) is not None, process)
    break_off(process, way)
    assert process.returncode != 0
    assert node.contents(workspace, [out]) in ({}, clean)
    mend(workspace)
    finish(workspace, stage)
    assert node.contents(workspace, [out]) == clean
    assert git(workspace, "status", "--porcelain") == ""


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_twenty_faults_in_a_stage(workspace: Path, stage: str) -> None:
    outcomes = inject(workspace, stage, [(n + 0.5) / 20 for n in range(20)], WAYS * 5)
    print(f"\n{stage}: {dict(outcomes)}, 20 of 20 end as the clean run")


@pytest.mark.slow
@pytest.mark.realdata
@pytest.mark.skipif("CIFAR_MIRROR" not in os.environ, reason="CIFAR_MIRROR is not set")
def test_thirty_random_kills_of_a_training_on_real_data(clone: Path) -> None:
    folder = prepare(clone, "cifar10-deep-bn", images_per_class=100, epochs=10, seeds=(1,))
    moments = sorted(random.Random(0).uniform(0, 1) for _ in range(30))
    ways = [WAYS[n % 2] for n in range(30)]
    outcomes = inject(folder, "train@cifar10-deep-bn", moments, ways)
    print(f"\n{dict(outcomes)}, 30 of 30 end as the uninterrupted run")
