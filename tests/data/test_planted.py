import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from disentangled_mil.data.cohort_file import read_cohort
from disentangled_mil.data.planted import PlantedCohort, planted_cohort, write_cohort

SMALL = {"width": 6, "grid": (5, 4), "tumor_genes": 4, "tme_genes": 5, "other_genes": 3}


@pytest.fixture(scope="module")
def planted() -> PlantedCohort:
    return planted_cohort(150, seed=11)


def _patches(planted: PlantedCohort, magnification: str = "10x") -> list[torch.Tensor]:
    return [sample.load()[magnification].patches[0] for sample in planted.cohort.samples]


def _assert_same_but_features(left: PlantedCohort, right: PlantedCohort) -> None:
    pd.testing.assert_frame_equal(left.cohort.clinical, right.cohort.clinical)
    pd.testing.assert_frame_equal(left.cohort.expression, right.cohort.expression)
    pd.testing.assert_frame_equal(left.programs, right.programs)
    assert left.gene_sets == right.gene_sets
    assert [(s.name, s.patient) for s in left.cohort.samples] == [(s.name, s.patient) for s in right.cohort.samples]
    for mine, theirs in zip(left.cohort.samples, right.cohort.samples, strict=True):
        for magnification in ("10x", "20x"):
            assert torch.equal(mine.bags[magnification].grid.cells, theirs.bags[magnification].grid.cells)
            assert torch.equal(left.regions[mine.name][magnification], right.regions[theirs.name][magnification])


def _region_means(planted: PlantedCohort, magnification: str) -> np.ndarray:
    """Mean patch of tumor and of stroma per patient [P, 2, C]."""
    per_patient: dict[str, list[torch.Tensor]] = {}
    for sample, patches in zip(planted.cohort.samples, _patches(planted, magnification), strict=True):
        tumor = planted.regions[sample.name][magnification]
        means = torch.stack([patches[tumor].mean(0), patches[~tumor].mean(0)])
        per_patient.setdefault(sample.patient, []).append(means)
    return np.stack([torch.stack(per_patient[p]).mean(0).numpy() for p in planted.cohort.patients])


def _correlation_of_fit(values: np.ndarray, program: pd.Series) -> float:
    """How well a linear fit on the even patients reads a program of the odd ones."""
    values = np.column_stack([values, np.ones(len(values))])
    truth = program.to_numpy()
    ridge = values[::2].T @ values[::2] + np.eye(values.shape[1])
    weights = np.linalg.solve(ridge, values[::2].T @ truth[::2])
    return float(np.corrcoef(values[1::2] @ weights, truth[1::2])[0, 1])


@settings(max_examples=25)
@given(
    patients=st.integers(1, 5),
    seed=st.integers(0, 2**31),
    width=st.integers(4, 9),
    grid=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    genes=st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(0, 6)),
    shift=st.floats(0, 3),
    censoring=st.floats(0, 0.9),
)
def test_any_size_gives_a_whole_cohort(patients, seed, width, grid, genes, shift, censoring):
    tumor, tme, other = genes
    cohort, regions, programs, gene_sets = planted_cohort(
        patients,
        seed=seed,
        width=width,
        grid=grid,
        shift=shift,
        tumor_genes=tumor,
        tme_genes=tme,
        other_genes=other,
        censoring=censoring,
    )
    assert len(cohort.clinical) == len(cohort.expression) == len(programs) == patients
    assert patients <= len(cohort.samples) <= 2 * patients
    assert cohort.magnifications == ("10x", "20x")
    assert cohort.width == width
    assert [len(genes) for genes in gene_sets.values()] == [tumor, tme]
    assert cohort.expression.shape[1] == tumor + tme + other
    assert cohort.expression.columns.is_unique
    assert np.isfinite(cohort.expression.to_numpy()).all()
    assert (cohort.expression.to_numpy() > 0).all()
    assert (cohort.clinical["time"] >= 1).all()
    assert set(cohort.clinical["event"]) <= {0, 1}
    assert set(cohort.clinical["diagnosis"]) <= set("ABCD")
    assert set(cohort.clinical["grade"]) <= {"G2", "G3", "G4"}
    assert set(regions) == {sample.name for sample in cohort.samples}
    for sample in cohort.samples:
        coarse, fine = sample.bags["10x"], sample.bags["20x"]
        assert fine.patches.shape[1] == 4 * coarse.patches.shape[1]
        assert coarse.patches.dtype == torch.float32
        assert coarse.patches.isfinite().all()
        assert coarse.grid.width <= grid[0]
        assert coarse.grid.height <= grid[1]
        for magnification, bag in sample.bags.items():
            assert regions[sample.name][magnification].shape == bag.patches.shape[1:2]
            assert regions[sample.name][magnification].dtype == torch.bool
            assert len(torch.unique(bag.grid.cells[0], dim=0)) == bag.patches.shape[1]


def test_the_same_seed_gives_the_same_cohort():
    left, right = (planted_cohort(4, seed=3, shift=0.5, **SMALL) for _ in range(2))
    _assert_same_but_features(left, right)
    for magnification in ("10x", "20x"):
        for mine, theirs in zip(_patches(left, magnification), _patches(right, magnification), strict=True):
            assert torch.equal(mine, theirs)


def test_another_seed_gives_other_patients_of_the_same_world():
    left, right = (planted_cohort(120, seed=seed) for seed in (3, 4))
    assert not set(left.cohort.patients) & set(right.cohort.patients)
    assert not np.allclose(left.programs, right.programs)
    loadings = []
    for planted in (left, right):
        genes = list(planted.gene_sets["tumor"])
        logs = np.log(planted.cohort.expression[genes].to_numpy())
        loadings.append(np.cov(logs.T, planted.programs["tumor"])[-1, :-1])
    assert np.corrcoef(loadings)[0, 1] > 0.8


def test_another_world_has_other_genes_and_features_but_the_same_labels():
    left, right = (planted_cohort(3, seed=3, world_seed=world, **SMALL) for world in (0, 1))
    pd.testing.assert_frame_equal(left.cohort.clinical, right.cohort.clinical)
    assert not np.allclose(left.cohort.expression, right.cohort.expression)
    assert not torch.allclose(_patches(left)[0], _patches(right)[0])


def test_the_first_patients_of_a_larger_cohort_are_the_smaller_cohort():
    small, large = (planted_cohort(patients, seed=5, shift=1.0, **SMALL) for patients in (3, 6))
    assert large.cohort.patients[:3] == small.cohort.patients
    pd.testing.assert_frame_equal(large.programs[:3], small.programs)
    pd.testing.assert_frame_equal(large.cohort.expression[:3], small.cohort.expression)
    labels = ["diagnosis", "grade"]
    pd.testing.assert_frame_equal(large.cohort.clinical[labels][:3], small.cohort.clinical[labels])
    for mine, theirs in zip(_patches(small), _patches(large), strict=False):
        assert torch.equal(mine, theirs)


def test_shift_changes_features_by_degrees_and_nothing_else():
    plain, *shifted = (planted_cohort(6, seed=5, shift=shift, **SMALL) for shift in (0.0, 0.5, 1.0, 2.0))
    distances = []
    for planted in shifted:
        _assert_same_but_features(plain, planted)
        pairs = zip(_patches(plain), _patches(planted), strict=True)
        distances.append(torch.cat([(a - b).norm(dim=1) for a, b in pairs]).mean().item())
    assert 0 < distances[0] < distances[1] < distances[2]


def test_regions_and_cells_are_those_of_the_same_tissue_at_both_magnifications(planted):
    for sample in planted.cohort.samples:
        coarse, fine = sample.bags["10x"].grid.cells[0], sample.bags["20x"].grid.cells[0]
        assert torch.equal(fine // 2, coarse.repeat_interleave(4, dim=0))
        tumor = planted.regions[sample.name]
        share = tumor["20x"].reshape(-1, 4).float().mean(dim=1)
        assert torch.equal(tumor["10x"], share >= 0.5)


def test_outlines_are_irregular_and_hold_nests_and_stroma(planted):
    for sample in planted.cohort.samples:
        grid, tumor = sample.bags["10x"].grid, planted.regions[sample.name]["20x"]
        assert not grid.full
        assert 60 <= grid.mask.sum() <= 150
        assert 0.2 < tumor.float().mean() < 0.7
    slides = pd.Series([sample.patient for sample in planted.cohort.samples]).value_counts()
    assert set(slides) == {1, 2}


def test_neighboring_patches_are_mostly_of_one_tissue(planted):
    sample = planted.cohort.samples[0]
    cells = sample.bags["20x"].grid.cells[0]
    where = {
        tuple(cell): region
        for cell, region in zip(cells.tolist(), planted.regions[sample.name]["20x"].tolist(), strict=True)
    }
    pairs = [(region, where[x + 1, y]) for (x, y), region in where.items() if (x + 1, y) in where]
    assert np.mean([a == b for a, b in pairs]) > 0.8


@pytest.mark.parametrize("censoring", [0.0, 0.25, 0.4, 0.9])
def test_the_wanted_share_of_patients_is_censored(censoring):
    events = planted_cohort(100, seed=1, censoring=censoring, **SMALL).cohort.clinical["event"]
    assert (1 - events).mean() == pytest.approx(censoring, abs=0.011)


def test_genes_load_on_their_own_program_only(planted):
    logs = np.log(planted.cohort.expression)
    limit = 4.5 / len(logs) ** 0.5
    for own, other in (("tumor", "tme"), ("tme", "tumor")):
        genes = list(planted.gene_sets[own])
        assert logs[genes].corrwith(planted.programs[own]).abs().max() > 0.5
        assert logs[genes].corrwith(planted.programs[other]).abs().max() < limit
    rest = logs.drop(columns=[gene for genes in planted.gene_sets.values() for gene in genes])
    for program in ("tumor", "tme"):
        assert rest.corrwith(planted.programs[program]).abs().max() < limit


@pytest.mark.parametrize("magnification", ["10x", "20x"])
def test_each_program_shows_in_its_own_tissue_only(planted, magnification):
    tumor, stroma = _region_means(planted, magnification).transpose(1, 0, 2)
    assert _correlation_of_fit(tumor, planted.programs["tumor"]) > 0.35
    assert _correlation_of_fit(stroma, planted.programs["tme"]) > 0.35
    if magnification == "20x":  # at 10x border patches hold both tissues
        assert abs(_correlation_of_fit(stroma, planted.programs["tumor"])) < 0.35
        assert abs(_correlation_of_fit(tumor, planted.programs["tme"])) < 0.35


def test_rna_and_histology_each_tell_something_and_neither_tells_all(planted):
    logs = np.log1p(planted.cohort.expression)
    regions = _region_means(planted, "10x")
    for column, (program, genes) in enumerate(planted.gene_sets.items()):
        for values in (logs[list(genes)].to_numpy(), regions[:, column]):
            assert 0.35 < _correlation_of_fit(values, planted.programs[program]) < 0.85


def test_every_label_depends_on_both_programs(planted):
    clinical, truth = planted.cohort.clinical, planted.programs
    by_diagnosis = truth.groupby(clinical["diagnosis"]).mean()
    assert (by_diagnosis.loc[["C", "D"], "tumor"] > 0.3).all()
    assert (by_diagnosis.loc[["A", "B"], "tumor"] < -0.3).all()
    assert (by_diagnosis.loc[["B", "D"], "tme"] > 0.3).all()
    assert (by_diagnosis.loc[["A", "C"], "tme"] < -0.3).all()
    by_grade = truth.groupby(clinical["grade"]).mean()
    for program in truth:
        assert by_grade[program].is_monotonic_increasing
    dead = clinical["event"] == 1
    correlations = truth[dead].corrwith(np.log(clinical.loc[dead, "time"]))
    assert correlations["tumor"] < -0.2
    assert correlations["tme"] > 0.2


def test_without_noise_the_labels_follow_from_the_programs():
    planted = planted_cohort(50, seed=2, label_noise=0.0, **SMALL)
    high = planted.programs > 0
    expected = np.array(list("ABCD"))[2 * high["tumor"].astype(int) + high["tme"].astype(int)]
    assert planted.cohort.clinical["diagnosis"].tolist() == expected.tolist()


def test_a_written_cohort_is_read_back(tmp_path):
    planted = planted_cohort(5, seed=2, **SMALL)
    cohort = read_cohort(write_cohort(planted, tmp_path / "new" / "cohort"))
    assert cohort.tasks == planted.cohort.tasks
    for task in cohort.tasks:
        pd.testing.assert_frame_equal(cohort.labels(task), planted.cohort.labels(task))
    pd.testing.assert_frame_equal(cohort.expression, planted.cohort.expression)
    assert dict(cohort.gene_sets) == planted.gene_sets
    assert [(s.name, s.patient) for s in cohort.samples] == [(s.name, s.patient) for s in planted.cohort.samples]
    for read, made in zip(cohort.samples, planted.cohort.samples, strict=True):
        for magnification, bag in read.load().items():
            assert torch.equal(bag.grid.cells, made.bags[magnification].grid.cells)
            assert torch.equal(bag.patches, made.bags[magnification].patches.half())


@pytest.mark.parametrize("name", ["clinical.csv", "cohort.toml", "gene_sets.gmt", "slides/20x/P2-0001-1.h5"])
def test_a_written_cohort_replaces_nothing(tmp_path, name):
    planted = planted_cohort(2, seed=2, **SMALL)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(FileExistsError, match=rf"{name}: is there already; name another folder$"):
        write_cohort(planted, tmp_path)
    assert [path.read_text() for path in tmp_path.rglob("*") if path.is_file()] == ["mine"]


def test_a_cohort_without_expression_is_written_and_read_back(tmp_path):
    planted = planted_cohort(2, seed=2, **SMALL)
    bare = type(planted.cohort)(planted.cohort.samples, planted.cohort.clinical)
    cohort = read_cohort(write_cohort(planted._replace(cohort=bare), tmp_path))
    assert cohort.expression is None
    assert not (tmp_path / "expression.csv.gz").exists()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"patients": 0}, ValueError, "patients must be at least 1, got 0"),
        ({"patients": 2.0}, TypeError, "patients must be an integer, got float"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ({"world_seed": -1}, ValueError, "world_seed must be at least 0, got -1"),
        ({"width": 3}, ValueError, "width must be at least 4, got 3"),
        ({"tumor_genes": 0}, ValueError, "tumor_genes must be at least 1, got 0"),
        ({"tme_genes": 0}, ValueError, "tme_genes must be at least 1, got 0"),
        ({"other_genes": -1}, ValueError, "other_genes must be at least 0, got -1"),
        ({"grid": (3,)}, ValueError, "grid must be two numbers, columns and rows, got 1"),
        ({"grid": (3, 0)}, ValueError, "grid must be at least 1, got 0"),
        ({"shift": -0.1}, ValueError, r"shift must lie in \[0.0, 10.0\], got -0.1"),
        ({"shift": float("nan")}, ValueError, r"shift must lie in \[0.0, 10.0\], got nan"),
        ({"rna_noise": -1}, ValueError, r"rna_noise must lie in \[0.0, 10.0\], got -1"),
        ({"histology_noise": "a"}, TypeError, "histology_noise must be a number, got str"),
        ({"label_noise": 11}, ValueError, r"label_noise must lie in \[0.0, 10.0\], got 11"),
        ({"censoring": 1.0}, ValueError, r"censoring must lie in \[0.0, 0.9\], got 1.0"),
    ],
)
def test_nonsense_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        planted_cohort(**{"patients": 2, "seed": 0, **arguments})
