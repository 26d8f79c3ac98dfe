"""The report of a run: its parts, its numbers, what it says is missing, and that names of users stay text."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from lifelines import CoxPHFitter
from lifelines.statistics import multivariate_logrank_test
from matplotlib.figure import Figure

from disentangled_mil.cli import main
from disentangled_mil.report import write_report
from disentangled_mil.report.overview import summary
from disentangled_mil.report.run_files import read_run
from disentangled_mil.tasks import Classification
from tests.support.html import Page, content
from tests.support.runs import ALL, Fold, class_folds, classification_run, survival_folds, survival_run, write_run

PARTS = ["run", "quality", "gains"]
CLASSES = ("<b>benign</b>", "$x_1$ & y", "肿瘤")


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """A classification whose names of classes, patients and files are markup."""
    first, second = class_folds(CLASSES)
    first = first._replace(patients=["<script>alert(1)</script>", *first.patients[1:]])
    command = ("python", "-m", "disentangled_mil", "train", "--out", "a b</td>")
    return write_run(
        tmp_path_factory.mktemp("classes") / "run", Classification(CLASSES), [first, second], command=command
    )


@pytest.fixture(scope="module")
def survival(tmp_path_factory):
    return survival_run(tmp_path_factory.mktemp("survival") / "run")


def test_a_report_of_classes_has_its_parts_and_every_link_leads_to_one(classes):
    page = Page(classes / "report.html")
    assert list(page.text)[1:] == [*PARTS, "roc", "calibration", "errors", "training", "maps"]
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert len(page.images["roc"]) == len(CLASSES)
    assert len(page.images["calibration"]) == len(ALL)


def test_the_legend_of_the_loss_explains_its_jump(classes):
    text = Page(classes / "report.html").text["training"]
    assert "The loss of a distilled student jumps where distillation begins" in text


@pytest.mark.parametrize(("linear", "named"), [(0.9, True), (0.7, False), (None, False)])
def test_the_headline_names_a_linear_model_that_is_better(tmp_path, linear, named):
    run = classification_run(tmp_path / "run")
    path = run / "metrics.json"
    metrics = json.loads(path.read_text())
    models = metrics["gains"]["test"]["models"]
    models["distilled"] |= {"value": 0.8, "low": 0.7, "high": 0.9}
    models["linear"] |= {"value": linear, "low": 0.6, "high": 0.95}
    path.write_text(json.dumps(metrics))
    text = Page(write_report(run, overwrite=True)).text[""]
    assert "The distilled student (slides) has AUC 0.800 [0.700, 0.900] over 48 patients." in text
    assert ("The linear model (slides) has the better value: 0.900 [0.600, 0.950]." in text) == named


def test_a_headline_of_an_error_names_a_linear_model_with_less(tmp_path, monkeypatch):
    run = classification_run(tmp_path / "run")
    files = read_run(run)
    monkeypatch.setattr(files.kind, "errors", frozenset({"auc"}))
    models = files.metrics["gains"]["test"]["models"]
    models["distilled"]["value"], models["linear"]["value"] = 0.8, 0.7
    assert "linear model (slides) has the better value" in summary(files)[0]
    models["linear"]["value"] = 0.9
    assert "linear model" not in summary(files)[0]


def test_a_report_of_survival_has_its_parts(survival):
    page = Page(survival / "report.html")
    assert list(page.text)[1:] == [*PARTS, "survival", "calibration", "errors", "training", "maps"]
    assert len(page.images["survival"]) == len(page.images["calibration"]) == len(ALL)
    assert "median risk of the test patients of each fold" in page.text["survival"]
    assert "The horizon of each fold is 60, 60 (time_column)" in page.text["calibration"]


@pytest.mark.parametrize("run", ["classes", "survival"])
def test_the_page_needs_no_network_and_runs_no_script(run, request):
    path = request.getfixturevalue(run) / "report.html"
    page = Page(path)
    assert not page.tags & {"script", "link", "iframe", "object"}
    assert "default-src 'none'" in path.read_text()
    assert not re.search(r"(?:src|href)=\"(?!#|data:)", path.read_text())
    for alt, address in (image for images in page.images.values() for image in images):
        assert alt
        ElementTree.fromstring(content(address))


def test_names_of_users_are_text(classes):
    page = Page(classes / "report.html")
    assert "b" not in page.tags
    assert "'a b</td>'" in page.text["run"]
    assert any(CLASSES[1] in row for row in page.rows["errors"])
    drawn = b"".join(content(address) for _, address in page.images["roc"])
    assert "script" not in drawn.decode()


def test_the_command_writes_the_same_page_again(classes, tmp_path, capsys):
    again = tmp_path / "again.html"
    assert main(["report", str(classes), "--out", str(again)]) == 0
    assert capsys.readouterr().out == f"report -> {again}\n"
    assert again.read_bytes() == (classes / "report.html").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["again.html"]


def test_a_folder_without_a_finished_run_is_refused(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    message = f"error: {tmp_path}: must be the folder of a finished run, but it has no metrics.json\n"
    assert capsys.readouterr().err == message


def test_no_file_of_the_run_is_overwritten(classes):
    before = (classes / "metrics.json").read_bytes()
    with pytest.raises(ValueError, match=r"metrics\.json: a report must end in \.html, got 'metrics\.json'"):
        write_report(classes, classes / "metrics.json")
    assert (classes / "metrics.json").read_bytes() == before


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
def test_no_file_of_the_run_is_overwritten_under_another_name(classes, tmp_path, link):
    before = (classes / "metrics.json").read_bytes()
    link(tmp_path / "page.html", classes / "metrics.json")
    with pytest.raises(ValueError, match=r"page\.html: must be another file than .*metrics\.json, which is read"):
        write_report(classes, tmp_path / "page.html", overwrite=True)
    assert (classes / "metrics.json").read_bytes() == before


def test_names_that_a_spreadsheet_would_run_come_back_as_they_were(tmp_path):
    folds = class_folds(["+", "-", "=A1"], folds=1)
    folds[0].patients[0] = "@SUM(A1)"
    run = write_run(tmp_path / "run", Classification(["+", "-", "=A1"]), folds)
    written = (run / "predictions.csv").read_text()
    assert "'@SUM(A1)," in written
    assert ",'=A1" in written
    predictions = read_run(run).predictions
    assert set(predictions["label"]) == {"+", "-", "=A1"}
    assert "@SUM(A1)" in set(predictions["patient"])
    assert "probability_=A1" in predictions


def test_a_page_elsewhere_is_replaced_on_demand_only(classes, tmp_path, capsys):
    page = tmp_path / "page.html"
    page.write_text("precious")
    assert main(["report", str(classes), "--out", str(page)]) == 2
    assert "page.html: is there already; name another file, or replace it by --overwrite" in capsys.readouterr().err
    assert page.read_text() == "precious"
    assert main(["report", str(classes), "--out", str(page), "--overwrite"]) == 0
    assert page.read_text() != "precious"


def test_metrics_and_intervals_are_those_of_the_run(classes):
    page = Page(classes / "report.html")
    written = json.loads((classes / "metrics.json").read_text())
    models = written["gains"]["test"]["models"]
    shown = {row[0]: row[1] for row in page.rows["quality"] if len(row) == 2}
    for name, model in (("linear model (slides)", "linear"), ("SNN (genes)", "genes")):
        auc = np.mean([split[model]["test"]["auc"] for split in written["splits"]])
        assert models[model]["value"] == pytest.approx(auc)
        assert shown[name] == f"{auc:.3f} [{models[model]['low']:.3f}, {models[model]['high']:.3f}]"
        assert models[model]["low"] <= auc <= models[model]["high"]
    assert shown["chance"] == "0.500"
    assert f"{models['distilled']['value']:.3f}" in page.text[""]


def test_wrong_predictions_are_listed_with_the_largest_error_first(classes):
    page = Page(classes / "report.html")
    table = pd.read_csv(classes / "predictions.csv")
    table = table[table["model"] == "distilled"]
    wrong = table[table["predicted"] != table["label"]]
    rows = [row for row in page.rows["errors"] if len(row) == 6 and row[0] in set(wrong["patient"])]
    assert len(rows) == len(wrong)
    errors = [float(row[3]) - float(row[4]) for row in rows]
    assert errors == sorted(errors, reverse=True) or np.diff(errors).max() < 0.02  # rounded to two digits
    right = f"{len(table) - len(wrong)} of {len(table)} predictions are right"
    assert right in page.text["errors"]
    confusion = {row[0]: row[1:-1] for row in page.rows["errors"] if row[0] in CLASSES and len(row) == 5}
    assert sum(int(confusion[name][k]) for k, name in enumerate(CLASSES)) == len(table) - len(wrong)


def test_calibration_error_is_the_mean_distance_over_patients(tmp_path):
    """Two patients in one group, at probabilities 0.9 and 0.8 of a group up to 1 and one up to 0.9."""
    folds = [Fold(["P0", "P1", "P2", "P3"], {"label": ["A", "B", "A", "B"]})]
    run = write_run(tmp_path / "run", Classification(["A", "B"]), folds, models=["student"])
    table = pd.read_csv(run / "predictions.csv", dtype=str)
    table["probability_A"], table["probability_B"] = ["0.95", "0.95", "0.85", "0.25"], ["0.05", "0.05", "0.15", "0.75"]
    table["predicted"] = ["A", "A", "A", "B"]
    table.to_csv(run / "predictions.csv", index=False)
    ((alt, _),) = Page(write_report(run)).images["calibration"]
    assert alt.endswith(f"ECE {(2 * abs(0.5 - 0.95) + (1 - 0.85) + (1 - 0.75)) / 4:.3f}")


def test_hazard_ratio_and_log_rank_are_those_of_groups_split_in_each_fold(survival):
    table = pd.read_csv(survival / "predictions.csv")
    table = table[table["model"] == "linear"]
    table["high"] = table["risk"] > table.groupby("fold")["risk"].transform("median")
    p = multivariate_logrank_test(table["time"], table["high"], table["event"]).p_value
    ratio = CoxPHFitter().fit(table[["time", "event", "high"]].astype(float), "time", "event").hazard_ratios_["high"]
    alt, _ = Page(survival / "report.html").images["survival"][0]
    assert f"HR {ratio:.2f} [" in alt
    assert alt.endswith(f"log-rank p = {p:.3f}" if p >= 0.001 else "p < 0.001")
    assert "low risk: 24 patients" in alt


def test_wrong_pairs_are_those_that_the_concordance_index_counts(tmp_path):
    run = survival_run(tmp_path / "run", survival_folds(folds=1, size=12), models=["student"])
    metrics = json.loads((run / "metrics.json").read_text())["splits"][0]["student"]["test"]
    pairs = [row[4].split(" of ") for row in Page(run / "report.html").rows["errors"] if " of " in row[-2]]
    assert sum(int(wrong) for wrong, _ in pairs) == 2 * metrics["discordant"]


def test_what_is_missing_is_said(tmp_path):
    run = survival_run(tmp_path / "run", models=["linear", "student"])
    for path in [*run.glob("fold*/*.csv"), *run.glob("fold*/*.json")]:
        path.unlink()
    page = Page(write_report(run))
    assert "No student was distilled in this run." in page.text["gains"]
    assert "no: interval not above 0" in page.text["gains"]
    assert "There is no calibration, because no checkpoint in" in page.text["calibration"]
    assert page.text["training"].count("The run folder has no logs") == 1
    assert "There are no maps of slides" in page.text["maps"]


@pytest.mark.parametrize("make", [classification_run, survival_run])
def test_a_student_that_some_folds_do_not_have_is_named_with_its_patients(tmp_path, make):
    page = Page(write_report(make(tmp_path / "run", declined=[0])))
    name = "distilled student (slides), 24 of 48 patients"
    for section in ("quality", "calibration"):
        assert name in page.text[section], section
    assert "not trained in every fold" in page.text["quality"]
    assert "teacher (slides + genes), " not in page.text["quality"]


def test_the_command_for_maps_names_one_student(tmp_path):
    run = classification_run(tmp_path / "run", models=["student"])
    told = Page(write_report(run)).text["maps"]
    assert f"explain {run / 'fold0' / 'student.json'} --out {run / 'maps'} MAGNIFICATION=FOLDER" in told
    (run / "final").mkdir()
    assert f"explain {run} MAGNIFICATION=FOLDER" in Page(write_report(run)).text["maps"]


def test_missing_columns_of_the_logs_are_said(tmp_path):
    run = classification_run(tmp_path / "run", models=["student"])
    for path in run.glob("fold*/student.csv"):
        path.write_text("epoch,learning_rate,loss,task\n1,0.1,0.5,0.5\n")
    page = Page(write_report(run))
    assert len(page.images["training"]) == 1
    for topic in ("Distillation", "Consistency of magnifications", "Conflicts of the subspaces", "Cosine"):
        assert re.search(f"{topic}[a-z ]*: not shown, because", page.text["training"])


def test_topics_of_teachers_are_missing_because_there_is_none(tmp_path):
    page = Page(classification_run(tmp_path / "run", models=["student"]) / "report.html")
    for path in (tmp_path / "run").glob("fold*/student.csv"):
        path.write_text("epoch,learning_rate,loss,task\n1,0.1,0.5,0.5\n")
    page = Page(write_report(tmp_path / "run"))
    assert page.text["training"].count("not shown, because no teacher was trained.") == 3


def test_a_page_fits_a_phone_a_dark_screen_and_paper(classes):
    """What was seen in Chromium at 390 pixels and on paper; a test without a browser can only find the rules."""
    style = (classes / "report.html").read_text().partition("<style>")[2].partition("</style>")[0]
    for rule in ("prefers-color-scheme: dark", "max-width: 40rem", "@page", "details::details-content", "overflow-x"):
        assert rule in style
    # Colors outside of the two palettes would not follow the dark screen.
    rest = style.split("body {", 1)[1]
    assert set(re.findall(r"#[0-9a-f]{3,6}\b", rest)) == {"#e69f00"}


def test_every_test_set_is_shown_of_a_run_with_one_split(tmp_path):
    run = write_run(
        tmp_path / "run",
        Classification(["A", "B"]),
        class_folds("AB", folds=1),
        tests=("internal", "external"),
        models=["student"],
    )
    page = Page(run / "report.html")
    for part in ("", "roc", "calibration", "errors"):
        assert "Test set internal: " in page.text[part]
        assert "Test set external: " in page.text[part]
    # Two classes have one curve, because the other is its mirror image.
    assert len(page.images["roc"]) == 2
    assert "held-out patients of the hospital" in page.text["run"]


def test_metrics_without_a_value_are_a_dash_with_a_reason(tmp_path):
    patients, labels = [f"P{row}" for row in range(8)], {"label": ["A"] * 8}
    run = write_run(tmp_path / "run", Classification(["A", "B"]), [Fold(patients, labels)], models=["student"])
    page = Page(run / "report.html")
    assert ["student from scratch (slides)", "– [–, –]"] in page.rows["quality"]
    assert "all patients of a test set have one class" in page.text["quality"]
    assert "All patients have one class, so there is no ROC curve." in page.text["roc"]
    labels = {"time": [5.0] * 8, "event": [False] * 8}
    page = Page(survival_run(tmp_path / "survival", [Fold(patients, labels)], models=["student"]) / "report.html")
    assert "no event was observed" in page.text["quality"]
    assert "no hazard ratio: a half has no event" in page.images["survival"][0][0]


def test_maps_of_the_run_and_its_splits_are_within_the_page(tmp_path):
    run = classification_run(tmp_path / "run", models=["student"])
    for place in (run / "prototypes.png", run / "maps" / "a<i>.png", run / "fold1" / "maps" / "deep" / "b.png"):
        place.parent.mkdir(parents=True, exist_ok=True)
        Figure(figsize=(1, 1)).savefig(place)
    page = Page(write_report(run))
    assert [alt for alt, _ in page.images["maps"]] == [
        "picture prototypes.png",
        "picture maps/a<i>.png",
        "picture fold1/maps/deep/b.png",
    ]
    assert content(page.images["maps"][1][1]) == (run / "maps" / "a<i>.png").read_bytes()
    assert "a<i>" in page.text["maps"]
    for number in range(30):
        (run / "maps" / f"slide{number}.png").write_bytes(b"png")
    page = Page(write_report(run))
    assert len(page.images["maps"]) == 25
    assert "The first 24 of 32 are shown." in page.text["maps"]


def test_maps_of_another_folder_are_within_the_page_and_never_replaced(tmp_path, capsys):
    run, maps = classification_run(tmp_path / "run", models=["student"]), tmp_path / "others"
    assert main(["report", str(run), "--maps", str(maps)]) == 2
    assert f"{maps}: must hold pictures of maps (.png)" in capsys.readouterr().err
    maps.mkdir()
    Figure(figsize=(1, 1)).savefig(maps / "slide.png")
    (maps / "folder.png").mkdir()
    (maps / "link.png").symlink_to("nowhere")
    assert main(["report", str(run), "--maps", str(maps)]) == 0
    assert [alt for alt, _ in Page(run / "report.html").images["maps"]] == ["picture slide.png"]
    (tmp_path / "page.html").hardlink_to(maps / "slide.png")
    with pytest.raises(ValueError, match=r"page\.html: must be another file than .*slide\.png, which is read"):
        write_report(run, tmp_path / "page.html", maps=maps, overwrite=True)


def test_a_class_called_na_is_a_class(tmp_path):
    page = Page(classification_run(tmp_path / "run", ["NA", "01"], models=["student"]) / "report.html")
    assert {"NA", "01"} <= {row[0] for row in page.rows["errors"]}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metrics.json", "{", "metrics.json: must hold the metrics of the finished run: "),
        ("metrics.json", "[]", "metrics.json: must hold the metrics of the finished run, got []"),
        ("metrics.json", '{"splits": []}', "metrics.json: must hold the metrics of a finished run, got no 'tests'"),
        ("run.json", "{}", "run.json: must name a kind of task, one of classification, survival"),
        ("predictions.csv", "", "predictions.csv: must be a table of predictions"),
        ("predictions.csv", "model,test\na,b\n", "predictions.csv: must be a table of predictions, got no column"),
        (
            "predictions.csv",
            "model,test,patient,label\n",
            "predictions.csv: must be a table of predictions, got no row",
        ),
    ],
)
def test_a_damaged_file_is_named_and_the_old_report_stays(tmp_path, name, text, message):
    run = write_run(tmp_path / "run", Classification(["A", "B"]), class_folds("AB", folds=1), models=["student"])
    before = (run / "report.html").read_bytes()
    (run / name).write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        write_report(run)
    assert (run / "report.html").read_bytes() == before
