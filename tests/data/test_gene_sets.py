"""Gene names, GMT files and subspaces."""

import pytest

from disentangled_mil.data.gene_sets import gene_subspaces, gene_symbol, read_gmt


@pytest.mark.parametrize(
    ("name", "symbol"),
    [
        ("EGFR", "EGFR"),
        (" EGFR ", "EGFR"),
        ("EGFR|1956", "EGFR"),
        ("?|100130426", "?|100130426"),
        ("|7", "|7"),
        ("ENSG00000146648.18", "ENSG00000146648"),
        ("ENSG00000146648.18|EGFR", "ENSG00000146648"),
        ("ENSG00000182378.10_PAR_Y", "ENSG00000182378_PAR_Y"),
        ("ENSMUSG00000020122.5", "ENSMUSG00000020122"),
        ("HLA-A", "HLA-A"),
        ("AC012345.1", "AC012345.1"),
        ("RP11-34P13.7", "RP11-34P13.7"),
        ("C1orf112", "C1orf112"),
    ],
)
def test_versions_go_only_where_they_are_no_part_of_the_symbol(name, symbol):
    assert gene_symbol(name) == symbol
    assert gene_symbol(symbol) == symbol


def test_sets_keep_their_order_and_count_a_repeated_gene_once(tmp_path):
    path = tmp_path / "sets.gmt"
    path.write_text("\ufeffB\tsource\tEGFR\tTP53\tEGFR\t\n\nA\t\tCD2\n", encoding="utf-8")
    assert list(read_gmt(path).items()) == [("B", ("EGFR", "TP53")), ("A", ("CD2",))]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"sets\.gmt: must hold at least one gene set, got none"),
        (
            b"A\tsource\tCD2\nB\tsource\n",
            r"sets\.gmt, line 2: a gene set must have a name, .* got 'B\\tsource'",
        ),
        (b"A CD2 CD3\n", r"sets\.gmt, line 1: a gene set must have a name"),
        (b"A\tx\tCD2\nA\tx\tCD3\n", r"sets\.gmt, line 2: gene sets must have different names, got 'A' twice"),
        (b"A\tx\tCD\x002\n", r"sets\.gmt: must be text with one gene set per line, got a NUL character"),
        (
            b"\n <!DOCTYPE html><html>\t</html>\tX\n",
            r"sets\.gmt: must be text with one gene set per line, got a page of HTML or XML; download the file again",
        ),
        (b"A\tx\t\xff\xfe\n", r"sets\.gmt: must be UTF-8 text"),
    ],
)
def test_malformed_files_are_refused_with_their_line(tmp_path, content, message):
    path = tmp_path / "sets.gmt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_gmt(path)


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.gmt"):
        read_gmt(tmp_path / "absent.gmt")


def test_any_number_of_subspaces_is_formed_in_order():
    sets = {"A": ("1", "2"), "B": ("2", "3"), "C": ("4",)}
    formed = gene_subspaces(sets, {"z": ["B", "A"], "y": ["C"], "x": ["A"]})
    assert list(formed.items()) == [("z", ("2", "3", "1")), ("y", ("4",)), ("x", ("1", "2"))]


def test_subspaces_of_nothing_or_of_unknown_sets_are_refused():
    with pytest.raises(ValueError, match="choice must name the gene sets of at least one subspace, got none"):
        gene_subspaces({"A": ("1",)}, {})
    with pytest.raises(ValueError, match="subspace 'tme' must name at least one of the gene sets A, got none"):
        gene_subspaces({"A": ("1",)}, {"tme": []})
    with pytest.raises(ValueError, match="subspace 'tme' must name at least one of the gene sets A, got TME"):
        gene_subspaces({"A": ("1",)}, {"tme": ["A", "TME"]})


def test_every_real_gene_set_file_is_read(shared):
    counts = {path.name: len(read_gmt(path)) for path in sorted((shared / "data" / "genes").glob("*.gmt"))}
    assert counts == {
        "estimate.gmt": 2,
        "gene_families.gmt": 6,
        "hallmark_v7.0.gmt": 50,
        "tumor_tme.gmt": 2,
        "verhaak_glioblastoma.gmt": 4,
    }
    formed = gene_subspaces(read_gmt(shared / "data" / "genes" / "tumor_tme.gmt"), {"tumor": ["TUMOR"], "tme": ["TME"]})
    assert {subspace: len(genes) for subspace, genes in formed.items()} == {"tumor": 964, "tme": 760}
    assert not set(formed["tumor"]) & set(formed["tme"])


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("separator", ["\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029"])
def test_only_the_end_of_a_line_ends_a_set(tmp_path, end, separator):
    path = tmp_path / "sets.gmt"
    text = f"A\tfirst{separator}second\tEGFR\tTP53{separator}\tCD2{end}B\tsource\tCD8A{end}"
    path.write_text(text, encoding="utf-8", newline="")
    assert read_gmt(path) == {"A": ("EGFR", "TP53", "CD2"), "B": ("CD8A",)}


def test_descriptions_are_kept_for_sets_and_subspaces(tmp_path):
    (tmp_path / "sets.gmt").write_text("A\tfirst\tEGFR\nB\tsecond\tTP53\n")
    sets = read_gmt(tmp_path / "sets.gmt")
    assert sets.descriptions == {"A": ("first",), "B": ("second",)}
    assert gene_subspaces(sets, {"tumor": ["A", "B"]}).descriptions == {"tumor": ("first", "second")}
    assert gene_subspaces(dict(sets), {"tumor": ["A"]}).descriptions == {"tumor": ()}
