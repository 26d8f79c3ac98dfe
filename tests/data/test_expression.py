"""Expression: found by name, selected and scaled on training patients, refused where it does not fit."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import StandardScaler

from disentangled_mil.data.expression import ExpressionOptions, ExpressionPipeline, read_expression
from disentangled_mil.data.folds import patient_folds
from disentangled_mil.data.gene_sets import gene_subspaces, read_gmt

SETS = {"tumor": ("EGFR", "TP53", "PTEN", "ABSENT"), "tme": ("CD2", "EGFR")}
CHOICE = {"tumor": ["TUMOR"], "tme": ["TME"]}


def counts(patients: int = 12, seed: int = 0, genes: tuple[str, ...] = ("CD2", "EGFR", "PTEN", "TP53")) -> pd.DataFrame:
    values = np.random.default_rng(seed).gamma(2.0, 1.0, (patients, len(genes))) * (1 + np.arange(len(genes)))
    return pd.DataFrame(values, index=[f"P{p}" for p in range(patients)], columns=list(genes))


def write(tmp_path, text: str):
    path = tmp_path / "expression.csv"
    path.write_text(text)
    return path


def test_a_table_is_read_as_it_stands(tmp_path):
    table = read_expression(write(tmp_path, "id,EGFR,CD2,EGFR\nB,1,2.5,3\nA,-1e3,0,4\n"))
    assert list(table.columns) == ["EGFR", "CD2", "EGFR"]
    assert list(table.index) == ["B", "A"]
    assert table.to_numpy().tolist() == [[1.0, 2.5, 3.0], [-1000.0, 0.0, 4.0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "id,EGFR,CD2\nA,1,2\nB,1,low\n",
            r"expression\.csv, line 3, gene 'CD2': must be a finite number, got 'low'",
        ),
        ("id,EGFR,CD2\nA,,NaN\n", r"must have at least one gene with values, got 2 without: EGFR, CD2"),
        ("id,EGFR,CD2\nA,1,-inf\n", r"line 2, gene 'CD2': must be a finite number, got '-inf'"),
        ("id,EGFR\nA,1\nB,2\nA,3\n", r"line 4: patients must be different, got 'A' again \(line 2\)"),
        ("id,EGFR\n ,1\n", r"line 2: a row must start with its patient, got an empty cell"),
        ("id,EGFR\nA,1,2\n", r"line 2: a row must have 2 cells like the header, got 3"),
        ("id,EGFR\n", r"expression\.csv: must have at least one patient, got only a header"),
        ("id\nA\n", r"must have the patient and then at least one gene as columns, got one column"),
    ],
)
def test_malformed_tables_are_refused_with_line_and_gene(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_expression(write(tmp_path, text))


def test_without_limits_scaling_is_that_of_scikit_learn_on_log_values():
    table = counts()
    pipeline = ExpressionPipeline.fit(table, SETS, ExpressionOptions(fraction=1, clip=None))
    assert pipeline.genes == {"tumor": ("EGFR", "TP53", "PTEN"), "tme": ("CD2", "EGFR")}
    assert pipeline.sizes == {"tumor": 3, "tme": 2}
    scaler = StandardScaler().fit(np.log1p(table.to_numpy()))
    other = counts(5, seed=1)
    want = pd.DataFrame(scaler.transform(np.log1p(other.to_numpy())), columns=other.columns)
    for subspace, values in pipeline.transform(other).items():
        expected = torch.tensor(want[list(pipeline.genes[subspace])].to_numpy(), dtype=torch.float32)
        torch.testing.assert_close(values, expected)


def test_limits_and_scale_by_hand():
    # median 2, median absolute deviation 1: limits 2 +- 2 * 1.4826
    table = pd.DataFrame({"EGFR": [0.0, 1.0, 2.0, 3.0, 1000.0]})
    pipeline = ExpressionPipeline.fit(table, {"tumor": ["EGFR"]}, ExpressionOptions(log1p=False, clip=2.0, fraction=1))
    limited = np.array([0.0, 1.0, 2.0, 3.0, 2 + 2 * 1.4826])
    known = pipeline.statistics["EGFR"]
    assert known == pytest.approx((2.0, 1.4826, limited.mean(), limited.std()))
    want = (limited - limited.mean()) / limited.std()
    assert pipeline.transform(table)["tumor"][:, 0].tolist() == pytest.approx(want.tolist(), rel=1e-6)


def test_a_gene_that_is_mostly_zero_is_limited_by_its_standard_deviation():
    table = pd.DataFrame({"EGFR": [0.0] * 9 + [10.0]})
    known = ExpressionPipeline.fit(table, {"tumor": ["EGFR"]}, ExpressionOptions(log1p=False, clip=2.0)).statistics[
        "EGFR"
    ]
    assert known.spread == pytest.approx(3.0)
    assert known.mean == pytest.approx(0.6)


def test_one_outlier_leaves_the_scale_of_the_others():
    table = counts(100)
    spoilt = table.copy()
    spoilt.iloc[0] = 1e6
    options = {"log1p": False, "fraction": 1.0}
    clean, limited = (
        ExpressionPipeline.fit(t, SETS, ExpressionOptions(**options)).transform(table) for t in (table, spoilt)
    )
    unlimited = ExpressionPipeline.fit(spoilt, SETS, ExpressionOptions(clip=None, **options)).transform(table)
    for subspace in SETS:
        assert 0.7 < limited[subspace][1:].std() / clean[subspace][1:].std() < 1
        assert unlimited[subspace][1:].std() < 1e-3


@pytest.mark.parametrize("clip", [None, 10.0])
def test_constant_genes_become_zero_for_everyone(clip):
    table = counts().assign(EGFR=0.1)
    pipeline = ExpressionPipeline.fit(table, SETS, ExpressionOptions(fraction=1, clip=clip))
    other = pipeline.transform(counts(3, seed=5))["tme"]
    assert other[:, 1].tolist() == [0.0, 0.0, 0.0]
    assert other[:, 0].abs().min() > 0


@settings(max_examples=25)
@example(seed=1, statistic="dispersion", fraction=0.625, patients=7)  # ties of genes in bins of two
@given(
    seed=st.integers(0, 999),
    statistic=st.sampled_from(["variance", "mad", "dispersion"]),
    fraction=st.floats(0.05, 1),
    patients=st.integers(2, 15),
)
def test_the_order_of_columns_and_patients_does_not_matter(seed, statistic, fraction, patients):
    generator = np.random.default_rng(seed)
    table = counts(patients, seed, tuple(f"G{g}" for g in range(12)))
    sets = {"tumor": [f"G{g}" for g in generator.permutation(12)[:8]], "tme": ["G3", "G0", "G7"]}
    columns, rows = generator.permutation(12), generator.permutation(patients)
    first = ExpressionPipeline.fit(table, sets, ExpressionOptions(statistic=statistic, fraction=fraction))
    second = ExpressionPipeline.fit(
        table.iloc[rows, columns], sets, ExpressionOptions(statistic=statistic, fraction=fraction)
    )
    assert first.genes == second.genes
    for subspace, values in first.transform(table).items():
        assert values.shape == (patients, max(1, round(fraction * len(sets[subspace]))))
        assert values.isfinite().all()
        again = second.transform(table.iloc[rows, columns])[subspace]
        torch.testing.assert_close(again, values[torch.from_numpy(rows)], rtol=1e-4, atol=1e-5)


def test_the_most_variable_genes_of_each_set_are_kept_in_the_order_of_the_set():
    table = pd.DataFrame({f"G{g}": np.array([0.0, 1.0, 2.0, 3.0]) * g for g in range(10)})
    sets = {"tumor": [f"G{g}" for g in (3, 9, 0, 8, 7)], "tme": ["G1", "G2"]}
    for statistic in ("variance", "mad"):
        pipeline = ExpressionPipeline.fit(
            table, sets, ExpressionOptions(log1p=False, fraction=0.4, statistic=statistic)
        )
        assert pipeline.genes == {"tumor": ("G9", "G8"), "tme": ("G2",)}


def test_ties_are_broken_by_name():
    table = pd.DataFrame({name: [0.0, 1.0, 2.0] for name in "CABD"})
    pipeline = ExpressionPipeline.fit(table, {"tumor": list("DCBA")}, ExpressionOptions(fraction=0.5))
    assert pipeline.genes == {"tumor": ("B", "A")}


def test_selection_never_looks_at_other_patients():
    table = counts(20)
    before = ExpressionPipeline.fit(table[:10], SETS, ExpressionOptions(fraction=0.5))
    table.iloc[10:] *= 1e3
    assert ExpressionPipeline.fit(table[:10], SETS, ExpressionOptions(fraction=0.5)) == before


@pytest.mark.parametrize("dtype", ["datetime64[ns]", "timedelta64[ns]", "complex128"])
def test_columns_of_dates_and_complex_numbers_are_no_expression(dtype):
    table = counts().assign(EGFR=np.arange(len(counts())).astype(dtype))
    pipeline = ExpressionPipeline.fit(counts(), SETS)
    for use in (pipeline.transform, lambda t: ExpressionPipeline.fit(t, SETS)):
        with pytest.raises(
            TypeError, match=r"table must hold numbers, got (datetime|timedelta|complex).* for gene 'EGFR'"
        ):
            use(table)


def test_genes_are_matched_by_symbol():
    names = ["ENSG00000146648.18", "TP53|7157", "HLA-A", "AC012345.1", "?|1", "?|2"]
    table = counts(6, genes=tuple(names))
    sets = {"tumor": ["ENSG00000146648", "TP53"], "tme": ["HLA-A", "AC012345.1", "AC012345"]}
    pipeline = ExpressionPipeline.fit(table, sets, ExpressionOptions(fraction=1))
    assert pipeline.genes == {"tumor": ("ENSG00000146648", "TP53"), "tme": ("HLA-A", "AC012345.1")}
    renamed = table.rename(columns={"ENSG00000146648.18": "ENSG00000146648.2", "TP53|7157": "TP53"})
    for subspace, values in pipeline.transform(renamed).items():
        assert torch.equal(values, pipeline.transform(table)[subspace])


@pytest.mark.parametrize(("duplicates", "value"), [("mean", 2.0), ("max", 3.0), ("first", 1.0)])
def test_columns_of_one_symbol_are_made_one_as_asked(duplicates, value):
    table = pd.DataFrame([[1.0, 3.0, 5.0], [0.0, 0.0, 0.0]], columns=["EGFR|1", "EGFR|2", "CD2"])
    pipeline = ExpressionPipeline.fit(
        table, {"tumor": ["EGFR"]}, ExpressionOptions(log1p=False, clip=None, fraction=1, duplicates=duplicates)
    )
    assert pipeline.statistics["EGFR"].mean == value / 2
    single = pd.DataFrame({"EGFR": [value]})
    assert torch.equal(pipeline.transform(table)["tumor"][:1], pipeline.transform(single)["tumor"])


def test_duplicates_are_an_error_by_default_but_only_where_they_matter():
    table = counts(genes=("EGFR", "EGFR|1956", "CD2", "SPARE", "SPARE"))
    with pytest.raises(ValueError, match=r"every gene once, got 'EGFR' in the columns EGFR, EGFR\|1956; duplicates ="):
        ExpressionPipeline.fit(table, SETS)
    pipeline = ExpressionPipeline.fit(table, {"tme": ["CD2"]})
    with pytest.raises(ValueError, match="every gene once, got 'CD2' in the columns CD2, CD2"):
        pipeline.transform(pd.concat([table, table], axis=1))


def test_missing_genes_are_an_error_or_the_training_mean():
    table = counts()
    pipeline = ExpressionPipeline.fit(table, SETS, ExpressionOptions(fraction=1))
    with pytest.raises(ValueError, match=r"the 3 genes of 'tumor', but 1 are missing: TP53; missing='impute' would"):
        pipeline.transform(table.drop(columns="TP53"))
    lenient = replace(pipeline, options=replace(pipeline.options, missing="impute"))
    imputed = lenient.transform(table.drop(columns="TP53"))
    assert imputed["tumor"][:, 1].tolist() == [0.0] * 12
    assert torch.equal(imputed["tumor"][:, [0, 2]], pipeline.transform(table)["tumor"][:, [0, 2]])
    with pytest.raises(ValueError, match=r"the 2 genes of 'tme', but 2 are missing: CD2, EGFR$"):
        lenient.transform(table[["TP53", "PTEN"]])


def test_unusable_values_are_refused_with_patient_and_gene():
    table = counts()
    pipeline = ExpressionPipeline.fit(table, SETS, ExpressionOptions(fraction=1))
    spoilt = table.copy()
    spoilt.loc["P3", "CD2"] = np.nan
    for use in (pipeline.transform, lambda t: ExpressionPipeline.fit(t, SETS)):
        with pytest.raises(ValueError, match="must hold finite numbers, got nan for patient 'P3', gene 'CD2'"):
            use(spoilt)
        with pytest.raises(ValueError, match=r"log1p needs values >= 0, got -.* need log1p=False"):
            use(table - 50)
    with pytest.raises(ValueError, match=r"statistic 'dispersion' needs values >= 0, got -"):
        ExpressionPipeline.fit(table - 50, SETS, ExpressionOptions(log1p=False, statistic="dispersion"))


def test_tables_that_cannot_be_fitted_are_refused():
    table = counts()
    with pytest.raises(ValueError, match="table must hold at least two patients, got 1"):
        ExpressionPipeline.fit(table[:1], SETS)
    with pytest.raises(ValueError, match="table must hold every patient once, got 'P0' twice"):
        ExpressionPipeline.fit(pd.concat([table, table[:1]]), SETS)
    with pytest.raises(ValueError, match=r"at least one of the 1 genes of 'tme' \(IL6\), got CD2, EGFR, PTEN, TP53"):
        ExpressionPipeline.fit(table, {"tumor": ["EGFR"], "tme": ["IL6"]})
    with pytest.raises(ValueError, match="gene_sets must hold the genes of at least one subspace, got none"):
        ExpressionPipeline.fit(table, {})
    with pytest.raises(TypeError, match=r"gene_sets\['tme'\] must be several names, got the text 'CD2'"):
        ExpressionPipeline.fit(table, {"tme": "CD2"})
    many = {"tme": [f"X{g}" for g in range(9)]}
    with pytest.raises(ValueError, match=r"\(X0, X1, X2, X3, X4 and 4 more\)"):
        ExpressionPipeline.fit(table, many)


@pytest.mark.parametrize(
    ("option", "error", "message"),
    [
        ({"log1p": 1}, TypeError, "log1p must be True or False, got 1"),
        ({"fraction": 0.0}, ValueError, r"fraction must lie in \(0, 1\], got 0.0"),
        ({"fraction": "all"}, TypeError, "fraction must be a number, got str"),
        (
            {"statistic": "std"},
            ValueError,
            "statistic must be one of 'variance', 'mad', 'dispersion', got 'std'",
        ),
        ({"clip": 0.0}, ValueError, r"clip must lie in \(0, .*\], got 0.0"),
        (
            {"duplicates": "last"},
            ValueError,
            "duplicates must be one of 'error', 'mean', 'max', 'first', got 'last'",
        ),
        ({"missing": "zero"}, ValueError, "missing must be one of 'error', 'impute', got 'zero'"),
    ],
)
def test_options_out_of_range_are_refused(option, error, message):
    with pytest.raises(error, match=message):
        ExpressionOptions(**option)


def test_saving_and_loading_changes_nothing(tmp_path):
    pipeline = ExpressionPipeline.fit(counts(), SETS, ExpressionOptions(fraction=0.5, clip=None, missing="impute"))
    pipeline.save(tmp_path / "genes.json")
    loaded = ExpressionPipeline.load(tmp_path / "genes.json")
    assert loaded == pipeline
    assert loaded.digest == pipeline.digest
    assert list(loaded.genes) == list(pipeline.genes)
    for subspace, values in loaded.transform(counts(seed=3)).items():
        assert torch.equal(values, pipeline.transform(counts(seed=3))[subspace])
    assert [path.name for path in tmp_path.iterdir()] == ["genes.json"]


def test_the_digest_tells_genes_order_and_options_apart():
    base = ExpressionPipeline.fit(counts(), SETS, ExpressionOptions(fraction=1))
    digests = {
        pipeline.digest
        for pipeline in (
            base,
            replace(base, options=replace(base.options, missing="impute")),
            replace(base, genes=dict(reversed(base.genes.items()))),
            replace(base, genes={s: genes[::-1] for s, genes in base.genes.items()}),
            ExpressionPipeline.fit(counts(seed=1), SETS, ExpressionOptions(fraction=1)),
        )
    }
    assert len(digests) == 5


def test_changed_or_foreign_files_are_refused(tmp_path):
    path = tmp_path / "genes.json"
    pipeline = ExpressionPipeline.fit(counts(), SETS)
    pipeline.save(path)
    state = json.loads(path.read_text())
    for key, value in (
        ("statistics", {**state["statistics"], "CD2": [0.0, 1.0, 2.0, 3.0]}),
        ("genes", [["tme", ["CD2"]]]),
        ("sha256", "0"),
    ):
        path.write_text(json.dumps({**state, key: value}))
        with pytest.raises(ValueError, match=r"genes\.json: state must match its SHA-256"):
            ExpressionPipeline.load(path)
    for text, message in (
        ("{}", r"genes\.json: must have the key 'format', got none"),
        ("[]", r"genes\.json: must hold one JSON object, got \[\]"),
        (json.dumps({**state, "format": "x"}), "format must be 'disentangled_mil expression 1', got 'x'"),
        (json.dumps({**state, "clip": 3.0}), "has the unknown key 'clip'; known are format, options"),
        (json.dumps({**state, "genes": [["tme"]]}), r"genes\[0\] must be a list of length 2, got \['tme'\]"),
        (json.dumps(state)[:-9], r"genes\.json: "),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            ExpressionPipeline.load(path)


def test_statistics_must_cover_the_genes():
    with pytest.raises(ValueError, match="statistics must hold every gene of 'tumor', but lacks EGFR"):
        ExpressionPipeline({"tumor": ("EGFR",)}, {})


def test_real_z_scores_of_two_cohorts_are_scaled_fold_by_fold(shared):
    data = shared / "data"
    sets = gene_subspaces(read_gmt(data / "genes" / "tumor_tme.gmt"), CHOICE)
    kidney = read_expression(data / "tcga_kirc" / "expression.csv.gz")
    assert kidney.shape == (342, 1556)
    with pytest.raises(ValueError, match="log-transformed or z-scored tables need log1p=False"):
        ExpressionPipeline.fit(kidney, sets)
    fold = patient_folds(kidney.index, [0] * 342)[0]
    pipeline = ExpressionPipeline.fit(kidney.loc[list(fold.train)], sets, ExpressionOptions(log1p=False, fraction=1))
    assert pipeline.sizes == {"tumor": 406, "tme": 235}
    for values in pipeline.transform(kidney.loc[list(fold.train)]).values():
        torch.testing.assert_close(values.mean(0), torch.zeros(values.shape[1]), atol=1e-5, rtol=0)
        torch.testing.assert_close(values.std(0, correction=0), torch.ones(values.shape[1]))
    for values in pipeline.transform(kidney.loc[list(fold.test)]).values():
        assert values.abs().max() < 40


@pytest.mark.parametrize("statistic", ["variance", "mad", "dispersion"])
def test_real_tpm_with_entrez_numbers_is_selected(shared, statistic):
    with np.load(shared / "data" / "tcga_gbm_tpm.npz") as arrays:
        table = pd.DataFrame(arrays["tpm"], index=arrays["patient_id"], columns=arrays["gene"])
    sets = gene_subspaces(read_gmt(shared / "data" / "genes" / "tumor_tme.gmt"), CHOICE)
    pipeline = ExpressionPipeline.fit(table, sets, ExpressionOptions(statistic=statistic))
    assert pipeline.sizes == {"tumor": round(0.3 * 896), "tme": round(0.3 * 726)}
    everything = ExpressionPipeline.fit(table, {"all": [name for name in table if "SLC35E2|" not in name]})
    assert everything.sizes == {"all": round(0.3 * (20531 - 2))}


def test_genes_under_other_names_are_told_and_not_silently_lost():
    table = counts(20, genes=("EGFR", "HLA.A", "HLA.DRA", "1-Mar", "9-Sep"))
    sets = {"tumor": ["EGFR", "MARCH1", "SEPT9"], "tme": ["EGFR", "HLA-A", "HLA-DRA"]}
    with pytest.warns(UserWarning, match="under other names") as caught:
        pipeline = ExpressionPipeline.fit(table, sets, ExpressionOptions(fraction=1))
    told = " ".join(str(warning.message) for warning in caught)
    assert "2 genes of 'tumor' that it may hold under other names: MARCH1 as '1-Mar', SEPT9 as '9-Sep'" in told
    assert "2 genes of 'tme' that it may hold under other names: HLA-A as 'HLA.A', HLA-DRA as 'HLA.DRA'" in told
    assert pipeline.genes == {"tumor": ("EGFR",), "tme": ("EGFR",)}
    right = table.set_axis(["EGFR", "HLA-A", "HLA-DRA", "MARCH1", "SEPT9"], axis=1)
    pipeline = ExpressionPipeline.fit(right, sets, ExpressionOptions(fraction=1))
    with pytest.raises(
        ValueError, match=r"2 are missing: MARCH1, SEPT9; it may hold MARCH1 as '1-Mar', SEPT9 as '9-Sep'"
    ):
        pipeline.transform(table)


def test_identifiers_against_symbols_are_told():
    table = counts(genes=("ENSG00000146648.18", "ENSG00000141510.11"))
    with pytest.raises(
        ValueError, match="; table holds Ensembl identifiers and gene_sets symbols: name a table of both"
    ):
        ExpressionPipeline.fit(table, {"tumor": ["EGFR", "TP53"]})


def test_gene_sets_without_a_description_lose_a_gene_with_a_warning(tmp_path):
    (tmp_path / "sets.gmt").write_text("tumor\tEGFR\tTP53\tPTEN\ntme\tCD2\tEGFR\n")
    with pytest.warns(UserWarning, match=r"theirs are genes of the table \(EGFR, CD2\), which are lost: add a column"):
        ExpressionPipeline.fit(counts(), read_gmt(tmp_path / "sets.gmt"))
    (tmp_path / "sets.gmt").write_text("tumor\tsource\tEGFR\tTP53\tPTEN\ntme\tCD2\tEGFR\tCD2\n")
    ExpressionPipeline.fit(counts(), read_gmt(tmp_path / "sets.gmt"))  # a description that is a member loses nothing


def test_arguments_of_another_kind_are_told():
    table = counts()
    for use in (lambda t: ExpressionPipeline.fit(t, SETS), ExpressionPipeline.fit(table, SETS).transform):
        with pytest.raises(TypeError, match="table must be a pandas DataFrame, patients x genes, got ndarray"):
            use(table.to_numpy())
    for member in (1956, None, float("nan")):
        with pytest.raises(TypeError, match=rf"gene_sets\['tme'\] must hold names as text, got {member}"):
            ExpressionPipeline.fit(table, {"tumor": ["EGFR"], "tme": ["CD2", member]})
    text = table.astype(str)
    assert ExpressionPipeline.fit(text, SETS).genes == ExpressionPipeline.fit(table, SETS).genes
    text.loc["P3", "EGFR"] = "1,5"
    with pytest.raises(ValueError, match="table must hold numbers, got '1,5' for patient 'P3', gene 'EGFR'"):
        ExpressionPipeline.fit(text, SETS)


def test_a_plain_list_of_genes_is_one_subspace():
    pipeline = ExpressionPipeline.fit(counts(), ["EGFR", "CD2"], ExpressionOptions(fraction=1))
    assert pipeline.genes == {"genes": ("EGFR", "CD2")}
    for wrong, message in (("EGFR", "got str"), ({"EGFR"}, "got set"), (["EGFR", 1956], "got 1956")):
        with pytest.raises(TypeError, match=f"gene_sets must .*{message}"):
            ExpressionPipeline.fit(counts(), wrong)


def test_subspaces_of_several_tables_have_their_own_options():
    table = counts().assign(**{"cnv:EGFR": np.linspace(-1, 1, 12), "cnv:CD2": np.linspace(2, -2, 12)})
    sets = {"tumor": ["EGFR", "TP53"], "amplified": ["cnv:EGFR", "cnv:CD2"]}
    options = {
        "tumor": ExpressionOptions(fraction=0.5),
        "amplified": ExpressionOptions(log1p=False, fraction=1, clip=None),
    }
    pipeline = ExpressionPipeline.fit(table, sets, options)
    assert pipeline.sizes == {"tumor": 1, "amplified": 2}
    assert list(pipeline.sizes) == list(sets)
    out = pipeline.transform(table)
    want = StandardScaler().fit_transform(table[["cnv:EGFR", "cnv:CD2"]])
    torch.testing.assert_close(out["amplified"], torch.tensor(want, dtype=torch.float32))
    alone = ExpressionPipeline.fit(table, {"tumor": sets["tumor"]}, options["tumor"]).transform(table)
    torch.testing.assert_close(out["tumor"], alone["tumor"])
    assert ExpressionPipeline.from_state(json.loads(json.dumps(pipeline.state()))) == pipeline
    with pytest.raises(ValueError, match=r"must not share genes, got 'EGFR' in several"):
        ExpressionPipeline.fit(table, {"tumor": ["EGFR"], "amplified": ["EGFR"]}, options)
    with pytest.raises(ValueError, match=r"options must have exactly the names"):
        ExpressionPipeline.fit(table, sets, {"tumor": ExpressionOptions()})
