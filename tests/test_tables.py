"""Text tables: rows as they stand, malformed ones refused by line."""

import csv
import gzip

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from disentangled_mil._checks import as_number
from disentangled_mil._tables import delimiter_of, guarded, read_rows, unguarded, write_table

CELLS = st.text(st.sampled_from("=+-@\t\r\n'\"＝,;1.ea"), max_size=6) | st.text(max_size=6)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", '\ufeffpatient,note\r\nA,"x, ""y"""\r\n\r\nB,\r\n'),
        ("t.tsv", 'patient\tnote\nA\t"x, ""y"""\n\nB\t\n'),
        ("t.txt.gz", 'patient\tnote\nA\t"x, ""y"""\n\nB\t\n'),
    ],
)
def test_every_dialect_gives_the_same_rows(tmp_path, name, text):
    data = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert list(read_rows(tmp_path / name)) == [
        (1, ["patient", "note"]),
        (2, ["A", 'x, "y"']),
        (4, ["B", ""]),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "t.xlsx",
            b"",
            r"t\.xlsx: a table must end in \.csv, \.tsv or \.txt \(also with \.gz\), got 't\.xlsx'",
        ),
        ("t.csv", b"", r"t\.csv: a table must have a header, got an empty file"),
        ("t.csv", b"a,b\n1,2\n1,2,3\n", r"t\.csv, line 3: a row must have 2 cells like the header, got 3"),
        ("t.csv", b"a,b\n1\n", r"t\.csv, line 2: a row must have 2 cells like the header, got 1"),
        (
            "t.csv",
            b'a,b\n1,2\n3,"see report\n5,6\n',
            r"t\.csv, line 3: must be a table whose quotes end where a cell does: unexpected end of data",
        ),
        (
            "t.csv",
            b'a,b\n1,"see\n3,"4"\n',
            r"t\.csv, line 2: must be a table whose quotes end where a cell does: ',' expected after '\"'",
        ),
        (
            "t.csv",
            b"# x\na,b\n1,2\nP\x001,2\n",
            r"t\.csv, line 4: must be text, got a NUL character; save",
        ),
        ("t.csv", b"a,b\n\xff\xfe,1\n", r"t\.csv: must be a readable UTF-8 text table"),
        ("t.csv.gz", b"a,b\n1,2\n", r"t\.csv\.gz: must be a readable UTF-8 text table"),
        (
            "t.csv.gz",
            gzip.compress(b"a,b\n1,2\n" * 99, mtime=0)[:-12],
            r"t\.csv\.gz: must be a readable UTF-8 text table",
        ),
    ],
)
def test_malformed_tables_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(read_rows(tmp_path / name))


def test_a_missing_table_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.csv"):
        list(read_rows(tmp_path / "absent.csv"))


@pytest.mark.parametrize(
    ("name", "text", "delimiter"),
    [
        ("t.csv", "a;b;c\n1;2,5;3\n", ";"),
        ("t.csv", "a\tb\n1\t2\n", "\t"),
        ("t.csv", '"a;b;c;d",e\n"1",2\n', ","),
        ("t.tsv", "a,b\n1,2\n", ","),
        ("t.txt", "a\n1;2\n", "\t"),
        ("T.CSV", "a,b\n1,2\n", ","),
    ],
)
def test_the_header_tells_the_delimiter(tmp_path, name, text, delimiter):
    (tmp_path / name).write_text(text)
    assert delimiter_of(tmp_path / name) == delimiter


def test_lines_of_comments_before_the_header_are_skipped_and_counted(tmp_path):
    (tmp_path / "t.txt").write_text("#Patient Identifier\tStatus\n#STRING\tSTRING\n\nPATIENT_ID\tOS\n#A\t1\n")
    assert list(read_rows(tmp_path / "t.txt")) == [(4, ["PATIENT_ID", "OS"]), (5, ["#A", "1"])]


def test_a_header_without_the_name_of_the_first_column_is_told(tmp_path):
    (tmp_path / "t.csv").write_text("EGFR,CD2\nA,1,2\n")
    with pytest.raises(ValueError, match=r"got 3; R leaves out the header's first cell: .* col\.names = NA"):
        list(read_rows(tmp_path / "t.csv"))
    with pytest.raises(ValueError, match=r"got 't\.xlsx'; save the sheet as CSV UTF-8"):
        list(read_rows(tmp_path / "t.xlsx"))


@given(CELLS)
def test_guarded_text_runs_no_formula_and_comes_back(text):
    written = guarded(text)
    assert unguarded(written) == text
    assert not written.startswith(tuple("=+-@\t\r\n＝＋－＠")) or as_number(written) == as_number(written)
    assert written == text or written == f"'{text}"


def test_a_table_is_guarded_in_cells_and_header_and_its_numbers_stay(tmp_path):
    table = pd.DataFrame({"=A1": ["=1+1", "-5", None], "risk": [-1.5, 0.1, float("nan")], "n": [-1, 0, 1]})
    table.insert(3, "risk", ["@x", "+", "a"], allow_duplicates=True)
    write_table(tmp_path / "t.csv", table)
    with (tmp_path / "t.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["'=A1", "risk", "n", "risk"]
    assert rows[1:] == [["'=1+1", "-1.5", "-1", "'@x"], ["-5", "0.1", "0", "'+"], ["", "", "1", "a"]]
    assert table["=A1"].tolist()[:2] == ["=1+1", "-5"]
