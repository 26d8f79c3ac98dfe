"""The scale of a table is recognized, and refused where log1p contradicts it."""

import numpy as np
import pandas as pd
import pytest

from disentangled_mil.data._scale import recognize_scale
from disentangled_mil.data.expression import ExpressionOptions, ExpressionPipeline, read_expression

TRANSFORMS = {
    "linear": lambda x: x,
    "counts": np.round,
    "log": lambda x: np.log2(x + 1),
    "z-scores": lambda x: (np.log1p(x) - np.log1p(x).mean(0)) / np.log1p(x).std(0),
}


def tpm(patients: int = 60, genes: int = 400) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    values = rng.lognormal(0, rng.uniform(0.2, 1.2, genes), (patients, genes)) * rng.lognormal(1, 2, genes)
    return pd.DataFrame(values, columns=[f"G{g}" for g in range(genes)])


@pytest.mark.parametrize("scale", TRANSFORMS)
def test_simulated_scales_are_recognized(scale):
    assert recognize_scale(TRANSFORMS[scale](tpm().to_numpy())).name == scale


@pytest.mark.parametrize("logarithm", [np.log1p, lambda x: np.log2(x + 1), lambda x: np.log10(x + 1)])
def test_a_logarithm_is_not_logged_again_without_a_word(logarithm):
    table, sets = tpm(), {"tumor": [f"G{g}" for g in range(200)], "tme": [f"G{g}" for g in range(200, 400)]}
    ExpressionPipeline.fit(table, sets)
    with pytest.raises(ValueError, match=r"log1p needs counts, TPM or FPKM, .* log-transformed .* set log1p to False"):
        ExpressionPipeline.fit(logarithm(table), sets)
    ExpressionPipeline.fit(logarithm(table), sets, ExpressionOptions(log1p=False))
    ExpressionPipeline.fit(logarithm(table), sets, ExpressionOptions(scale="linear"))


def test_linear_values_without_a_logarithm_are_refused_unless_the_scale_is_stated():
    table, sets = tpm(), {"tumor": [f"G{g}" for g in range(200)]}
    with pytest.raises(ValueError, match=r"log1p is False for log-transformed .* linear values.* set log1p to True"):
        ExpressionPipeline.fit(table, sets, ExpressionOptions(log1p=False))
    ExpressionPipeline.fit(table, sets, ExpressionOptions(log1p=False, scale="linear"))


@pytest.mark.parametrize("scale", ["log", "centered", "z-scores"])
def test_log1p_contradicts_a_stated_scale(scale):
    with pytest.raises(ValueError, match=f"log1p must be False for scale '{scale}', got True"):
        ExpressionOptions(scale=scale)


def test_few_genes_or_patients_tell_nothing():
    assert recognize_scale(tpm(60, 19).to_numpy()).name == "unknown"
    assert recognize_scale(tpm(4, 400).to_numpy()).name == "unknown"
    assert recognize_scale(tpm().to_numpy() / 1e9).name == "fractions"


@pytest.mark.parametrize("cohort", ["tcga_gbmlgg", "tcga_kirc", "tcga_stad"])
def test_real_z_scores_are_recognized(shared, cohort):
    table = read_expression(shared / "data" / cohort / "expression.csv.gz")
    assert recognize_scale(table.to_numpy()).name == "z-scores"


def test_real_tpm_and_its_logarithms_are_recognized(shared):
    with np.load(shared / "data" / "tcga_gbm_tpm.npz") as arrays:
        values = arrays["tpm"].astype(float)[:, ::40]
    assert recognize_scale(values).name == "linear"
    assert {recognize_scale(log(values + 1)).name for log in (np.log, np.log2, np.log10)} == {"log"}


@pytest.mark.parametrize("seed", range(3))
def test_centered_logarithms_and_copy_numbers_are_no_z_scores(seed):
    logs = np.log2(tpm().to_numpy() + 1)
    rng = np.random.default_rng(seed)
    tables = (
        logs - np.median(logs, axis=0),
        rng.normal(size=(60, 200)) * rng.uniform(0.3, 1.5, 200),
        rng.integers(-2, 3, (60, 200)).astype(float),
    )
    for table in tables:
        assert recognize_scale(table).name == "centered"
        assert str(recognize_scale(table)).startswith("centered values, such as log-ratios (")


@pytest.mark.parametrize("patients", [5, 20, 60])
def test_z_scores_of_some_of_their_patients_are_recognized(patients):
    values = np.random.default_rng(0).normal(size=(300, 400))
    scores = (values - values.mean(axis=0)) / values.std(axis=0)
    assert recognize_scale(scores[:patients]).name == "z-scores"
