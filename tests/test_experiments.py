"""The experiments: declarations, one small experiment from end to end, and the parts that they share."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks.experiments import __main__ as command
from benchmarks.experiments import bootstrap, changes, cohorts, figures, runs, schedule, summary, tables, targets
from benchmarks.experiments.catalog import EXPERIMENTS
from benchmarks.experiments.experiment import Case, Experiment, Outcome, Trial, Variant
from benchmarks.experiments.linear import Linear
from benchmarks.experiments.measures import attention_entropy, confidences, conflicts, subspaces_apart
from benchmarks.experiments.networks import MeanPool, Network
from benchmarks.experiments.training import Training
from benchmarks.experiments.variants import CROSS_FITTED
from disentangled_mil.losses import DistillationTargets
from disentangled_mil.metrics import classification_metrics, survival_metrics
from disentangled_mil.train import MODELS, TrainingOptions, out_of_fold
from disentangled_mil.train.bag_cache import BagCache
from disentangled_mil.train.linear import GENES, SLIDES
from tests.support.training import OPTIONS, small_split

CASE = Case("tiny", "grading")
PLANNED = [(e, v) for e in EXPERIMENTS.values() for v in e.variants]
# Linear models, because most tests are not about the training.
ON_SLIDES, ON_GENES = Variant("on slides", Linear((SLIDES,))), Variant("on genes", Linear((GENES,)))
TINY = Experiment("tiny", "Is it tiny?", "It is small.", (CASE,), (ON_SLIDES, ON_GENES), "on slides", seeds=(0, 1))


@pytest.fixture(autouse=True)
def tiny(monkeypatch, tmp_path):
    """One small experiment on one small planted cohort of one fold."""
    source = cohorts.Source(("grading",), 1, lambda task, seed, fold: small_split(), replace(OPTIONS, epochs=2))
    monkeypatch.setitem(cohorts.COHORTS, "tiny", source)
    monkeypatch.setitem(EXPERIMENTS, "tiny", TINY)
    monkeypatch.setattr(bootstrap, "RESAMPLES", 50)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def run(folder: Path, *arguments: str) -> int:
    places = [f"--{name}={folder / name}" for name in ("runs", "summaries", "figures")]
    return command.main(["tiny", "--jobs", "1", *places, *arguments])


def times(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("seed*.json")}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_declaration_names_what_exists(name):
    experiment = EXPERIMENTS[name]
    names = [variant.name for variant in experiment.variants]
    assert len(set(names)) == len(names)
    assert {experiment.reference, *(row for pair in experiment.pairs for row in pair)} <= set(names)
    assert experiment.figure in figures.DRAWINGS
    assert len(experiment.purpose.split()) > 20
    for case in experiment.cases:
        assert case.task in cohorts.COHORTS[case.cohort].tasks
        assert experiment.reference in [variant.name for variant in experiment.variants_of(case)]
    for variant in experiment.variants:
        assert set(variant.cohorts) <= set(cohorts.COHORTS)
        assert any(variant.fits(case) for case in experiment.cases)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_variants_have_options_and_models_that_exist(name):
    for variant in EXPERIMENTS[name].variants:
        settings = json.loads(json.dumps(runs.settings_of(variant, TrainingOptions())))
        assert settings["method"]["is"] == type(variant.method).__name__
        if isinstance(variant.method, Training):
            assert replace(TrainingOptions(), **variant.method.options)
            assert set(variant.method.models) <= set(MODELS)


def test_variants_of_one_name_are_one_variant_with_one_folder():
    settings, folders = {}, {}
    for _, variant in PLANNED:
        known = settings.setdefault(variant.name, runs.settings_of(variant, TrainingOptions()))
        assert known == runs.settings_of(variant, TrainingOptions())
        folders[runs.path_of(Path(), variant, CASE, 0, 0)] = variant.name
    assert len(folders) == len(settings)


@pytest.mark.parametrize("name", [path.stem for path in cohorts.DESCRIPTIONS.glob("*.toml")])
def test_every_description_is_a_cohort_with_its_tasks(name):
    text = (cohorts.DESCRIPTIONS / f"{name}.toml").read_text(encoding="utf-8")
    assert all(f"[tasks.{task}]" in text for task in cohorts.COHORTS[name.removesuffix("_tiles")].tasks)


def test_an_experiment_runs_resumes_and_writes_summary_table_and_figure(tmp_path, capsys):
    assert run(tmp_path, "--seeds", "0") == 0
    printed = capsys.readouterr()
    assert "Stored: 2 of 4 runs, seeds 0. 2 runs are open, so the numbers are preliminary." in printed.out
    assert "| variant | AUC / accuracy | difference from on slides |" in printed.out
    assert "2 runs of unknown time" in printed.err
    first = times(tmp_path)
    assert set(first) == {f"runs/tiny-grading/{name}/seed0-fold0.json" for name in ("on-slides", "on-genes")}
    assert "<svg" in (tmp_path / "figures" / "tiny.svg").read_text()
    assert not list(tmp_path.rglob("scratch/tiny*"))

    (tmp_path / "runs/tiny-grading/on-genes/seed0-fold0.json").unlink()
    assert run(tmp_path) == 0
    assert "Stored: 4 of 4 runs, seeds 0, 1." in capsys.readouterr().out
    second = times(tmp_path)
    assert len(second) == 4
    kept = "runs/tiny-grading/on-slides/seed0-fold0.json"
    assert second[kept] == first[kept]

    table, figure = (tmp_path / "summaries/tiny.json").read_text(), (tmp_path / "figures/tiny.svg").read_text()
    assert run(tmp_path, "--table") == 0
    assert times(tmp_path) == second
    assert (tmp_path / "summaries/tiny.json").read_text() == table
    assert (tmp_path / "figures/tiny.svg").read_text() == figure


def test_only_chosen_variants_run(tmp_path, capsys):
    assert run(tmp_path, "--seeds", "0", "--variant", "on genes") == 0
    assert list(times(tmp_path)) == ["runs/tiny-grading/on-genes/seed0-fold0.json"]
    assert "Stored: 1 of 4 runs" in capsys.readouterr().out
    assert run(tmp_path, "--variant", "on both") == 2
    assert "--variant must be some of 'on slides', 'on genes', got 'on both'" in capsys.readouterr().err


def work_done(trial: Trial) -> Outcome:
    """Who did the work, and with what number of threads."""
    patients = len(trial.split.train.patients)
    return Outcome({}, pd.DataFrame(), {"process": os.getpid(), "threads": torch.get_num_threads(), "size": patients})


def test_processes_share_the_trials_with_one_thread_each(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # so that it is restored
    # Processes that start anew do not know the tiny cohort.
    case = Case("planted", "diagnosis")
    experiment = replace(TINY, cases=(case,), variants=(Variant("work", work_done),), reference="work")
    plan = schedule.Plan(experiment, tmp_path, (0, 1), (case,))
    schedule.run_missing(plan, processes=2)
    found = [job.stored().measures for job in plan.jobs()]
    assert len(found) == 2
    for measures in found:
        assert measures["process"] != os.getpid()
        assert measures["threads"] == 1
        assert measures["size"] == 160


def test_a_run_holds_what_its_numbers_depend_on(tmp_path):
    job = next(schedule.Plan(TINY, tmp_path, (0,), (CASE,)).jobs())
    schedule.run_trial([job])
    stored = job.stored()
    assert stored.settings["options"]["epochs"] == 2
    assert {"torch", "python", "disentangled_mil"} <= stored.environment["versions"].keys()
    assert {"commit", "changed", "device"} <= stored.environment.keys()
    assert stored.seconds > 0
    predicted = stored.table("internal")
    assert len(predicted) == stored.metrics["internal"]["patients"]
    assert predicted.filter(like="probability_").sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-4)


def test_runs_of_other_settings_count_as_missing(tmp_path):
    plan = schedule.Plan(TINY, tmp_path, (0,), (CASE,))
    job = next(plan.jobs())
    schedule.run_trial([job])
    longer = next(plan._replace(overrides={"epochs": 3}).jobs())
    assert longer.path == job.path
    assert job.stored() is not None
    assert longer.stored() is None


def test_a_run_that_fails_leaves_no_file_and_those_before_it_stay(tmp_path):
    def fail(trial: Trial) -> Outcome:
        raise RuntimeError("the disk is full")

    experiment = replace(TINY, variants=(ON_SLIDES, Variant("failing", fail)))
    with pytest.raises(RuntimeError, match="disk is full"):
        schedule.run_missing(schedule.Plan(experiment, tmp_path, (0,), (CASE,)), processes=1)
    assert list(times(tmp_path)) == ["tiny-grading/on-slides/seed0-fold0.json"]


def test_a_file_is_whole_or_not_there(tmp_path):
    job = next(schedule.Plan(TINY, tmp_path, (0,), (CASE,)).jobs())
    outcome = Outcome({"internal": {"auc": object()}}, pd.DataFrame())  # no JSON can hold it
    trial = Trial(CASE, 0, 0, small_split(), job.options, tmp_path, BagCache())
    with pytest.raises(TypeError):
        runs.keep(job.path, runs.Run.of(ON_SLIDES, trial, outcome, 1.0))
    assert not list(tmp_path.rglob("*.json*"))


def test_quick_runs_are_stored_apart_and_never_on_the_page(tmp_path, capsys):
    assert run(tmp_path, "--quick") == 0
    assert all("runs/quick/" in name for name in times(tmp_path))
    assert not (tmp_path / "summaries").exists()
    assert "Stored: 2 of 2 runs" in capsys.readouterr().out


def test_a_training_shares_its_teachers_and_leaves_no_scratch(tmp_path, monkeypatch):
    plain, permuted = (
        Variant(name, Training(("distilled",), CROSS_FITTED, targets=change))
        for name, change in (("plain", None), ("permuted", targets.Permuted()))
    )
    experiment = replace(TINY, variants=(plain, permuted), reference="plain")
    trained = []
    original = out_of_fold.train_stage
    monkeypatch.setattr(
        out_of_fold, "train_stage", lambda name, *a, **k: (trained.append(name), original(name, *a, **k))
    )
    jobs = list(schedule.Plan(experiment, tmp_path, (0,), (CASE,)).jobs())
    schedule.run_missing(schedule.Plan(experiment, tmp_path, (0,), (CASE,)), processes=1)
    assert trained == ["repeat0-fold0", "repeat0-fold1"]
    found = [job.stored() for job in jobs]
    assert found[0].predictions != found[1].predictions
    assert found[0].measures["headroom"] == found[1].measures["headroom"]
    assert not any(path for path in tmp_path.glob("scratch/*"))


def test_measures_explain_a_teacher(tmp_path):
    method = Training(("teacher",), measures=(conflicts, confidences, attention_entropy, subspaces_apart))
    split = small_split()
    found = method(Trial(CASE, 0, 0, split, replace(OPTIONS, epochs=1), tmp_path, BagCache())).measures
    assert {
        "conflicts",
        "confidence tumor",
        "entropy tme",
        "R2 own program",
        "R2 other programs",
        "CKA",
    } <= found.keys()
    assert all(0 <= found[name] <= 1 + 1e-6 for name in ("conflicts", "confidence tme", "entropy tumor", "CKA"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "x"], "must be an integer of at least 0, got 'x'"),
        (["--jobs", "0"], "must be a positive integer, got '0'"),
        (["--cohort", "liver"], "invalid choice: 'liver'"),
    ],
)
def test_wrong_input_is_refused(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main(["tiny", *arguments])
    assert message in capsys.readouterr().err


def test_a_cohort_without_files_is_left_out(tmp_path, monkeypatch, capsys):
    absent = cohorts.COHORTS["tiny"]._replace(present=lambda: False)
    monkeypatch.setitem(cohorts.COHORTS, "tiny", absent)
    assert run(tmp_path) == 2
    assert "tiny: its files are not there, so it is left out" in capsys.readouterr().err
    assert command.main([]) == 2


def test_experiments_are_listed(capsys):
    assert command.main(["--list"]) == 0
    assert "Does distillation pay, and what in it pays?" in capsys.readouterr().out


def test_nothing_is_shown_of_an_experiment_that_was_not_run():
    assert "Not run yet. `python -m benchmarks.experiments tiny`" in tables.section(TINY, None)


def predictions(seed: int, patients: int = 40) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.ones(3), patients).round(1)  # with ties
    return pd.DataFrame(
        {
            **{f"probability_{k}": probabilities[:, k] for k in range(3)},
            "predicted": probabilities.argmax(1),
            "label": np.arange(patients) % 3,
            "risk": rng.normal(size=patients).round(1),
            "time": rng.integers(1, 20, patients),
            "event": rng.random(patients) < 0.6,
        },
        index=[f"P{k}" for k in range(patients)],
    )


@pytest.mark.parametrize("name", ["auc", "c_index"])
def test_bootstrap_starts_from_the_metric_of_the_package(name):
    folds = [predictions(seed) for seed in range(3)]
    expected = []
    for table in folds:
        patients = list(table.index)
        scores = table.filter(like="probability_").to_numpy()
        found = classification_metrics(scores, table["label"].to_numpy(), patients)
        found |= survival_metrics(table["risk"], table["time"], event=table["event"], patients=patients)
        expected.append(found[name])
    given = [table.drop(columns="label") if name == "c_index" else table for table in folds]
    assert bootstrap.bootstrapped(name, given)[0] == pytest.approx(np.mean(expected))


def test_a_draw_counts_a_patient_in_every_seed():
    table = predictions(0)
    assert bootstrap.bootstrapped("auc", [table, table]) == pytest.approx(bootstrap.bootstrapped("auc", [table]))


def test_gains_are_paired_by_trial(tmp_path):
    assert run(tmp_path, "--seeds", "0") == 0
    found = summary.read("tiny", tmp_path / "summaries")
    (gain,) = found.gains
    assert (gain.variant, gain.over, gain.metric, gain.patients) == ("on genes", "on slides", "auc", 10)
    rows = {row.variant: row.metrics["auc"][0] for row in found.rows}
    assert gain.difference == pytest.approx(rows["on genes"] - rows["on slides"], abs=1e-4)
    assert gain.low <= gain.difference <= gain.high


def test_less_expression_is_nested_and_leaves_the_patients():
    split = small_split()
    half, quarter = (changes.LessExpression(share)(split, 0).train for share in (0.5, 0.25))
    assert set(quarter.expression.index) < set(half.expression.index) < set(split.train.expression.index)
    assert len(half.expression) == 8
    assert half.patients == split.train.patients
    dropped = changes.LessExpression(0.5, drop_others=True)(split, 0).train
    assert set(dropped.patients) == set(half.expression.index)


def test_gene_sets_change_everywhere():
    split = small_split()
    one = changes.one_subspace(split, 0)
    assert len(one.train.gene_sets["all"]) == 16
    assert one.tests["internal"].gene_sets == one.train.gene_sets
    shuffled = changes.shuffled_subspaces(split, 0).train.gene_sets
    assert [len(genes) for genes in shuffled.values()] == [8, 8]
    assert shuffled != split.train.gene_sets
    assert set().union(*shuffled.values()) == set().union(*split.train.gene_sets.values())
    random = changes.RandomGenes(0.25)(split, 0).train
    assert random.fit_expression().sizes == {"tumor": 2, "tme": 2}


def test_chosen_genes_know_the_test_patients_only_where_they_leak():
    split = small_split()
    test = split.tests["internal"]
    other = split._replace(tests={"internal": replace(test, expression=test.expression.iloc[::-1] * 50)})
    for inside in (changes.ChosenByLabel(0.25, False, "grading"), changes.PipelineOptions({"fraction": 0.25})):
        chosen = [inside(each, 0).train.fit_expression().genes for each in (split, other)]
        assert chosen[0] == chosen[1]
    leaky = changes.ChosenOnAll(0.25)
    assert leaky(split, 0).train.gene_sets != leaky(other, 0).train.gene_sets


def test_missing_genes_make_further_test_sets():
    split = changes.PipelineOptions({"fraction": 1.0})(small_split(), 0)
    changed = changes.MissingAtTest((0.2,), changes.DroppedSubspaces(1.0))(split, 0)
    assert list(changed.tests) == ["internal", "20% missing", "no tumor", "no tme"]
    pipeline = changed.train.fit_expression()
    given = {name: pipeline.transform(test.expression) for name, test in changed.tests.items()}
    assert given["no tumor"]["tumor"].std(0).max() == 0
    assert (given["no tumor"]["tme"] == given["internal"]["tme"]).all()
    lost = changed.train.expression.nunique()
    assert (lost < len(changed.train.expression)).any()


class Labels:
    """A training set of four classes' worth of labels, for the change of targets."""

    def __init__(self, classes: list[int]) -> None:
        self.target, self.labels = torch.tensor(classes), {}

    def __len__(self) -> int:
        return len(self.target)


@pytest.fixture
def given():
    """Targets of 12 samples, of whom the last two have none."""
    torch.manual_seed(0)
    present = torch.arange(12) < 10
    return {"20x": DistillationTargets(torch.randn(12, 3) * present[:, None], present)}


def test_permuted_targets_are_those_of_others(given):
    train = Labels([0, 1, 2] * 4)
    logits = given["20x"].logits
    for within in (False, True):
        changed = targets.Permuted(within=within)(given, train)["20x"]
        source = torch.cdist(changed.logits[:10], logits[:10]).argmin(1)
        assert sorted(source.tolist()) == list(range(10))
        assert source.tolist() != list(range(10))
        assert torch.equal(changed.present, given["20x"].present)
        assert within == bool((train.target[source] == train.target[:10]).all())


def test_smoothed_labels_have_the_entropy_of_the_targets(given):
    changed = targets.SmoothedLabels()(given, Labels([0, 1, 2] * 4))["20x"]
    assert changed.logits[:10].argmax(1).tolist() == [k % 3 for k in range(10)]
    entropies = [
        torch.distributions.Categorical(logits=each.logits[:10] / 2).entropy().mean().item()
        for each in (given["20x"], changed)
    ]
    assert entropies[0] == pytest.approx(entropies[1], abs=1e-4)


def test_mixed_targets_lie_between_targets_and_labels(given):
    changed = targets.MixedWithLabels(0.25)(given, Labels([0, 1, 2] * 4))["20x"]
    soft = (given["20x"].logits[:10] / 2).softmax(1)
    label = torch.nn.functional.one_hot(torch.tensor([k % 3 for k in range(10)]), 3)
    assert (changed.logits[:10] / 2).softmax(1).numpy() == pytest.approx((0.75 * soft + 0.25 * label).numpy(), abs=1e-4)


@pytest.mark.parametrize("name", ["MeanPool", "GatedABMIL", "NystromTransMIL", "Concatenation", "GatedBilinear"])
def test_network_of_others_ignores_padding(name):
    from benchmarks.experiments import networks

    if name != "MeanPool":
        pytest.importorskip("torchmil", reason="needs the extra `benchmarks`")
    torch.manual_seed(0)
    model = getattr(networks, name)(6, 3, 4, OPTIONS).eval()
    patches, genes = torch.randn(2, 5, 6), torch.randn(2, 4)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    logits = model(patches, mask, genes)
    alone = model(patches[1:, :3], mask[1:, :3], genes[1:])
    assert logits.shape == (2, 3)
    assert logits[1].tolist() == pytest.approx(alone[0].tolist(), abs=1e-5)


@pytest.mark.parametrize("method", [Network(MeanPool), Network(MeanPool, genes=True), Linear((SLIDES, GENES))])
def test_baseline_predicts_every_test_patient(method, tmp_path):
    split = small_split()
    outcome = method(Trial(CASE, 0, 0, split, replace(OPTIONS, epochs=2), tmp_path, BagCache()))
    assert outcome.metrics["internal"]["patients"] == 10
    assert set(outcome.predictions["patient"]) == set(split.tests["internal"].patients)
    assert outcome.measures["training s per patient"] > 0
