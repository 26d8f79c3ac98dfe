"""Linear models on the same patients and folds: the floor that every network must reach.

Logistic regression (C 0.1, balanced classes), or Cox regression with a ridge penalty, on principal components: 20 of a
patient's mean patch, 40 of the genes. Everything is fitted on the training patients.
"""

import time
import warnings
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pandas as pd
import torch
from lifelines import CoxPHFitter
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from disentangled_mil.data import Cohort, ExpressionPipeline
from disentangled_mil.metrics import survival_metrics
from disentangled_mil.tasks import Classification
from disentangled_mil.train.datasets import BagCache, CohortDataset

from .experiment import Outcome, Trial
from .networks import tested

Array: TypeAlias = NDArray[np.float64]
_COMPONENTS = {"slides": 20, "genes": 40}
_INVERSE_PENALTY, _COX_PENALTY = 0.1, 0.1


@dataclass(frozen=True)
class Linear:
    """A linear model for each input; several are averaged (late fusion).

    Args:
        inputs: ``"slides"``, ``"genes"`` or both.
    """

    inputs: tuple[str, ...] = ("slides",)

    def __call__(self, trial: Trial) -> Outcome:
        """Fit and test."""
        name, split = trial.case.task, trial.split
        train = split.train if self.inputs == ("slides",) else split.train.with_expression()
        task, pipeline = split.train.fit_task(name), split.train.fit_expression()
        labels = train.labels(name)
        start = time.perf_counter()
        given = _inputs(train, labels.index, pipeline, trial.cache)
        models = [_fit(given[each], labels, _COMPONENTS[each]) for each in self.inputs]
        seconds = time.perf_counter() - start
        measures = {"training s per patient": seconds / len(labels)}
        predicted = {}
        for test, cohort in split.tests.items():
            truth = cohort.labels(name)
            tests = _inputs(cohort, truth.index, pipeline, trial.cache)
            start = time.perf_counter()
            each = [model(tests[kind]) for model, kind in zip(models, self.inputs, strict=True)]
            measures.setdefault("prediction ms", 1000 * (time.perf_counter() - start) / len(truth))
            predicted[test] = np.mean(each, axis=0)
        if isinstance(task, Classification):
            datasets = [CohortDataset(cohort, name, task, cache=trial.cache) for cohort in split.tests.values()]
            logits = {}
            for dataset, (test, cohort) in zip(datasets, split.tests.items(), strict=True):
                row = {patient: k for k, patient in enumerate(cohort.labels(name).index)}
                rows = [row[patient] for patient in dataset.patients]
                logits[test] = torch.from_numpy(predicted[test][rows]).clamp(min=1e-12).log()
            return tested(task, logits, datasets, measures)
        return _survival({test: (cohort.labels(name), predicted[test]) for test, cohort in split.tests.items()}, measures)


def _inputs(cohort: Cohort, patients: pd.Index, pipeline: ExpressionPipeline, cache: BagCache) -> dict[str, Array]:
    """The inputs of the patients: the mean patch over all slides (magnifications side by side), and the scaled genes."""
    sums: dict[str, list[tuple[Array, int]]] = {patient: [] for patient in patients}
    for sample in cohort.samples:
        if sample.patient in sums:
            bags = cache.load(sample).values()
            mean = np.concatenate([bag.patches[bag.mask].double().mean(0).numpy() for bag in bags])
            sums[sample.patient].append((mean, sum(int(bag.mask.sum()) for bag in bags)))
    slides = [np.average([m for m, _ in each], axis=0, weights=[n for _, n in each]) for each in sums.values()]
    given = {"slides": np.stack(slides)}
    if cohort.expression is not None and set(patients) <= set(cohort.expression.index):
        given["genes"] = np.concatenate([v.numpy() for v in pipeline.transform(cohort.expression.loc[patients]).values()], 1)
    return given


def _fit(inputs: Array, labels: pd.DataFrame, components: int):  # type: ignore[no-untyped-def]
    """A function from inputs to class probabilities [n, K], or to the risk [n]."""
    components = min(components, *inputs.shape)
    scale = make_pipeline(StandardScaler(), PCA(components, random_state=0), StandardScaler())
    if "label" in labels:
        logistic = LogisticRegression(C=_INVERSE_PENALTY, class_weight="balanced", max_iter=5000)
        return make_pipeline(scale, logistic).fit(inputs, labels["label"]).predict_proba
    table = pd.DataFrame(scale.fit_transform(inputs)).add_prefix("component ")
    table[["time", "event"]] = labels[["time", "event"]].to_numpy(float)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lifelines and pandas disagree about their versions
        cox = CoxPHFitter(penalizer=_COX_PENALTY).fit(table, "time", "event")
    weights = cox.params_.to_numpy()
    return lambda given: scale.transform(given) @ weights


def _survival(predicted: dict[str, tuple[pd.DataFrame, Array]], measures: dict[str, float]) -> Outcome:
    """Metrics and predictions of risks."""
    metrics, tables = {}, []
    for test, (labels, risk) in predicted.items():
        patients = list(labels.index)
        metrics[test] = survival_metrics(risk, labels["time"], event=labels["event"], patients=patients)
        table = labels.reset_index(drop=True).assign(patient=patients, risk=risk, test=test)
        tables.append(table)
    return Outcome(metrics, pd.concat(tables, ignore_index=True), measures)
