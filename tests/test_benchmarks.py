"""The benchmark command at small sizes: its errors, its stored results and its tables. No time is asserted."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from benchmarks import cases, kidney_maps, pages, quality, results
from benchmarks.__main__ import main
from benchmarks.agreement import check
from benchmarks.case import Candidate, Case, Outputs, Unavailable, Work
from benchmarks.measure import ceilings, first_call_apart

REPOSITORY = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
COMPILED = "flex, table"  # compiles for a long time


def giving(make: Callable[[], Outputs]) -> Callable[[int, torch.device], Work]:
    return lambda size, device: make


def wave(scale: float = 1.0) -> Outputs:
    x = torch.linspace(0, 3, 50)
    return {"result": scale * x.sin(), "gradient of x": x.cos(), "index": x.argsort()}


@pytest.fixture
def add_case(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Add a case that has a reference and the given candidates."""

    def add(**candidates: Candidate) -> None:
        case = Case("for tests", (20, 30), {"reference": Candidate(giving(wave))} | candidates, small=16)
        monkeypatch.setitem(cases.CASES, "fake", case)

    return add


def run(out: Path, *arguments: str) -> int:
    return main([*arguments, "--out", str(out), "--threads", "1", "--repeats", "2", "--seconds", "0.2"])


def kept(out: Path) -> list[results.Record]:
    (path,) = out.iterdir()
    return json.loads(path.read_text())["records"]


@pytest.fixture(autouse=True)
def threads() -> None:
    """The command sets the number of threads of its process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", cases.CASES)
def test_candidates_of_every_case_agree(name, monkeypatch):
    case = cases.CASES[name]
    quick = {key: candidate for key, candidate in case.candidates.items() if key != COMPILED}
    monkeypatch.setitem(cases.CASES, name, replace(case, candidates=quick))
    checked = check(name, 70, 1e9, CPU)
    assert checked.compared_at == 70
    assert checked.deviations.keys() | checked.absent.keys() == quick.keys()
    assert set(checked.absent) <= {"triton", "triton, table", "triton, plain", "triton, table, plain", "KeOps"}


def test_list_names_every_case_and_measures_nothing(tmp_path, capsys):
    assert run(tmp_path, "--list") == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == list(cases.CASES)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["layers"], "there is no case 'layers'; there are layer, layer-dropout, scaling"),
        (["layer", "--size", "15"], "must be an integer of at least 16, got '15'"),
        (["layer", "--repeats", "0"], "must be a positive integer, got '0'"),
        (["layer", "--device", "tpu"], "must be cpu or cuda, got 'tpu'"),
    ],
)
def test_wrong_input_is_refused_with_what_would_be_right(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(tmp_path, *arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "where"),
    [
        (lambda: wave(1.01), "'result'"),
        (lambda: wave(float("nan")), "'result'"),
        (lambda: wave() | {"gradient of x": torch.zeros(50)}, "'gradient of x'"),
        (lambda: wave() | {"index": wave()["index"].flip(0)}, "'index'"),
        (lambda: wave() | {"result": torch.zeros(49)}, "'result'"),
        (lambda: {"result": wave()["result"]}, "'gradient of x, index'"),
    ],
    ids=["value", "nan", "gradient", "integer", "shape", "missing"],
)
def test_nothing_is_timed_that_disagrees_with_the_reference(wrong, where, add_case, tmp_path, capsys):
    add_case(good=Candidate(giving(wave), "reference"), wrong=Candidate(giving(wrong), "reference"))
    assert run(tmp_path, "segment-mean", "fake", "--size", "20", "--no-memory") == 1
    printed = capsys.readouterr()
    assert "fake: 'wrong' must agree with 'reference'" in printed.err
    assert where in printed.err
    assert printed.out == ""
    assert not list(tmp_path.iterdir())


def test_only_values_of_an_approximation_are_compared(add_case):
    coarse = Candidate(
        giving(lambda: wave(1.01) | {"gradient of x": torch.zeros(50)}), "reference", 2e-2, approximate=True
    )
    add_case(coarse=coarse)
    assert check("fake", 20, 1e9, CPU).deviations["coarse"] == pytest.approx(1e-2, rel=0.01)


def test_run_keeps_raw_measurements_and_what_they_depend_on(tmp_path, capsys):
    assert run(tmp_path, "segment-mean", "--size", "40") == 0
    (record,) = kept(tmp_path)
    assert record["case"] == "segment-mean"
    assert record["size"] == 40
    assert record["threads"] == 1
    assert {"python", "torch", "disentangled_mil"} <= record["versions"].keys()
    assert {"commit", "changed", "device"} <= record.keys()
    for candidate in record["candidates"].values():
        assert len(candidate["seconds"]) == 2
        assert all(seconds > 0 for seconds in candidate["seconds"])
        assert candidate["peak_bytes"] >= 0
        assert candidate["compared_at"] == 40
    printed = capsys.readouterr().out
    assert "| segment-mean | 40 | reference | 1.00 (1.00 to 1.00) | 1.00 |" in printed
    assert "This run measured nothing on a GPU" in printed


def test_results_are_merged_by_case_and_size(add_case, tmp_path):
    add_case(ours=Candidate(giving(wave), "reference"))
    assert run(tmp_path, "fake", "--no-memory") == 0
    before = kept(tmp_path)
    assert [(r["case"], r["size"]) for r in before] == [("fake", 20), ("fake", 30)]
    assert run(tmp_path, "fake", "--size", "30", "40", "--no-memory") == 0
    after = kept(tmp_path)
    assert [(r["case"], r["size"]) for r in after] == [("fake", 20), ("fake", 30), ("fake", 40)]
    assert after[0] == before[0]
    assert after[1] != before[1]


def test_file_is_named_after_the_device(tmp_path):
    assert results.file_of(tmp_path, "NVIDIA H200 (141 GB), x").name == "nvidia-h200-141-gb-x.json"


def test_peer_that_is_not_there_is_listed(add_case, tmp_path, capsys):
    def missing(size: int, device: torch.device) -> Work:
        raise Unavailable("somelib is not installed")

    add_case(peer=Candidate(missing, "reference"))
    assert run(tmp_path, "fake", "--size", "20", "--no-memory") == 0
    assert kept(tmp_path)[0]["candidates"]["peer"] == {"absent": "somelib is not installed"}
    assert "| fake | 20 | peer | somelib is not installed |" in capsys.readouterr().out


def test_reference_that_does_not_fit_is_left_out_and_the_comparison_made_smaller(add_case, tmp_path, capsys):
    sizes = []

    def dense(size: int, device: torch.device) -> Work:
        sizes.append(size)
        return wave

    add_case(reference=Candidate(dense, memory=lambda size: size * 1e6), ours=Candidate(giving(wave), "reference"))
    assert run(tmp_path, "fake", "--size", "5000", "--limit", "0.025", "--no-memory") == 0
    assert set(sizes) == {20}
    candidates = kept(tmp_path)[0]["candidates"]
    assert candidates["reference"]["absent"] == "would take about 5 GB, the limit is 0.025 GB"
    assert candidates["ours"]["compared_at"] == 20
    assert "0e+00 at 20 |" in capsys.readouterr().out


def test_candidate_that_takes_too_long_is_left_out_beyond_its_size(add_case, tmp_path):
    add_case(slow=Candidate(giving(wave), "reference", most_on_cpu=25))
    assert run(tmp_path, "fake", "--no-memory") == 0
    small, large = (record["candidates"]["slow"] for record in kept(tmp_path))
    assert small["deviation"] == 0
    assert large == {"absent": "takes too long on a CPU beyond 25 tokens"}


ONE_CALL = """
import torch
from benchmarks.case import Candidate
from benchmarks.measure import first_call

def prepare(size, device):
    inputs = torch.ones(size, 1 << 20)
    return lambda: {"result": (inputs + 1).sum() + (inputs + 2).sum()}

print(first_call(Candidate(prepare), 16, 1, torch.device("cpu")).peak_bytes)
"""


def test_memory_is_the_peak_of_one_call_above_its_inputs():
    # A fresh process, because memory that other tests left can hide or add memory.
    order = [sys.executable, "-c", ONE_CALL]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(order, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True)
    if Path("/proc/self/clear_refs").exists():
        assert 64e6 <= int(done.stdout) < 100e6
    else:
        assert done.stdout.strip() == "None"


def test_memory_on_a_cpu_is_measured_in_a_process_of_its_own():
    assert first_call_apart("segment-mean", 30, "segment_mean").seconds > 0
    with pytest.raises(RuntimeError, match="KeyError"):
        first_call_apart("segment-mean", 30, "no such candidate")


def test_machine_reaches_something():
    assert all(rate > 0 for rate in ceilings(CPU).values())


def test_figure_is_drawn_from_what_was_kept(tmp_path, capsys, monkeypatch):
    out, figure = tmp_path / "results", tmp_path / "figures" / "scaling.svg"
    assert run(out, "--plot", str(figure.parent)) == 2
    assert "holds no results; measure first" in capsys.readouterr().err
    two = {name: cases.CASES["scaling"].candidates[name] for name in ("reference", "streaming")}
    monkeypatch.setitem(cases.CASES, "scaling", replace(cases.CASES["scaling"], candidates=two))
    assert run(out, "scaling", "--size", "40", "80", "--no-memory") == 0
    table = capsys.readouterr().out.split("\n\n")[0]
    assert run(out, "--plot", str(figure.parent)) == 0
    assert table in capsys.readouterr().out
    first = figure.read_text()
    assert "<svg" in first
    assert run(out, "--plot", str(figure.parent)) == 0
    assert figure.read_text() == first


def finished_run(folder: Path, auc: float) -> Path:
    """A run folder with the metrics of one split."""
    folder.mkdir()
    splits = [{"teacher": {"test": {"auc": auc, "accuracy": 0.5, "patients": 20}}}]
    (folder / "metrics.json").write_text(json.dumps({"task": "msi", "splits": splits}), encoding="utf-8")
    return folder


def test_run_folders_are_stored_as_one_experiment(tmp_path):
    folders = [finished_run(tmp_path / name, auc) for name, auc in (("a", 0.7), ("b", 0.9))]
    path = quality.keep("stomach", folders, "train --task msi", tmp_path / "stored")
    assert path.name == "stomach-msi.json"
    (run,) = quality.read(tmp_path / "stored")
    assert run.models["teacher"]["test"]["auc"] == [0.7, 0.9]
    assert "`train --task msi` at commit" in run.source
    table = quality.table("stomach", [run])
    assert "| model | inputs at test | msi AUC / Acc |" in table
    assert "| **teacher** | slides + RNA | 0.800\u00a0±\u00a00.141 / 0.500 |" in table
    assert f"* msi, this package: {run.source}." in table
    assert "±" not in quality.table("stomach", [run], brief=True)


def test_runs_of_different_tasks_are_not_one_experiment(tmp_path):
    folders = [finished_run(tmp_path / name, 0.7) for name in "ab"]
    metrics = folders[1] / "metrics.json"
    metrics.write_text(metrics.read_text().replace("msi", "subtype"))
    with pytest.raises(ValueError, match="folders must be runs of one task, got msi, subtype"):
        quality.keep("stomach", folders, "train", tmp_path / "stored")
    assert quality.main(["stomach", *map(str, folders), "--command", "train", "--out", str(tmp_path)]) == 2


def test_metric_that_is_not_known_is_said():
    known, unknown = {"auc": [0.9], "accuracy": [0.8]}, {"auc": [None]}
    run = quality.Run(
        "stomach", "msi", "a paper", {"linear; RNA": {"test": known}, "linear; slides": {"test": unknown}}
    )
    table = quality.table("stomach", [run])
    assert "| linear | RNA | 0.900 / 0.800 |" in table
    assert "| linear | slides | – / – |" in table
    assert "* msi, linear and released models: a paper." in table


def test_distillation_that_a_run_declined_is_said():
    student = {"test": {"auc": [0.8]}}
    runs = [
        quality.Run("stomach", "msi", "train", {"student": student, "distilled": student}),
        quality.Run("stomach", "subtype", "train", {"genes": student, "student": student}),
        quality.Run("stomach", "grade", "a paper", {"linear; slides": student}),
    ]
    table = quality.table("stomach", runs)
    assert "| **distilled student** | slides |  | 0.800 | declined |" in table
    assert "| **SNN on genes** | RNA |  |  | 0.800 |" in table


def test_tables_of_a_page_are_written_between_their_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("Before.\n\n<!-- table: speed -->\nold\n<!-- end of table -->\n\nAfter.\n", encoding="utf-8")
    pages.write((page,))
    text = page.read_text(encoding="utf-8")
    assert text.startswith("Before.\n\n<!-- table: speed -->\n\n")
    assert text.endswith("\n\n<!-- end of table -->\n\nAfter.\n")
    assert "| one deformable layer | 2,500 | table |" in text
    assert "old" not in text
    assert pages.rendered(text) == text


def test_page_that_asks_for_an_unknown_table_is_refused():
    with pytest.raises(ValueError, match=r"a table must be speed, an experiment or a cohort of .*, got 'liver'"):
        pages.rendered("<!-- table: liver -->\n<!-- end of table -->")


def test_reference_that_does_not_fit_is_named_in_the_short_table(add_case, tmp_path, monkeypatch):
    add_case(streaming=Candidate(giving(wave), "reference"))
    monkeypatch.setattr(pages, "SHOWN", (pages.Shown("fake", "streaming", "a wave"),))
    assert run(tmp_path, "fake", "--size", "20", "--no-memory") == 0
    (path,) = tmp_path.iterdir()
    stored = json.loads(path.read_text())
    stored["records"][0]["candidates"]["reference"] = {"absent": "would take about 5 GB"}
    path.write_text(json.dumps(stored))
    assert "| does not fit |" in pages.speed(tmp_path)


def test_growth_is_drawn_beside_linear_growth(tmp_path):
    records = [
        {"size": size, "device": "a machine", "candidates": {"teacher step": {"seconds": [size], "peak_bytes": None}}}
        for size in (10, 20)
    ]
    plot = pytest.importorskip("benchmarks.plot", reason="needs matplotlib")
    plot.draw_growth(records, tmp_path / "growth.svg")
    assert "<svg" in (tmp_path / "growth.svg").read_text()


def test_gains_of_maps_are_means_over_slides_with_an_interval_over_patients():
    slides = [("p", "1", 0.1), ("p", "2", 0.3), ("q", "3", -0.1)]
    table = pd.DataFrame(
        [
            {"patient": patient, "slide": slide, "model": model, "Dice": 0.5 + gain * (model == "distilled")}
            for patient, slide, gain in slides
            for model in kidney_maps.MODELS
        ]
    )
    assert kidney_maps.difference(table, "Dice") == "+0.100 [-0.100, +0.200]"


def test_a_run_without_both_students_has_no_maps_to_compare(tmp_path, capsys):
    assert kidney_maps.main([str(tmp_path / "cohort.toml"), str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}: must hold a fold with student and distilled, got none\n"
