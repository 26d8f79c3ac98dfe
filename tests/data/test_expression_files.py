"""Expression tables as portals deliver them give one and the same table."""

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from disentangled_mil.data import TableLayout, read_expression
from disentangled_mil.data._expression_files import read_expression_file
from disentangled_mil.data._matrix_files import Names

VALUES = pd.DataFrame(
    [[1.5, 0.0, 20.25], [2.0, 3.5, 0.5]],
    index=pd.Index(["TCGA-02-0047", "TCGA-06-0125"], name="patient_id"),
    columns=["EGFR|1956", "CD2|914", "TP53|7157"],
)


def write(folder: Path, text: str, name: str = "expression.csv") -> Path:
    path = folder / name
    data = text.encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


@pytest.mark.parametrize(
    ("name", "separator", "decimal"),
    [("t.csv", ",", "."), ("t.csv", ";", ","), ("t.csv.gz", ";", "."), ("t.txt", "\t", ","), ("T.TSV", "\t", ".")],
)
@pytest.mark.parametrize("transposed", [False, True])
def test_separators_decimal_marks_and_orientation_are_recognized(tmp_path, name, separator, decimal, transposed):
    table = VALUES.T if transposed else VALUES
    text = "\ufeff" + table.to_csv(sep=separator, decimal=decimal, lineterminator="\r\n")
    pd.testing.assert_frame_equal(read_expression(write(tmp_path, text, name)), VALUES)


def test_genes_in_rows_can_be_stated_where_no_name_tells(tmp_path):
    path = write(tmp_path, "x,A,B\nEGFR,1,2\nCD2,3,4\n")
    assert list(read_expression(path).index) == ["EGFR", "CD2"]
    table = read_expression(path, TableLayout(genes_in="rows"))
    assert (list(table.index), list(table.columns)) == (["A", "B"], ["EGFR", "CD2"])
    assert table.loc["A"].tolist() == [1.0, 3.0]


def test_annotations_beside_genes_in_rows_are_no_patients(tmp_path):
    path = write(tmp_path, "Hugo_Symbol\tEntrez_Gene_Id\tTCGA-02-0047-01\nEGFR\t1956\t1.5\n", "data_mrna.txt")
    assert read_expression(path).to_dict() == {"EGFR": {"TCGA-02-0047-01": 1.5}}


def test_one_tumor_aliquot_of_each_patient_is_taken_by_the_stated_rule(tmp_path):
    names = {
        "TCGA-02-0047-11A-01R-1849-01": 0,  # normal tissue
        "TCGA-02-0047-02A-01R-1849-01": 1,  # recurrence
        "TCGA-02-0047-01B-01R-1849-01": 2,  # second vial
        "TCGA-02-0047-01A-01T-1849-01": 3,  # later analyte
        "TCGA-02-0047-01A-01R-1849-01": 4,  # lower plate
        "TCGA-02-0047-01A-01R-2000-01": 5,
        "TCGA.06.0125.06A": 6,  # metastasis alone, as R writes it
        "TCGA-06-9999-10A": 7,  # blood
        "C3L-00016": 8,
    }
    text = "id,EGFR\n" + "".join(f"{name},{value}\n" for name, value in names.items())
    table = read_expression(write(tmp_path, text), TableLayout(barcodes="patient"))
    assert table["EGFR"].to_dict() == {"TCGA-02-0047": 5.0, "TCGA-06-0125": 6.0, "C3L-00016": 8.0}


def test_identifiers_become_symbols_by_a_table_whatever_their_version(tmp_path):
    symbols = write(tmp_path, "id\tgene\tchrom\nENSG00000146648.3\tEGFR\tchr7\n", "probemap.tsv")
    path = write(tmp_path, "id,ENSG00000146648.18,ENSG00000141510.11\nA,1,2\n")
    table = read_expression(path, TableLayout(symbols=str(symbols)))
    assert list(table.columns) == ["EGFR", "ENSG00000141510.11"]
    (tmp_path / "probemap.tsv").write_text("id\tgene\nENSG1\tX\n")
    with pytest.raises(ValueError, match=r"probemap\.tsv: must hold symbols of the genes of .*, got none of ENSG"):
        read_expression(path, TableLayout(symbols=str(symbols)))


def test_a_table_with_one_row_per_slide_and_clinical_columns_is_read_by_patient_and_suffix(tmp_path):
    text = "case_id,slide_id,site,EGFR_rnaseq,EGFR_cnv\nA,a1.svs,UCSF,1.5,0\nA,a2.svs,UCSF,1.5,0\nB,b1.svs,MSKCC,2,1\n"
    path = write(tmp_path, text)
    table = read_expression(path, TableLayout(patient="case_id", suffix="_rnaseq"))
    assert table.to_dict() == {"EGFR": {"A": 1.5, "B": 2.0}}
    write(tmp_path, text.replace("a2.svs,UCSF,1.5", "a2.svs,UCSF,9"))
    with pytest.raises(ValueError, match=r"line 3: patients must be different, got 'A' again \(line 2\) with other"):
        read_expression(path, TableLayout(patient="case_id", suffix="_rnaseq"))
    with pytest.raises(ValueError, match=r"line 2, gene 'slide_id': .* got 'a1\.svs': .* ending of .* as suffix"):
        read_expression(path, TableLayout(patient="case_id"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            ",gene,TCGA-02-0047\n0,EGFR|1,1\n1,CD2|2,2\n",
            r"\.\.\.\), .* index: write the table .* \('gene'\) come first$",
        ),
        (",patient_id,EGFR\n0,A,1\n1,B,2\n", r"line 2: .* got row numbers \(0, 1, \.\.\.\), .* patient = 'patient_id'"),
        ("Unnamed: 0,case,EGFR\n1,A,1\n2,B,2\n", r"the first column must hold patients or genes, got row numbers"),
        ("EGFR,CD2\nA,1,2\n", r"line 2: a row must have 2 cells like the header, got 3; R leaves out"),
        (
            "id,CD2\nA,1\nB,1,2\n",
            r"line 3: a row must have 2 cells .*, got 3; a text that holds ',' must stand in quot",
        ),
        (
            "id,CD2\nA,1,2\nB,1\n",
            r"line 2: a row must have 2 cells .*, got 3; a text that holds ',' must stand in quot",
        ),
        ("gene\tTCGA-02-0047\nENSG\tx\n", r"line 2, patient 'TCGA-02-0047': must be a finite number, got 'x'"),
        ("Hybridization REF\tTCGA-02-0047\nid\traw\n", r"patient 'TCGA-02-0047': must be a finite number, got 'raw'"),
        ("Hybridization REF\tTCGA-02-0047\nGene_ID\traw\n", r"must have at least one gene, got only headers"),
        (
            "Hybridization REF\tTCGA-02-0047\tTCGA-02-0047\ngene_id\traw_count\tscaled_estimate\nEGFR|1\t1\t2\n",
            r"line 2: the columns of values must hold one kind of values, got raw_count, scaled_estimate in a second",
        ),
        ("id;EGFR;CD2\nA;1.164;0\nB;845;12.001\n", r"no separators of thousands, got '1\.164' in line 2, and all numb"),
        ("id\tEGFR\tCD2\nA\t1,164\t7\n", r"no separators of thousands, got '1,164' in line 2, .* write whole numbers"),
        ("id;EGFR;CD2\nA;1,5;2\nB;1.000,5;2\n", r"one decimal mark, .* got '1,5' in line 2 and '1\.000,5' in line 3"),
        ("id;EGFR\nA;1,234,567\n", r"line 2, gene 'EGFR': must be a finite number, got '1,234,567'"),
        ("gene,A\nEGFR,high\n", r"line 2, patient 'A': must be a finite number, got 'high'"),
    ],
)
def test_what_cannot_be_read_is_told_with_place_and_remedy(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_expression(write(tmp_path, text))


def test_dates_among_the_genes_are_named_with_what_they_may_have_been(tmp_path):
    path = write(tmp_path, "id,1-Mar,2023-09-07,EGFR\nA,1,2,3\n")
    with pytest.warns(UserWarning, match="2 genes .* '1-Mar' was one of MARCH1, .*; '2023-09-07' was one of SEPT7"):
        read_expression(path)


@pytest.mark.parametrize("transposed", [False, True])
def test_parquet_holds_the_same_table_with_the_names_as_index_or_as_column(tmp_path, transposed):
    pytest.importorskip("pyarrow", reason="Parquet needs the extra parquet")
    frame = VALUES.T.rename_axis("gene") if transposed else VALUES
    frame.to_parquet(tmp_path / "t.parquet")
    pd.testing.assert_frame_equal(read_expression(tmp_path / "t.parquet"), VALUES)
    frame.reset_index().to_parquet(tmp_path / "column.parquet")
    pd.testing.assert_frame_equal(read_expression(tmp_path / "column.parquet"), VALUES)


def test_an_anndata_file_is_patients_by_genes(tmp_path):
    anndata = pytest.importorskip("anndata", reason=".h5ad needs the extra anndata")
    anndata.AnnData(VALUES).write_h5ad(tmp_path / "t.h5ad")
    assert read_expression(tmp_path / "t.h5ad").to_numpy().tolist() == VALUES.to_numpy().tolist()
    (tmp_path / "t.h5ad").write_bytes(b"no HDF5")
    with pytest.raises(ValueError, match=r"t\.h5ad: must be a complete \.h5ad file"):
        read_expression(tmp_path / "t.h5ad")


def test_a_missing_extra_is_told_with_its_name(tmp_path, monkeypatch):
    for name, extra in (("t.parquet", "parquet"), ("t.h5ad", "anndata")):
        (tmp_path / name).touch()
        monkeypatch.setitem(__import__("sys").modules, "pyarrow" if extra == "parquet" else extra, None)
        with pytest.raises(ModuleNotFoundError, match=rf"{name}: .* pip install 'disentangled_mil\[{extra}\]'"):
            read_expression(tmp_path / name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"genes_in": "lines"}, "genes_in must be one of 'recognized', 'columns', 'rows', got 'lines'"),
        ({"barcodes": "cut"}, "barcodes must be one of 'whole', 'patient', got 'cut'"),
        ({"genes_in": "rows", "suffix": "_cnv"}, "patient and suffix belong to a table with genes in columns"),
    ],
)
def test_layouts_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TableLayout(**options)


def test_real_tpm_is_read_the_same_from_the_layout_of_a_portal(shared, tmp_path):
    with np.load(shared / "data" / "tcga_gbm_tpm.npz") as arrays:
        table = pd.DataFrame(arrays["tpm"][:6, :900], index=arrays["patient_id"][:6], columns=arrays["gene"][:900])
    portal = table.T.set_axis([f"{name}-01A-01R-1849-01" for name in table.index], axis=1).rename_axis(
        "Hybridization REF"
    )
    portal.to_csv(tmp_path / "portal.txt", sep="\t", lineterminator="\r\n")
    read = read_expression(tmp_path / "portal.txt", TableLayout(barcodes="patient"))
    assert list(read.index) == list(table.index)
    assert list(read.columns) == list(table.columns)
    np.testing.assert_allclose(read.to_numpy(), table.to_numpy(), rtol=1e-6)


@pytest.mark.parametrize("text", ["id;A;B\np;1.164;0\nq;2.25;3\n", "id;A\np;0.164\nq;3\n", "id;A\np;1.164\nq;1000\n"])
def test_decimals_with_three_digits_are_no_thousands(tmp_path, text):
    assert read_expression(write(tmp_path, text)).iat[0, 0] % 1 == pytest.approx(0.164)


def test_a_gene_that_is_named_like_a_header_is_no_second_header(tmp_path):
    table = read_expression(write(tmp_path, "id;TCGA-02-0047\nGENE1;1,5\nGENE|3;2,5\n"))
    assert list(table) == ["GENE1", "GENE|3"]


def test_the_second_header_of_firehose_is_left_out(tmp_path):
    text = VALUES.T.rename_axis("Hybridization REF").to_csv(sep="\t")
    path = write(tmp_path, text.replace("\n", "\ngene_id\tnormalized_count\tnormalized_count\n", 1), "rsem.txt")
    pd.testing.assert_frame_equal(read_expression(path), VALUES)
    notes = read_expression_file(path, TableLayout(), Names()).notes
    assert notes[1] == "line 2 is a second header and is left out: gene_id, normalized_count"


def test_genes_without_a_name_are_left_out_with_their_number_and_lines(tmp_path):
    text = "Hugo_Symbol\tEntrez_Gene_Id\tTCGA-02-0047\nEGFR\t1956\t1.5\n\t100\t2\nCD2\t914\t3\n\t101\t2\n"
    with pytest.warns(UserWarning, match="2 of 4 genes have no name and are left out: line 3, line 5"):
        assert list(read_expression(write(tmp_path, text, "data_mrna.txt"))) == ["EGFR", "CD2"]
    with pytest.raises(ValueError, match="line 3: a row must start with its patient, got an empty cell"):
        read_expression(write(tmp_path, "id,EGFR\nA,1\n,2\n"))


@pytest.mark.parametrize("sets", ["symbols", "identifiers"])
@pytest.mark.parametrize("name", ["t.tsv", "t.parquet"])
def test_the_column_that_holds_the_genes_of_the_sets_names_them(tmp_path, name, sets):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    ids = ["ENSG00000146648.3", "ENSG00000116824.9"]
    table = pd.DataFrame({"gene_name": ["EGFR", "CD2"], "A": [1.0, 2.0]}, index=pd.Index(ids, name="gene_id"))
    table.to_parquet(tmp_path / name) if name.endswith("parquet") else table.to_csv(tmp_path / name, sep="\t")
    wanted = ["EGFR", "CD2"] if sets == "symbols" else [identifier.partition(".")[0] for identifier in ids]
    read = read_expression_file(tmp_path / name, TableLayout(), Names({"A"}, set(wanted)))
    assert list(read.table) == (wanted if sets == "symbols" else ids)
    assert any("named by the column 'gene_name'" in note for note in read.notes) == (sets == "symbols")


def test_patients_of_an_anndata_file_may_stand_in_obs(tmp_path):
    anndata = pytest.importorskip("anndata", reason=".h5ad needs the extra anndata")
    obs = pd.DataFrame({"patient_id": VALUES.index, "age": 50}, index=["0", "1"])
    anndata.AnnData(VALUES.to_numpy(), obs=obs, var=pd.DataFrame(index=VALUES.columns)).write_h5ad(tmp_path / "t.h5ad")
    pd.testing.assert_frame_equal(read_expression(tmp_path / "t.h5ad", TableLayout(patient="patient_id")), VALUES)
    with pytest.raises(ValueError, match=r"obs must have the column 'case' \(patient\), got patient_id, age; without"):
        read_expression(tmp_path / "t.h5ad", TableLayout(patient="case"))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_genes_that_a_patient_lacks_and_patients_without_values_are_left_out_with_their_number(
    tmp_path, name, transposed
):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    path, table = tmp_path / name, VALUES.assign(**{"HBM|3042": np.nan, "PRY|9081": np.nan})
    save(table.T if transposed else table, path)
    with pytest.warns(
        UserWarning, match=r"2 of 5 genes have no value in any patient and are left out: HBM\|3042, PRY\|9081"
    ):
        pd.testing.assert_frame_equal(read_expression(path), VALUES)
    table.loc["TCGA-06-0125", "HBM|3042"] = 1.0
    save(table.T if transposed else table, path)
    message = r"1 of 5 genes have no value in some patients, most in 'TCGA-02-0047', and are left out: HBM\|3042"
    with pytest.warns(UserWarning, match=message), pytest.warns(UserWarning, match="1 of 5 genes .* any patient"):
        pd.testing.assert_frame_equal(read_expression(path), VALUES)
    table = pd.concat([VALUES, VALUES.iloc[:1].set_axis(["TCGA-02-0001"]) * np.nan])
    save(table.T if transposed else table, path)
    with pytest.warns(UserWarning, match="1 of 3 patients have no value and are left out: TCGA-02-0001"):
        pd.testing.assert_frame_equal(read_expression(path), VALUES)
    table.iloc[0, :2], table.iloc[1, 2] = np.nan, np.nan
    save(table.T if transposed else table, path)
    with pytest.raises(ValueError, match="got none; most are missing in 'TCGA-02-0047': f"):
        read_expression(path)
    table.iloc[1, 2] = np.inf
    save(table.T if transposed else table, path)
    with pytest.raises(ValueError, match=r"(gene|patient) .*: must be a finite number, got '?inf'?: "):
        read_expression(path)
    save(VALUES * np.nan, path)
    with pytest.raises(ValueError, match="must have at least one gene with values, got 3 without: EGFR"):
        read_expression(path)


def save(table: pd.DataFrame, path: Path) -> None:
    """Write a table by the ending of its file; NA is what cBioPortal writes."""
    if path.suffix == ".parquet":
        table.to_parquet(path)
    else:
        table.to_csv(path, na_rep="NA")
