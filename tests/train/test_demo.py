import json
from dataclasses import replace

import pandas as pd
import pytest
import torch
from matplotlib.image import imread

from disentangled_mil.train import demo
from disentangled_mil.train.demo import run_demo
from disentangled_mil.train.training import NETWORKS

CHECKPOINTS = {f"{model}{end}" for model in NETWORKS for end in (".csv", ".json", ".safetensors")}


@pytest.fixture
def quick(options):
    return replace(options, epochs=1, batch_size=32)


def test_demo_leaves_the_documented_files_and_tells_internal_and_external_results(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "DEMO_GRID", (5, 4))
    out = tmp_path / "demo"
    printed = run_demo(out, "survival", quick, patients=30, threads="auto", quiet=True)
    assert "internal C-index" in printed
    assert "external C-index" in printed
    names = {path.name for path in out.iterdir()}
    assert names == CHECKPOINTS | {"run.json", "metrics.json", "predictions.csv", "prototypes.png", "report.html"}
    assert imread(out / "prototypes.png").ndim == 3
    table = pd.read_csv(out / "predictions.csv")
    metrics = json.loads((out / "metrics.json").read_text())["splits"][0]
    for (model, test), rows in table.groupby(["model", "test"]):
        assert rows["patient"].is_unique
        assert len(rows) == metrics[model][test]["patients"]
    assert {test for tests in metrics.values() for test in tests} == {"internal", "external"}
    assert json.loads((out / "run.json").read_text())["starts"][0]["threads"] == 1
    assert run_demo(out, "survival", quick, patients=30, resume=True, quiet=True) == printed


def test_demo_needs_patients_and_a_task_of_the_planted_cohort(quick, tmp_path):
    with pytest.raises(ValueError, match=r"^patients must be at least 20, got 19$"):
        run_demo(tmp_path / "demo", "grading", quick, patients=19)
    with pytest.raises(ValueError, match=r"^task must be one of 'diagnosis', 'grading', 'survival', got 'stage'$"):
        run_demo(tmp_path / "demo", "stage", quick)
    assert not (tmp_path / "demo").exists()


def test_the_number_of_threads_is_restored_after_the_demo(quick, tmp_path, monkeypatch):
    used = []

    def run_split(*args, **kwargs):
        used.append(torch.get_num_threads())
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run_split", run_split)
    monkeypatch.setattr(demo, "DEMO_GRID", (5, 4))
    before = torch.get_num_threads()
    for threads in (None, 3, "auto"):
        with pytest.raises(KeyboardInterrupt):
            run_demo(tmp_path / "demo", "grading", quick, patients=20, threads=threads, quiet=True)
        assert torch.get_num_threads() == before
    assert used == [before, 3, 1]
