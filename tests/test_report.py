"""The report: what is on its page, and that a real browser without a network draws it."""

import csv
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import PARAMS
from PIL import Image

from stages.evaluate import describe
from stages.shared.dataset import Split
from stages.shared.stage import StageError
from tools import charts, report
from tools.results import Predictions, Revision

CLASSES = ("cat", "dog", "</script><b>frog")
IMAGES = 90
CHARTS = ("curves", "time", "size", "classes", "calibration", "confusion")


def write_project(folder: Path, count: int, evaluated: int) -> list[str]:
    """A params.yaml of so many variants of one dataset, the first ones with results."""
    known = yaml.safe_load(PARAMS.read_text())
    names = [f"toys-{number:02}" for number in range(count)]
    variant = {"dataset": "toys", "model": "lenet", "config": {}, "recipe": "demo", "seeds": [1, 2]}
    values = {
        "datasets": {
            "toys": {"source": "shapes", "train_images": 60, "test_images": 10, "seed": 0}
        },
        "recipes": {"demo": known["recipes"]["demo"], "other": known["recipes"]["demo-augmented"]},
        "variants": dict.fromkeys(names, variant),
    }
    if count > 1:
        values["variants"][names[1]] = variant | {"recipe": "other"}
    (folder / "params.yaml").write_text(json.dumps(values))  # also YAML
    for number, name in enumerate(names[:evaluated]):
        write_results(folder / "results", name, np.random.default_rng(number))
    return names


def write_results(results: Path, name: str, random: np.random.Generator) -> None:
    """What the stages write about one variant, from random probabilities."""
    labels = (np.arange(IMAGES) % 3).astype(np.uint8)
    split = Split(np.zeros((IMAGES, 32, 32, 3), np.uint8), labels, CLASSES)
    seeds, rows, curves = {}, [], []
    for seed in (1, 2):
        logits = np.eye(3)[labels] + 2 * random.random((IMAGES, 3))
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        seeds[str(seed)] = describe(probabilities.astype(np.float32), split)
        for index, predicted in enumerate(probabilities.argmax(axis=1)):
            row = {"seed": seed, "index": index, "true": CLASSES[labels[index]]}
            rows.append(row | {"predicted": CLASSES[predicted]})
        for epoch in (1, 2, 3):
            loss = (seed + 0.5) / epoch
            curves.append({"seed": seed, "epoch": epoch, "loss": loss, "accuracy": epoch / 4})
    accuracies = [seed["accuracy"] for seed in seeds.values()]
    metrics = {key: seeds["1"][key] for key in ("accuracy_low", "accuracy_high", "loss")}
    metrics |= {"accuracy": np.mean(accuracies), "accuracy_std": np.std(accuracies), "seeds": 2}
    metrics |= {"calibration_error": seeds["1"]["calibration_error"], "parameters": 92_246}
    record = {"train_seconds": 60 * random.random(), "environment": [{"device": "<i>toy"}]}
    for kind, values in (
        ("metrics", metrics),
        ("runs", record),
        ("details", {"classes": CLASSES, "seeds": seeds}),
    ):
        write(results / kind / "toys" / f"{name}.json", json.dumps(values))
    write_csv(results / "predictions/toys" / f"{name}.csv", rows)
    write_csv(results / "curves/toys" / f"{name}.csv", curves)
    for kind in report.GALLERIES:
        path = results / "figures/toys" / f"{name}-{kind}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (31, 17)).save(path)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Writes a project of toy results in the current folder and a report of it; gives its page."""
    monkeypatch.chdir(tmp_path)

    def made(count: int, evaluated: int | None = None, arguments: tuple[str, ...] = ()) -> str:
        write_project(tmp_path, count, count if evaluated is None else evaluated)
        monkeypatch.setattr(sys, "argv", ["report", *arguments])
        report.main()
        return (tmp_path / "report/index.html").read_text()

    return made


def embedded(page: str, name: str) -> Any:
    """The JSON of a script element."""
    found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', page)
    assert found
    return json.loads(found[1])


def test_every_variant_has_a_line_and_its_parameters(make: Callable[..., str]) -> None:
    page = make(3, evaluated=2)
    assert re.findall(r'<td data-value="(toys-\d\d)">', page) == ["toys-00", "toys-01", "toys-02"]
    metrics = json.loads(Path("results/metrics/toys/toys-00.json").read_text())
    assert f'data-value="{metrics["accuracy"]}"' in page
    assert f"{metrics['accuracy']:.2%} ± {metrics['accuracy_std']:.2%}" in page
    assert page.count("<summary>toys-02, as params.yaml has it</summary>") == 1
    assert page.count("<summary>toys-02</summary>") == 0  # no record, no gallery
    assert page.count("<summary>toys-00</summary>") == 2


def test_the_page_asks_for_nothing_outside_of_its_folder(make: Callable[..., str]) -> None:
    page = make(2)
    wanted = re.findall(r'(?:src|href)="([^"#][^"]*)"', page)
    assert len(wanted) >= 2 * len(report.GALLERIES)
    for file in wanted:
        assert file == "data:," or Path("report", file).is_file(), file
    assert "@import" not in page
    assert "url(" not in page


def test_names_cannot_end_the_elements_they_stand_in(make: Callable[..., str]) -> None:
    page = make(1)
    assert "<b>frog" not in page
    assert "<i>toy" not in page and "&lt;i&gt;toy" in page
    values = embedded(page, "specs")["toys-classes"]["data"]["values"]
    assert [value["class"] for value in values] == list(CLASSES)


def test_there_is_a_chart_of_each_kind_with_all_variants(make: Callable[..., str]) -> None:
    specs = embedded(make(3), "specs")
    assert list(specs) == [f"toys-{name}" for name in CHARTS]
    for spec in specs.values():
        names = {value["variant"] for value in spec["data"]["values"]}
        assert names == {"toys-00", "toys-01", "toys-02"}
    curve = specs["toys-curves"]["data"]["values"]
    assert [v["value"] for v in curve if v["measure"].startswith("Training loss")][:3] == [
        2,
        1,
        0.66667,
    ]


def test_charts_have_the_numbers_of_the_results(make: Callable[..., str]) -> None:
    specs = embedded(make(1), "specs")
    shown = {name: specs[f"toys-{name}"]["data"]["values"] for name in CHARTS}
    details, record = (
        json.loads(Path(f"results/{kind}/toys/toys-00.json").read_text())
        for kind in ("details", "runs")
    )
    seeds = list(details["seeds"].values())
    recall = np.mean([[row["recall"] for row in seed["per_class"]] for seed in seeds], axis=0)
    assert [each["recall"] for each in shown["classes"]] == pytest.approx(recall, rel=1e-4)
    shares = {(each["true"], each["predicted"]): each["share"] for each in shown["confusion"]}
    for (i, j), count in np.ndenumerate(np.sum([seed["confusion"] for seed in seeds], axis=0)):
        share = count / (2 * IMAGES / 3)  # of the true class's images, in both seeds
        assert shares.get((CLASSES[i], CLASSES[j]), 0) == pytest.approx(share, rel=1e-4)
    bins = [b for b in seeds[0]["calibration"] if b["images"] >= charts.CALIBRATION_IMAGES]
    for key in ("accuracy", "confidence"):
        expected = [each[key] for each in bins]
        assert [each[key] for each in shown["calibration"]] == pytest.approx(expected, rel=1e-4)
    assert [each["cost"] for each in shown["time"]] == [record["train_seconds"]]
    assert [each["cost"] for each in shown["size"]] == [92_246]


def test_confusions_of_many_classes_are_the_most_frequent_ones(
    make: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(charts, "MANY_CLASSES", 2)
    monkeypatch.setattr(charts, "TOP_CONFUSIONS", 4)
    values = embedded(make(1), "specs")["toys-confusion"]["data"]["values"]
    assert 0 < len(values) <= 4
    assert all(value["true"] != value["predicted"] for value in values)
    shares = [value["share"] for value in values]
    assert shares == sorted(shares, reverse=True)


def test_each_variant_has_one_style_in_all_charts(make: Callable[..., str]) -> None:
    make(23)
    Path("results/details/toys/toys-07.json").unlink()
    report.main()
    specs = embedded(Path("report/index.html").read_text(), "specs")
    names = [f"toys-{number:02}" for number in range(23)]
    for name, kind in (
        ("curves", "strokeDash"),
        ("calibration", "strokeDash"),
        ("time", "shape"),
        ("size", "shape"),
    ):
        layer = next(each for each in specs[f"toys-{name}"]["layer"] if "params" in each)
        colour, style = layer["encoding"]["color"], layer["encoding"][kind]
        assert colour["scale"] == {"domain": names, "scheme": "tableau10"}
        assert style["scale"]["domain"] == names
        drawn = [json.dumps(each) for each in style["scale"]["range"]]
        assert len({(number % 10, each) for number, each in enumerate(drawn)}) == 23
        there = [each for each in names if each != "toys-07" or name != "calibration"]
        assert colour["legend"] == style["legend"]  # else there would be two
        assert colour["legend"]["values"] == there


def test_what_is_not_compared_is_told(make: Callable[..., str]) -> None:
    page = make(3)
    assert "With one seed each" not in page
    Path("results/predictions/toys/toys-01.csv").unlink()
    report.main()
    page = Path("report/index.html").read_text()
    assert "No predictions here, left out: toys-01." in page and "<td>toys-0" in page
    for path in Path("results/predictions/toys").iterdir():
        path.unlink()
    report.main()
    assert "Is the difference real?" not in Path("report/index.html").read_text()


def test_single_seeds_are_two_models_and_not_two_recipes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_project(tmp_path, 2, 2)
    results = Revision().results(["toys"])
    for result in results:
        found = result.predictions
        assert found is not None
        result.predictions = Predictions(found.images, found.right[:1])
    rows, note = report.comparisons(results, None)
    assert len(rows) == 1
    assert "With one seed each, two trained models are compared" in note


def test_the_best_variant_is_compared_with_each_other_one(make: Callable[..., str]) -> None:
    page = make(4)
    pairs = re.findall(r"<td>(toys-\d\d) against (toys-\d\d)</td>", page)
    accuracy = {
        path.stem: json.loads(path.read_text())["accuracy"]
        for path in Path("results/metrics/toys").iterdir()
    }
    best = max(accuracy, key=accuracy.__getitem__)
    assert [a for a, _ in pairs] == [best] * 3
    assert {b for _, b in pairs} == accuracy.keys() - {best}
    rows, _ = report.comparisons(Revision().results(["toys"]), None)
    for row in rows:
        assert f"{100 * row['low']:+.2f} to {100 * row['high']:+.2f}" in page
    assert "corrected for the number of comparisons, 3." in page


@pytest.mark.parametrize("others, verdict", [(2, "better"), (3, "no evidence of a difference")])
def test_a_verdict_counts_all_variants_that_the_best_is_compared_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: int, verdict: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_project(tmp_path, 1 + others, 1 + others)
    results, i = Revision().results(["toys"]), np.arange(60)
    found = [i < 50, (i < 41) | (i == 50), *[i < 50] * (others - 1)]
    for result, right in zip(results, found, strict=True):
        result.metrics = {"accuracy": right.mean()}
        result.predictions = Predictions(tuple((n, "cat") for n in range(60)), right[None])
    rows, _ = report.comparisons(results, None)
    (row,) = (row for row in rows if row["difference"] > 0)
    assert row["p"] == pytest.approx(22 / 1024)  # below 1/20 if doubled, not if tripled
    assert row["verdict"] == verdict


@pytest.mark.parametrize("folder", ["results", ".", "..", "params.yaml"])
def test_a_report_takes_the_place_of_nothing_else(make: Callable[..., str], folder: str) -> None:
    make(1)
    before = sorted(Path().rglob("*"))
    with pytest.raises(StageError, match=r"--out must be a new folder.*Received: "):
        make(1, arguments=("--out", folder))
    assert sorted(Path().rglob("*")) == before


def test_a_report_takes_the_place_of_an_older_one(make: Callable[..., str]) -> None:
    make(2)
    assert "toys-01" not in make(1)


def test_an_epoch_that_has_no_number_is_left_out(
    make: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make(1)
    path = Path("results/curves/toys/toys-00.csv")
    path.write_text(
        path.read_text().replace("1,2,0.75,", "1,2,nan,").replace("2,2,1.25,", "2,2,inf,")
    )
    monkeypatch.setattr(sys, "argv", ["report"])
    report.main()
    values = embedded(Path("report/index.html").read_text(), "specs")["toys-curves"]["data"][
        "values"
    ]
    losses = {each["epoch"]: each["value"] for each in values if "loss" in each["measure"]}
    assert losses == {1: 2, 3: pytest.approx(2 / 3, abs=1e-3)}


def test_images_are_shown_in_their_own_size(make: Callable[..., str]) -> None:
    page = make(1)
    assert page.count('width="31" height="17"') == len(report.GALLERIES)


def test_a_damaged_figure_is_an_error_that_names_it(make: Callable[..., str]) -> None:
    make(1)
    path = Path(f"results/figures/toys/toys-00-{report.GALLERIES[0]}.png")
    path.write_bytes(b"no image")
    with pytest.raises(StageError, match=f"{path} must be an image"):
        report.main()


def test_without_results_there_is_no_report(make: Callable[..., str]) -> None:
    with pytest.raises(StageError, match="no results to report yet"):
        make(2, evaluated=0)
    assert not Path("report").exists()


@pytest.mark.parametrize("kind", ["predictions/toys/toys-01.csv", "details/toys/toys-01.json"])
def test_files_of_another_run_than_the_metrics_are_noticed(
    make: Callable[..., str], kind: str
) -> None:
    make(2)
    other = kind.replace("01", "00")
    Path("results", kind).write_bytes(Path("results", other).read_bytes())
    with pytest.raises(StageError, match=r"toys-01.* must be of the run that .*`dvc checkout`"):
        report.main()


@pytest.fixture(scope="module")
def branches(clone: Path) -> Path:
    """A clone of the project in which two branches have other results and another recipe."""
    git = ("git", "-C", str(clone))
    params = (clone / "params.yaml").read_text()
    for number, branch in enumerate(("main", "longer", "longest")):
        subprocess.run([*git, "checkout", "-q", "-B", branch], check=True)
        changed, found = re.subn(r"(\n  demo:.*\n    epochs:) 6", rf"\1 {6 + number}", params)
        assert found == 1
        (clone / "params.yaml").write_text(changed)
        write_results(clone / "results", "toy", np.random.default_rng(number))
        for kind, suffix in (("metrics", ".json"), ("curves", ".csv"), ("runs", ".json")):
            source = clone / "results" / kind / "toys" / f"toy{suffix}"
            target = clone / "results" / kind / "shapes" / f"shapes-lenet{suffix}"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
        shutil.rmtree(clone / "results/figures/toys")
        figure = clone / "results/figures/shapes/shapes-lenet-confusion.png"
        figure.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20 + number, 10)).save(figure)
        subprocess.run([*git, "add", "-f", "results/metrics", "params.yaml"], check=True)
        small = ("results/curves", "results/runs", "results/figures")
        subprocess.run([*git, "add", "-f", *small], check=True)
        subprocess.run([*git, "commit", "-q", "-m", branch], check=True)
    return clone


def test_branches_stand_side_by_side(branches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(branches)
    monkeypatch.setattr(sys, "argv", ["report", "shapes", "--revs", "main", "longer", "longest"])
    report.main()
    page = Path("report/index.html").read_text()
    flat = embedded(page, "flat")
    epochs = [flat[f"shapes-lenet ({name})"]["recipe.epochs"] for name in ("main", "longer")]
    assert epochs == ["6", "7"]
    curves = embedded(page, "specs")["shapes-curves"]
    assert {value["revision"] for value in curves["data"]["values"]} == {
        "main",
        "longer",
        "longest",
    }
    assert curves["layer"][0]["encoding"]["strokeDash"]["field"] == "revision"
    assert page.count('<td data-value="longest">') == 4
    figures = re.findall(r'src="(figures/[^"]*)"', page)
    sizes = []
    for each in figures:
        with Image.open(Path("report", each)) as image:
            sizes.append(image.size)
    assert sizes == [(20, 10), (21, 10), (22, 10)]


def test_revisions_are_compared_where_images_are_the_same_and_predictions_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_project(tmp_path, 1, 1)
    results = []
    for name in ("main", "alike", "better", "other"):
        (result,) = Revision(name).results(["toys"])
        found = result.predictions
        assert found is not None
        if name == "better":
            found = Predictions(found.images, np.ones_like(found.right))
        if name == "other":
            found = Predictions(found.images[::-1], found.right)
        result.predictions = found
        results.append(result)
    rows, note = report.comparisons(results, results[0].revision)
    assert [(row["a"], row["b"]) for row in rows] == [("toys-00 (better)", "toys-00 (main)")]
    assert "number of comparisons, 1." in note
    assert "The same images correct: toys-00 (alike)." in note
    assert "Other test images, not compared: toys-00 (other)." in note
    results[0].predictions = None
    assert report.comparisons(results, results[0].revision) == (
        [],
        "No predictions here, left out: toys-00 (main).",
    )
    rows, note = report.comparisons(results[1:2] + results[3:], results[1].revision)
    assert (rows, note) == ([], "Other test images, not compared: toys-00 (other).")


def test_an_unknown_revision_is_refused(branches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(branches)
    monkeypatch.setattr(sys, "argv", ["report", "--revs", "nowhere"])
    with pytest.raises(StageError, match="Received: 'nowhere'"):
        report.main()


# In a browser


@pytest.fixture
def browser() -> Iterator[Any]:
    """Chromium without a window, and without a network."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("needs Chromium and its driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--host-resolver-rules=MAP * ~NOTFOUND",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=Service(driver))
    yield opened
    opened.quit()


def open_report(browser: Any, width: int = 1280) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(Path("report/index.html").resolve().as_uri())
    drawn = "return [...document.querySelectorAll('.chart')].every((c) => c.querySelector('svg'))"
    WebDriverWait(browser, 60).until(lambda driver: driver.execute_script(drawn))


def column(browser: Any, number: int) -> list[str]:
    cells = f"table.sortable tbody td:nth-child({number})"
    script = f"return [...document.querySelectorAll('{cells}')].map((c) => c.dataset.value)"
    found: list[str] = browser.execute_script(script)
    return found


@pytest.mark.browser
@pytest.mark.parametrize("count", [1, 60])
def test_every_chart_is_drawn_and_labelled(
    make: Callable[..., str], browser: Any, count: int
) -> None:
    make(count)
    open_report(browser)
    for name in CHARTS:
        svg = f"document.querySelector('#toys-{name} svg')"
        marks = "[class*=mark-line] path, [class*=mark-rect] path, [class*=mark-symbol] path"
        assert browser.execute_script(f"return {svg}.querySelectorAll('{marks}').length"), name
        titles = f"return [...{svg}.querySelectorAll('.role-axis-title')].map((t) => t.textContent)"
        assert len(browser.execute_script(titles)) >= 2, name
    said = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert said == []
    took = "const t = performance.timing; return t.loadEventEnd - t.navigationStart"
    print(f"{count} variants: loaded in {browser.execute_script(took)} ms")


@pytest.mark.browser
def test_a_touch_tells_the_values_of_the_epoch_that_is_touched(
    make: Callable[..., str], browser: Any
) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.support.ui import WebDriverWait

    make(1)
    open_report(browser)
    points = browser.find_elements("css selector", "#toys-curves .mark-symbol path[opacity='0']")
    assert len(points) == 3
    script = "return document.getElementById('vg-tooltip-element')?.innerText ?? ''"

    def tells(text: str) -> Any:
        return lambda driver: text in " ".join(driver.execute_script(script).split())

    for epoch, point in enumerate(points, 1):
        ActionChains(browser).move_to_element(point).perform()
        WebDriverWait(browser, 30).until(tells(f"epoch {epoch} value {epoch / 4:g}"))


@pytest.mark.browser
def test_without_vega_js_the_rest_of_the_page_works(make: Callable[..., str], browser: Any) -> None:
    make(2)
    Path("report/vega.js").unlink()
    browser.get(Path("report/index.html").resolve().as_uri())
    assert "vega.js beside this page" in browser.find_element("id", "toys-curves").text
    browser.find_element("css selector", "table.sortable th button").click()
    assert browser.find_element("css selector", "th[aria-sort=ascending]").text
    assert "recipe.augmentation" in browser.find_element("id", "differences").text


@pytest.mark.browser
@pytest.mark.parametrize("count", [1, 60])
@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_is_wider_than_the_window(
    make: Callable[..., str], browser: Any, width: int, count: int
) -> None:
    make(count)
    open_report(browser, width)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


@pytest.mark.browser
def test_the_table_sorts_by_the_keyboard(make: Callable[..., str], browser: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    make(12, evaluated=10)
    open_report(browser)
    button = browser.find_elements("css selector", "table.sortable th button")[1]
    assert button.text == "accuracy"
    for reverse in (False, True):
        button.send_keys(Keys.ENTER)
        values = column(browser, 2)
        assert values[10:] == ["", ""]
        numbers = [float(value) for value in values[:10]]
        assert numbers == sorted(numbers, reverse=reverse)
        assert len(set(numbers)) > 1


@pytest.mark.browser
def test_what_differs_between_two_variants_is_listed(
    make: Callable[..., str], browser: Any
) -> None:
    from selenium.webdriver.support.ui import Select

    make(3)
    open_report(browser)
    body = browser.find_element("css selector", "#differences tbody")
    assert "recipe.augmentation.horizontal_flip" in body.text  # the first two, as it opens
    Select(browser.find_element("id", "other")).select_by_value("toys-02")
    assert body.text == "Nothing differs."


@pytest.mark.browser
def test_dvc_plots_are_drawn_without_a_network(branches: Path, browser: Any) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    subprocess.run([sys.executable, "-m", "tools.plots_page"], cwd=branches, check=True)
    command = "dvc plots diff main longest --targets results/curves/shapes/shapes-lenet.csv"
    result = subprocess.run(command.split(), cwd=branches, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    browser.get((branches / "dvc_plots/index.html").as_uri())
    marks = "return document.querySelectorAll('.marks path').length"
    WebDriverWait(browser, 60).until(lambda driver: driver.execute_script(marks) > 0)
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
