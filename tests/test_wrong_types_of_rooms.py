"""Every argument of every public function and constructor of a sub-package, given values of the wrong type."""

import importlib
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from disentangled_mil import (
    ITA,
    Bag,
    Classification,
    ContinuousPositionBias,
    DiscreteSurvival,
    GeneNetwork,
    Grid,
    PatchEncoder,
    Student,
    SurvivalTarget,
    Teacher,
    TokenSet,
    bags,
    data,
    deploy,
    explain,
    metrics,
    models,
    ops,
    tasks,
    train,
)
from disentangled_mil.models import released
from tests.test_wrong_types import CALLS as AT_THE_TOP
from tests.test_wrong_types import MADE_ELSEWHERE as MADE_AT_THE_TOP
from tests.test_wrong_types import foreign_errors

ROOMS = (
    "bags", "ops", "nn", "losses", "optim", "tasks", "metrics", "models", "models.released", "data", "explain",
    "deploy", "train",
)  # fmt: skip
# Results, records of readers, types and abstract classes, which other code makes.
MADE_ELSEWHERE = {
    "AttentionMap", "AttentionOutput", "CellCenters", "Cohort", "Column", "Corners", "DMSFOutput", "DeformableOptions",
    "DeformableOutput", "DensityPeaks", "GateOutput", "GeneNetworkOutput", "HeadOutput", "ITAOutput", "Interval",
    "KINDS", "Labels", "MLPBias", "MODELS", "PairedDifference", "Part", "PatchStatistics", "PatientSplit", "Place",
    "PlantedCohort", "Positions", "ReferencePoints", "ReleasedPositions", "ReleasedTeacher", "Result", "SavedModel",
    "SelectionOutput", "SlideBag", "SlideError", "SlideSource", "Split", "StudentBranchOutput", "StudentOutput",
    "StudentResult", "Target", "Task", "TaskDefinition", "TeacherBranchOutput", "TeacherOutput", "TileFacts",
    "TilePairs", "Trained",
}  # fmt: skip
# Readers have their own tests of bad files, and a training would begin where a wrong value is legal.
TRIED_ELSEWHERE = {
    "SlideDataset", "bootstrap_patients", "cross_fit", "join_folds", "paired_difference", "predict_slides", "read_bag",
    "read_cohort", "read_expression", "run_cross_validation", "run_demo", "run_split", "slide_files", "slide_source",
    "train_models", "write_bag", "write_cohort",
}  # fmt: skip

SIZES = {"dim": 8, "heads": 2, "groups": 2, "dim_head": 4, "magnifications": ("20x",)}
GENES = {"tumor": 3, "tme": 4}
TOKENS, MASK = torch.zeros(2, 4, 8), torch.ones(2, 4, dtype=torch.bool)
GRID = Grid.square([4, 4])
SLIDE = Bag.from_slide(torch.randn(6, 8), torch.tensor([[0, 0], [1, 0], [2, 0], [0, 1], [1, 1], [2, 1]]))
CLASSES = Classification(["a", "b", "c"])
SURVIVAL = DiscreteSurvival.fit([1.0, 2.0, 3.0, 4.0], event=[1, 1, 1, 1], bins=2)
OBSERVED = SurvivalTarget(torch.tensor([0, 1]), torch.tensor([True, False]))
STUDENT = Student(8, 3, **SIZES).eval()
TEACHER = Teacher(8, GENES, 3, selection_heads=2, **SIZES).eval()
EXPRESSION = {name: torch.zeros(1, count) for name, count in GENES.items()}
TABLE = pd.DataFrame({"EGFR": [0.0, 9.0, 99.0], "CD2": [3.0, 1.0, 2.0]}, index=list("abc"))
SETS = {"tumor": ["EGFR"], "tme": ["CD2"]}
PIPELINE = data.ExpressionPipeline.fit(TABLE, SETS, data.ExpressionOptions(fraction=1.0))
TILES = explain.TileMap(torch.zeros(3, 2), torch.ones(3), {"w": torch.rand(3)}, unit="level-0 pixels")
CORNERS = ops.bilinear_corners(torch.rand(2, 3, 2), 2, 1)
QUERY, PLACE = torch.randn(1, 2, 4, 4), torch.rand(1, 2, 4, 2)


def bias(displacement: torch.Tensor) -> torch.Tensor:
    return displacement.sum(-1, keepdim=True)


SCORES = {"query": QUERY, "key": QUERY, "query_position": PLACE[:, 0], "key_position": PLACE, "bias": bias}
PATIENTS = {"patients": list("abcdef"), "labels": [0, 0, 0, 1, 1, 1], "seed": 0}
OF_PATIENTS = {"probabilities": [[0.2, 0.8], [0.6, 0.4]], "labels": [1, 0], "patients": ["a", "b"]}
RISKS = {"risk": [1.0, 2.0], "time": [2.0, 1.0], "event": [1, 1], "patients": ["a", "b"]}


def score(logits: torch.Tensor) -> torch.Tensor:
    return logits[:, 0]


def calls(folder: Path) -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """A right call of each: its function and its arguments."""
    (folder / "sets.gmt").write_text("tumor\td\tEGFR\ntme\td\tCD2\n")
    train.save_model(folder / "saved", STUDENT, task=CLASSES)
    with torch.no_grad():
        student, teacher = STUDENT({"20x": SLIDE}), TEACHER({"20x": SLIDE}, EXPRESSION)
    attention = teacher.branches["20x"].attention["tumor"]
    logits, labels = torch.zeros(2, 3), torch.tensor([0, 1])
    return {
        "AttentionScores": (ops.AttentionScores, SCORES),
        "Bag.from_dict": (Bag.from_dict, {"parts": SLIDE.to_dict()}),
        "Bag.to": (SLIDE.to, {"dtype": torch.float32, "non_blocking": False, "copy": False}),
        "BiasTable.of": (ops.BiasTable.of, {"bias": bias, "resolution": 3, "reach": 2.0}),
        "CardTexts": (deploy.CardTexts, {"data": "slides"}),
        "Classification.confidence": (CLASSES.confidence, {"subspace_logits": {"tumor": logits}, "target": labels}),
        "Classification.loss": (CLASSES.loss, {"logits": logits, "target": labels}),
        "Classification.predictions": (CLASSES.predictions, {"logits": logits}),
        "ContinuousPositionBias.forward": (ContinuousPositionBias(4, 2), {"displacement": torch.rand(3, 2)}),
        "DeformableAttention.vectors": (attention.vectors, {"resolution": 4}),
        "DiscreteSurvival.confidence": (
            SURVIVAL.confidence,
            {"subspace_logits": {"tumor": logits[:, :2]}, "target": OBSERVED},
        ),
        "DiscreteSurvival.loss": (SURVIVAL.loss, {"logits": logits[:, :2], "target": OBSERVED}),
        "DiscreteSurvival.risk": (SURVIVAL.risk, {"logits": logits[:, :2]}),
        "DiscreteSurvival.target": (SURVIVAL.target, {"time": [1.0, 2.0], "event": [1, 0]}),
        "ExpressionOptions": (data.ExpressionOptions, {}),
        "ExpressionPipeline.fit": (
            data.ExpressionPipeline.fit,
            {"table": TABLE, "gene_sets": SETS, "options": data.ExpressionOptions(fraction=1.0)},
        ),
        "ExpressionPipeline.transform": (PIPELINE.transform, {"table": TABLE}),
        "GeneNetwork.forward": (
            GeneNetwork(GENES, 3),
            {"genes": {name: torch.zeros(2, count) for name, count in GENES.items()}},
        ),
        "GeneSets": (data.GeneSets, {"sets": {"a": ("b",)}, "descriptions": {"a": ("x",)}}),
        "Grid.cell_means": (GRID.cell_means, {"tokens": TOKENS[:, None]}),
        "Grid.expand": (Grid.square(4).expand, {"batch": 2}),
        "Grid.from_dict": (Grid.from_dict, {"parts": GRID.to_dict()}),
        "Grid.to_map": (GRID.to_map, {"tokens": TOKENS}),
        "ITA.follow": (
            ITA(8, 2).follow,
            {"prototypes": torch.zeros(1, 2, 8), "present": torch.ones(1, 2, dtype=torch.bool)},
        ),
        "PatchEncoder.fit": (PatchEncoder(8, 4).fit, {"patches": torch.randn(5, 8)}),
        "ReleasedStudent": (
            released.ReleasedStudent,
            {"features": 8, "outputs": 3, "dim": 8, "magnifications": ("20x",)},
        ),
        "Sample": (data.Sample, {"name": "a", "patient": "b", "bags": {"20x": SLIDE}}),
        "SlideReading": (data.SlideReading, {}),
        "StoredBag": (data.StoredBag, {"paths": ("slide.h5",)}),
        "StudentGraph": (deploy.StudentGraph, {"student": STUDENT, "sets": ("20x",), "transform": "none"}),
        "TableLayout": (data.TableLayout, {}),
        "TileMap": (explain.TileMap, {"coords": TILES.coords, "size": TILES.size, "columns": TILES.columns}),
        "TokenSet.expand": (TokenSet(MASK[:1]).expand, {"batch": 2}),
        "TrainingOptions": (train.TrainingOptions, {"device": "cpu"}),
        "attention_overlap": (ops.attention_overlap, {"a": torch.rand(2, 3), "b": torch.rand(2, 3)}),
        "biased_attention": (ops.biased_attention, {**SCORES, "value": QUERY}),
        "bilinear_corners": (ops.bilinear_corners, {"position": torch.rand(2, 3, 2), "width": 4, "height": 4}),
        "bilinear_sample": (ops.bilinear_sample, {"maps": torch.rand(2, 16, 3), "corners": CORNERS}),
        "bilinear_spread": (ops.bilinear_spread, {"values": torch.rand(2, 3), "corners": CORNERS, "cells": 2}),
        "classification_auc": (metrics.classification_auc, OF_PATIENTS),
        "classification_metrics": (metrics.classification_metrics, OF_PATIENTS),
        "collate_samples": (bags.collate_samples, {"samples": [{"20x": SLIDE}]}),
        "combine_maps": (explain.combine_maps, {"maps": {"20x": TILES}}),
        "content_order": (ops.content_order, {"tokens": TOKENS, "mask": MASK}),
        "density_peaks": (
            ops.density_peaks,
            {"tokens": torch.randn(2, 4, 8), "clusters": 2, "neighbors": 2, "mask": MASK},
        ),
        "depthwise_windows": (
            ops.depthwise_windows,
            {
                "cells": torch.rand(2, 1, 4, 5),
                "window": torch.zeros(2, 2, 3, 3, dtype=torch.int64),
                "kernel": torch.rand(3, 3, 5),
            },
        ),
        "draw_map": (
            explain.draw_map,
            {"path": folder / "map.png", "tiles": TILES, "columns": ["w"], "title": "slide"},
        ),
        "export_onnx": (deploy.export_onnx, {"model": folder / "none", "path": folder / "student.onnx"}),
        "fit_temperature": (
            train.fit_temperature,
            {"task": CLASSES, "logits": torch.randn(4, 3), "target": torch.tensor([0, 1, 2, 0])},
        ),
        "from_pretrained": (deploy.from_pretrained, {"name": folder / "none"}),
        "gene_attributions": (
            explain.gene_attributions,
            {"teacher": TEACHER, "bags": {"20x": SLIDE}, "genes": EXPRESSION, "score": score, "steps": 1},
        ),
        "gene_subspaces": (data.gene_subspaces, {"sets": {"a": ("b",)}, "choice": {"tumor": ["a"]}}),
        "grid_for": (bags.grid_for, {"tokens": TOKENS, "grid": GRID, "mask": None}),
        "inner_split": (data.inner_split, {**PATIENTS, "fraction": 0.4}),
        "lattice_step": (bags.lattice_step, {"coords": torch.tensor([[0, 0], [1, 0]])}),
        "load_model": (train.load_model, {"path": folder / "saved"}),
        "load_released": (released.load_released, {"path": folder / "none"}),
        "mask_from": (bags.mask_from, {"other": torch.zeros(1, 3), "convention": "padding"}),
        "mask_to": (bags.mask_to, {"mask": MASK, "convention": "padding"}),
        "pair_magnifications": (
            bags.pair_magnifications,
            {"coords_a": torch.zeros(2, 2), "size_a": 2.0, "coords_b": torch.zeros(2, 2), "size_b": 1.0},
        ),
        "patch_statistics": (models.patch_statistics, {"bag": SLIDE}),
        "patient_folds": (data.patient_folds, {**PATIENTS, "folds": 3}),
        "percentile_interval": (metrics.percentile_interval, {"draws": np.arange(3.0)}),
        "permutation_importance": (
            explain.permutation_importance,
            {
                "score": lambda values: float(values["tumor"].sum()),
                "expression": {"tumor": torch.rand(3, 1)},
                "genes": {"tumor": ["EGFR"]},
                "sets": {"a": ["EGFR"]},
                "repeats": 1,
            },
        ),
        "planted_cohort": (
            data.planted_cohort,
            {"patients": 2, "seed": 0, "grid": (2, 2), "width": 4, "tumor_genes": 3, "tme_genes": 3, "other_genes": 1},
        ),
        "read_gmt": (data.read_gmt, {"path": folder / "sets.gmt"}),
        "region_agreement": (
            explain.region_agreement,
            {"values": torch.rand(4), "truth": torch.tensor([True, False, True, False])},
        ),
        "released_student": (released.released_student, {"state_dict": {"a": torch.zeros(1)}}),
        "released_teacher": (released.released_teacher, {"state_dict": {"a": torch.zeros(1)}}),
        "save_model": (train.save_model, {"path": folder / "model", "model": STUDENT, "task": CLASSES}),
        "save_pretrained": (
            deploy.save_pretrained,
            {"folder": folder / "shared", "model": STUDENT, "overwrite": True},
        ),
        "segment_mean": (
            ops.segment_mean,
            {
                "tokens": TOKENS,
                "assignment": torch.zeros(2, 4, dtype=torch.int64),
                "segments": 2,
                "weight": torch.rand(2, 4),
            },
        ),
        "segment_softmax": (
            ops.segment_softmax,
            {"logits": torch.rand(2, 4), "assignment": torch.zeros(2, 4, dtype=torch.int64), "segments": 2},
        ),
        "select_target": (tasks.select_target, {"target": torch.zeros(3), "index": torch.tensor([0])}),
        "set_attributions": (
            explain.set_attributions,
            {"attributions": {"tumor": torch.rand(3)}, "genes": {"tumor": ["a", "b", "c"]}, "sets": {"s": ["a"]}},
        ),
        "spread_rows": (bags.spread_rows, {"count": 10, "max_tokens": 3, "coords": torch.rand(10, 2), "seed": 0}),
        "student_view": (
            explain.student_view,
            {"branch": student.branches["20x"], "subspaces": ("tumor", "tme")},
        ),
        "survival_concordance": (metrics.survival_concordance, RISKS),
        "survival_metrics": (metrics.survival_metrics, RISKS),
        "teacher_view": (explain.teacher_view, {"branch": teacher.branches["20x"]}),
        "thin": (bags.thin, {"bag": SLIDE, "max_tokens": 3, "seed": 0}),
        "widening": (bags.widening, {"count": 10, "kept": 3}),
        "write_anndata": (
            explain.write_anndata,
            {"path": folder / "map.h5ad", "tiles": TILES, "features": torch.rand(3, 2)},
        ),
        "write_geojson": (explain.write_geojson, {"path": folder / "map.geojson", "tiles": TILES}),
    }


with TemporaryDirectory() as somewhere:
    NAMES = sorted(calls(Path(somewhere)))
# A right call of these needs files that are made elsewhere.
INCOMPLETE = {"export_onnx", "from_pretrained", "load_released", "released_student", "released_teacher"}


def test_every_public_name_of_a_room_is_called() -> None:
    public = {name for room in ROOMS for name in importlib.import_module(f"disentangled_mil.{room}").__all__}
    called = {name.partition(".")[0] for name in (*NAMES, *AT_THE_TOP)}
    assert called | MADE_ELSEWHERE | MADE_AT_THE_TOP | TRIED_ELSEWHERE >= public
    assert not (MADE_ELSEWHERE | TRIED_ELSEWHERE) - public


@pytest.mark.parametrize("name", NAMES)
def test_a_value_of_another_type_is_refused_by_the_name_of_its_argument(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # Text is a path.
    function, given = calls(tmp_path)[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values that are accepted, such as paths of pictures without suffix
        if name not in INCOMPLETE:
            function(**given)
        assert not foreign_errors(function, given)


@pytest.mark.parametrize(
    ("function", "given", "argument"),
    [
        (data.StoredBag, {"paths": "slide.h5"}, "paths"),
        (data.StoredBag, {"paths": ("slide.h5",), "drop_augmented": "no"}, "drop_augmented"),
        (data.StoredBag, {"paths": ("slide.h5",), "as_set": "no"}, "as_set"),
        (data.TableLayout, {"patient": 3}, "patient"),
        (data.TableLayout, {"suffix": None}, "suffix"),
        (data.SlideReading, {"drop_augmented": 1}, "drop_augmented"),
        (data.Sample, {"name": "a", "patient": "b", "bags": [SLIDE]}, "bags"),
        (train.TrainingOptions, {"device": float("nan")}, "device"),
        (train.TrainingOptions, {"device": None}, "device"),
        (deploy.CardTexts, {"limits": 3}, "limits"),
        (explain.TileMap, {"coords": TILES.coords, "size": TILES.size, "columns": TILES.columns, "unit": 3}, "unit"),
    ],
)
def test_a_value_that_would_be_believed_is_refused(
    function: Callable[..., Any], given: dict[str, Any], argument: str
) -> None:
    with pytest.raises(TypeError, match=f"^{argument} must be"):
        function(**given)
