"""Names of genes that nearly match are found."""

import pytest

from disentangled_mil.data._gene_names import genes_of_date, near_names


@pytest.mark.parametrize(
    ("date", "gene"),
    [
        ("1-Mar", "MARCH1"),
        ("Mar-01", "MTARC1"),
        ("11-Mar", "MARCHF11"),
        ("9-Sep", "SEPTIN9"),
        ("7-Sep-23", "SEPT7"),
        ("01.Dez", "DELEC1"),
        ("2. Mrz", "MARCH2"),
        ("2023-09-07", "SEPT7"),
        ("2023-09-07 00:00:00", "SEPT7"),
        ("03/01/2001", "MARCH1"),
        ("4-Oct", "OCT4"),
    ],
)
def test_a_date_tells_the_genes_it_may_have_been(date, gene):
    assert gene in genes_of_date(date)


@pytest.mark.parametrize("name", ["EGFR", "HLA-A", "AC012345.1", "RP11-34P13.7", "MARCH1", "NKX2-1", "5-HT", "1-May"])
def test_other_names_are_no_dates(name):
    assert genes_of_date(name) == ()


@pytest.mark.parametrize(
    ("gene", "column"),
    [("HLA-A", "HLA.A"), ("C1orf112", "C1ORF112"), ("7SK", "X7SK"), ("SEPT9", "9-Sep"), ("NKX2-1", "NKX2_1")],
)
def test_a_gene_is_found_under_its_other_name(gene, column):
    assert near_names([gene], ["EGFR", column]) == {gene: column}


def test_versions_of_clones_are_different_genes():
    assert near_names(["AC012345.1", "HLA-A"], ["AC012345.2", "HLA-B"]) == {}
