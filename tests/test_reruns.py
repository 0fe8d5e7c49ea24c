"""Exact reruns: whatever changes, the stages that run again are those that must, and no others.

What must rerun is worked out from first principles (tests/rerunning.py). What does rerun is DVC's
doing, on the project's own dvc.yaml, with stand-ins for the commands.
"""

import copy
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT
from dvc.utils.serialize import parse_yaml
from rerunning import Project, Tree, must_rerun, opened, project_tree

from stages.shared import params

ONE_EACH = (  # a variant of each model, for the cases in which stages run
    "cifar10-simple",
    "cifar10-deep",
    "cifar10-shallow",
    "cifar10-air94",
    "cifar10-resnet20",
    "cifar100-deep-bn",
    "cifar100-convnet",
    "shapes-lenet",
)


@pytest.fixture(scope="module")
def project(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    with opened(clone, tmp_path_factory.mktemp("standin")) as project:
        yield project


@pytest.fixture(scope="module")
def smaller(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """Another clone with fewer variants and recipes, but each model and each dataset in use."""
    folder = tmp_path_factory.mktemp("smaller") / "clone"
    subprocess.run(["git", "clone", "--quiet", str(clone), str(folder)], check=True)
    tree = project_tree(*ONE_EACH)
    (folder / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    with opened(folder, tmp_path_factory.mktemp("standin")) as project:
        yield project


def leaves(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values that are not mappings or lists, and of empty mappings."""
    if not isinstance(tree, (dict, list)) or not tree:
        yield path
        return
    for key in tree if isinstance(tree, dict) else range(len(tree)):
        yield from leaves(tree[key], (*path, key))


def at(tree: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


CHOICES = {
    "pixels": ["unit", "overall", "channel"],
    "fill": ["nearest", "reflect", "black"],
    "split": ["end", "stratified"],
    "keep": ["last", "best"],
    "monitor": ["val_loss", "val_accuracy"],
    "precision": ["float32", "mixed_bfloat16"],
    "images_per_class": ["all", 100],
    "patience_epochs": ["unlimited", 3],
    "dataset": ["cifar10", "shapes"],
    "recipe": ["demo", "shallow"],
    "model": ["lenet", "convnet"],
    "horizontal_flip": ["none", "random"],
    "test_views": [1, 2],
    "activation": ["relu", "gelu"],
    "fan_out": ["filters", "places"],
}
BLOCKS: dict[str, list[Tree]] = {
    "optimizer": [
        {"name": "adam", "learning_rate": 0.1, "beta_1": 0.5, "beta_2": 0.5},
        {"name": "rmsprop", "learning_rate": 0.1, "rho": 0.5},
    ],
    "schedule": [{"name": "constant"}, {"name": "inverse_time", "decay_per_step": 0.5}],
}


def changed_leaf(tree: Tree, path: tuple[Any, ...]) -> Tree:
    """A valid copy of the parameters in which the leaf at the path has another value."""
    tree = copy.deepcopy(tree)
    parent, key = at(tree, path[:-1]), path[-1]
    value = parent[key]
    if key == "source":
        other = "shapes" if value == "cifar" else "cifar"
        blocks = {
            "cifar": {"classes": 10, "url": "https://example.org/cifar-10-binary.tar.gz"},
            "shapes": {"train_images": 50, "test_images": 50, "seed": 0},
        }
        at(tree, path[:-2])[path[-2]] = {"source": other, **blocks[other]}
    elif key == "name":
        other = next(block for block in BLOCKS[path[-2]] if block["name"] != value)
        at(tree, path[:-2])[path[-2]] = other
    elif key == "config":  # an empty one: only another model can have another
        parent |= {"model": "deep_bn", "config": {"l2": 0.0, "dropout": [0.0, 0.0, 0.0]}}
    elif "resolution" in path:  # its first epoch and its last size are what they are
        at(tree, path[:2])["resolution"] = {"from_epochs": [1, 2], "pixels": [12, 32]}
    elif key == "classes":
        parent[key] = 110 - value
    elif key == "url":
        parent[key] = value + ".gz"
    elif key in CHOICES:
        parent[key] = next(other for other in CHOICES[key] if other != value)
        if key == "model":
            parent["config"] = {}
        if key in ("keep", "patience_epochs"):
            at(tree, path[:2])["validation"]["fraction"] = 0.25
    elif isinstance(value, bool):
        parent[key] = not value
    elif path[-2] == "seeds":
        parent[key] = value + 100
    else:
        parent[key] = value + 1 if isinstance(value, int) else value / 2 or 0.01
        if key == "fraction":
            at(tree, path[:2])["selection"] |= {"keep": "last", "patience_epochs": "unlimited"}
    params.Params.model_validate(tree)
    return tree


LEAVES = list(leaves(project_tree()))


def one_of_each_kind(tree: Tree) -> list[tuple[Any, ...]]:
    """One leaf of each kind, as recipes.*.epochs is one, of another recipe or variant each time."""
    kinds: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}
    for path in leaves(tree):
        kinds.setdefault((path[0], *path[2:]), []).append(path)
    return [paths[number % len(paths)] for number, paths in enumerate(kinds.values())]


def wrongly_stale(project: Project, paths: list[tuple[Any, ...]]) -> dict[str, Any]:
    """The leaves whose change makes other stages stale than it must: what DVC says, and what is."""
    tree, text, before = project.tree, project.text, project.stages()
    wrong = {}
    for path in paths:
        project.write_params(changed_leaf(tree, path))
        expected, _ = must_rerun(before, project.stages())
        found = project.status()
        if found != expected or not expected:
            wrong[".".join(map(str, path))] = (sorted(found), sorted(expected))
    project.tree = tree
    project.write_text(text)
    assert project.status() == set()
    return wrong


def test_each_kind_of_leaf_makes_exactly_its_stages_stale(smaller: Project) -> None:
    paths = one_of_each_kind(smaller.tree)
    kinds = {(path[0], *path[2:]) for path in LEAVES}
    assert {(path[0], *path[2:]) for path in paths} == kinds
    assert not wrongly_stale(smaller, paths)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))  # so that several processes can share them
def test_every_leaf_makes_exactly_its_stages_stale(project: Project, part: int) -> None:
    assert not wrongly_stale(project, LEAVES[part::4])
    print(f"\n{len(LEAVES[part::4])} of {len(LEAVES)} leaves of params.yaml")


@pytest.mark.parametrize(
    "path",
    [
        ("datasets", "shapes", "seed"),
        ("recipes", "demo", "optimizer", "learning_rate"),
        ("recipes", "tutorial-deep-bn", "precision"),
        ("variants", "cifar10-deep", "seeds", 0),
        ("variants", "cifar100-convnet", "model"),
        ("variants", "cifar10-simple", "dataset"),
    ],
    ids=lambda path: ".".join(map(str, path)),
)
def test_a_changed_leaf_reruns_what_follows_from_it(
    smaller: Project, path: tuple[Any, ...]
) -> None:
    before = smaller.tree
    check(smaller, lambda: smaller.write_params(changed_leaf(before, path)))
    smaller.write_params(before)
    # What ran before is in the run cache. But a moved variant's files are left where they were.
    assert smaller.repro() == ({"plot@shapes"} if path[-1] == "dataset" else set())
    assert smaller.status() == set()


FILES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "stages").rglob("*.py"))
OTHERS = ["tools/show.py", "README.md", "Makefile", "pyproject.toml", "tests/conftest.py"]


ONE_OF_EACH = ["download", "stats", "lineup", "train", "evaluate", "plot", "training/split"]
ONE_OF_EACH += ["datasets/shapes", "shared/params", "models/lenet"]


@pytest.mark.parametrize("file", FILES + OTHERS)
def test_a_changed_file_makes_what_imports_it_stale(smaller: Project, file: str) -> None:
    path, before = smaller.folder / file, smaller.stages()
    whole = path.read_text()
    path.write_text(whole + "CHANGED = 1\n")
    expected, _ = must_rerun(before, smaller.stages())
    found = smaller.status()
    path.write_text(whole)
    assert found == expected


@pytest.mark.parametrize("file", ONE_OF_EACH)
def test_a_changed_file_reruns_what_follows_from_it(smaller: Project, file: str) -> None:
    path = smaller.folder / "stages" / f"{file}.py"
    check(smaller, lambda: path.write_text(path.read_text() + "CHANGED = 1\n"))


@pytest.mark.parametrize("file", ONE_OF_EACH)
def test_a_comment_reruns_the_file_and_nothing_that_follows_from_it(
    smaller: Project, file: str
) -> None:
    path = smaller.folder / "stages" / f"{file}.py"
    check(smaller, lambda: path.write_text(path.read_text() + "# a comment\n"))


def check(project: Project, change: Callable[[], Any], restored: str = "") -> set[str]:
    """Makes a change, runs `dvc repro`, and compares what ran with what must.

    Args:
        project: what is changed.
        change: changes it.
        restored: a stage that saw the same inputs before: the run cache has its outputs.
    """
    before = project.stages()
    change()
    _, expected = must_rerun(before, project.stages())
    assert project.repro() == expected - {restored}
    return expected


def edited(project: Project, edit: Callable[[Tree], Any]) -> Callable[[], None]:
    """A change of a copy of the parameters."""

    def change() -> None:
        tree = copy.deepcopy(project.tree)
        edit(tree)
        params.Params.model_validate(tree)
        project.write_params(tree)

    return change


def renamed(tree: Tree, old: str, new: str) -> Tree:
    return {new if key == old else key: value for key, value in tree.items()}


def test_a_variant_that_is_added_renamed_and_removed(smaller: Project) -> None:
    def add(tree: Tree) -> None:
        tree["variants"]["shapes-new"] = {**tree["variants"]["shapes-lenet"], "seeds": [99]}

    def rename(tree: Tree) -> None:
        tree["variants"] = renamed(tree["variants"], "shapes-new", "shapes-newer")

    ran = check(smaller, edited(smaller, add))
    assert ran == {"lineup", "train@shapes-new", "evaluate@shapes-new", "plot@shapes"}
    ran = check(smaller, edited(smaller, rename))
    assert ran == {"lineup", "train@shapes-newer", "evaluate@shapes-newer", "plot@shapes"}
    ran = check(
        smaller, edited(smaller, lambda tree: tree["variants"].pop("shapes-newer")), "lineup"
    )
    assert ran == {"lineup", "plot@shapes"}


def test_a_recipe_that_is_added_renamed_and_removed(smaller: Project) -> None:
    def add(tree: Tree) -> None:
        tree["recipes"]["new"] = {**tree["recipes"]["demo"], "epochs": 99}

    def rename(tree: Tree) -> None:
        tree["recipes"] = renamed(tree["recipes"], "shallow", "ours")
        tree["variants"]["cifar10-shallow"]["recipe"] = "ours"

    assert check(smaller, edited(smaller, add)) == set()
    assert check(smaller, edited(smaller, lambda tree: tree["recipes"].pop("new"))) == set()
    ran = check(smaller, edited(smaller, rename))
    assert ran == {"lineup", "train@cifar10-shallow"}  # the same training: nothing follows


def test_a_dataset_that_is_added_renamed_and_removed(smaller: Project) -> None:
    def add(tree: Tree) -> None:
        tree["datasets"]["dots"] = {**tree["datasets"]["shapes"], "seed": 5}
        tree["variants"]["dots-lenet"] = {**tree["variants"]["shapes-lenet"], "dataset": "dots"}

    def rename(tree: Tree) -> None:
        tree["datasets"] = renamed(tree["datasets"], "dots", "spots")
        tree["variants"]["dots-lenet"]["dataset"] = "spots"

    def drop(tree: Tree) -> None:
        del tree["datasets"]["spots"], tree["variants"]["dots-lenet"]

    for change in (add, rename):
        ran = check(smaller, edited(smaller, change))
        assert {name.split("@")[0] for name in ran} == {
            "download", "stats", "lineup", "train", "evaluate", "plot",
        }  # fmt: skip
        assert len(ran) == 6
    assert check(smaller, edited(smaller, drop), restored="lineup") == {"lineup"}


def test_an_architecture_that_is_added_renamed_and_removed(smaller: Project) -> None:
    models = smaller.folder / "stages" / "models"

    def rename() -> None:
        (models / "lenet.py").rename(models / "lenet5.py")
        edited(smaller, lambda tree: tree["variants"]["shapes-lenet"].update(model="lenet5"))()

    assert check(smaller, lambda: (models / "new.py").write_text("import keras\n")) == set()
    assert check(smaller, (models / "new.py").unlink) == set()
    ran = check(smaller, rename)
    assert ran == {"lineup", "train@shapes-lenet"}  # the same network: nothing follows


def test_order_comments_and_spelling_rerun_nothing(smaller: Project) -> None:
    def reordered(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: reordered(value[key]) for key in reversed(value)}

    smaller.write_params(reordered(smaller.tree))
    assert smaller.repro() == set()
    text = smaller.text.replace("learning_rate: 0.001\n", "learning_rate: 1.0e-3  # as ever\n")
    assert text != smaller.text
    assert parse_yaml(text, "") == parse_yaml(smaller.text, "")  # by DVC's parser, not a quick one
    smaller.write_text(f"# a comment\n{text}")
    assert smaller.repro() == set()
    assert smaller.status() == set()
