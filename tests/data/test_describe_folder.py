"""The command init writes a description that check accepts, and overwrites nothing."""

import numpy as np
import pandas as pd
import pytest
import torch

from disentangled_mil.cli import main
from disentangled_mil.data import read_cohort, write_bag
from disentangled_mil.data._column_guesses import Columns, event_keys
from disentangled_mil.data.describe_folder import describe_folder
from disentangled_mil.data.planted import planted_cohort, write_cohort


def test_a_written_cohort_is_described_as_it_is(tmp_path, capsys):
    planted = planted_cohort(12, seed=0, grid=(4, 3), width=6)
    write_cohort(planted, tmp_path)
    assert main(["init", str(tmp_path), "--out", str(tmp_path / "guess.toml")]) == 0
    assert "check" in capsys.readouterr().out
    guess, want = read_cohort(tmp_path / "guess.toml"), read_cohort(tmp_path / "cohort.toml")
    assert guess.samples == want.samples
    assert guess.gene_sets == want.gene_sets
    assert guess.expression_options == want.expression_options
    assert guess.tasks["survival"] == want.tasks["survival"]
    assert main(["init", str(tmp_path)]) == 2
    assert "cohort.toml: is there already; name another file, or replace it by --overwrite" in capsys.readouterr().err
    (tmp_path / "cohort.toml").write_text("old")
    assert main(["init", str(tmp_path), "--overwrite"]) == 0
    assert read_cohort(tmp_path / "cohort.toml").tasks.keys() >= {"survival"}


def test_nothing_that_init_reads_is_overwritten(tmp_path):
    _folder(tmp_path, TABLE)
    write_bag(tmp_path / "slides" / "s0.h5", torch.ones(3, 4))
    (tmp_path / "sets.gmt").write_text("TUMOR\tsource\tEGFR\n")
    (tmp_path / "link.toml").symlink_to(tmp_path / "sets.gmt")
    for read in (*tmp_path.glob("*.csv"), *tmp_path.glob("slides/*"), tmp_path / "sets.gmt", tmp_path / "link.toml"):
        before = read.read_bytes()
        with pytest.raises(ValueError, match=f"{read.name}: must be another file than .*, which is read"):
            describe_folder(tmp_path, read, overwrite=True)
        assert read.read_bytes() == before


def test_a_folder_of_clam_with_a_table_of_mcat_is_described(tmp_path):
    slides = [f"TCGA-02-000{number}-01Z-00-DX{slide}" for number in range(4) for slide in (1, 2)]
    for place in ("CLAM/h5_files", "CLAM/pt_files", "CLAM/patches"):
        (tmp_path / place).mkdir(parents=True)
        for slide in slides:
            write_bag(tmp_path / place / f"{slide}.h5", torch.ones(3, 4))
    rows = [
        f"{number},{slide[:12]},{slide}.svs,{4.5 + number // 2},{float(number // 2 % 2)},{number // 2}.5,{number // 2}"
        for number, slide in enumerate(slides)
    ]
    header = ",case_id,slide_id,survival_months,censorship,EGFR_rnaseq,CD2_rnaseq"
    (tmp_path / "all_clean.csv").write_text("\n".join([header, *rows]) + "\n")
    (tmp_path / "sets.gmt").write_text("TUMOR\tsource\tEGFR\nTME\tsource\tCD2\n")
    text = describe_folder(tmp_path, tmp_path / "cohort.toml")
    for line in (
        'patient = "case_id"',
        'slides = "slide_id"    # 8 rows name a slide that is there',
        'rows = "slide"',
        'time = "survival_months"',
        'censorship = "censorship"',
        'folder = "CLAM/h5_files"',
        'suffix = "_rnaseq"',
        'tumor = ["TUMOR"]',
    ):
        assert line in text
    assert "pt_files" not in text
    cohort = read_cohort(tmp_path / "cohort.toml")
    assert len(cohort.patients) == 4
    assert cohort.labels("survival")["event"].tolist() == [True, False, True, False]
    assert cohort.expression["EGFR"].tolist() == [0.5, 1.5, 2.5, 3.5]


def test_a_described_folder_passes_the_check_as_it_is(tmp_path, capsys):
    write_cohort(planted_cohort(18, seed=0, grid=(4, 3), width=6), tmp_path)
    (tmp_path / "cohort.toml").unlink()
    assert main(["init", str(tmp_path)]) == 0
    assert main(["check", str(tmp_path / "cohort.toml"), "--epochs=1", "--folds=2"]) == 0
    out = capsys.readouterr().out
    assert "18 of 18 patients have expression" in out
    assert "task survival" in out
    assert out.endswith(" 0 errors\n")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "must hold a folder of slides"),
        ({"s.h5": "", "t.csv": "a,b\n1,2\n"}, r"got t\.csv: name them e\.g\. patient_id"),
    ],
)
def test_a_folder_without_slides_or_patients_is_told(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        describe_folder(tmp_path, tmp_path / "cohort.toml")
    assert not (tmp_path / "cohort.toml").exists()
    with pytest.raises(FileNotFoundError, match="absent: there is no such folder"):
        describe_folder(tmp_path / "absent", tmp_path / "cohort.toml")


@pytest.mark.parametrize(
    ("alive", "dead"),
    [("Living", "Expired"), ("Survived", "Died"), ("NED", "DOD"), ("no event", "event"), ("0. Alive", "1. Dead")],
)
def test_known_words_for_death_are_the_observed_event(alive, dead):
    columns = columns_of_events(alive, dead)
    assert event_keys(columns, "status") == {"event": "status", "observed": dead, "censored": alive}


@pytest.mark.parametrize("values", [("1", "2"), ("A", "B"), ("dead", "lost")])
def test_values_that_leave_a_doubt_are_not_guessed(values):
    assert event_keys(columns_of_events(*values), "status") == {"event": "status"}


def columns_of_events(*values: str) -> Columns:
    return Columns(["status"], None, None, 0, False, [], {"status": sorted(values)}, {}, 0.0, "")


def _folder(tmp_path, table: str, *folders: str) -> None:
    for place in folders or ("slides",):
        (tmp_path / place).mkdir(parents=True)
        for number in range(6):
            write_bag(tmp_path / place / f"s{number}.h5", torch.ones(3, 4))
    (tmp_path / "clinical.csv").write_text(table)


TABLE = "patient_id,slides,label,time,event\n" + "".join(
    f"p{n},s{n},{'ab'[n % 2]},{n + 1},{'NA' if n == 3 else n % 2}\n" for n in range(6)
)


def test_survival_with_missing_events_and_an_unrelated_text_file_are_described(tmp_path):
    _folder(tmp_path, TABLE)
    (tmp_path / "notes.txt").write_text("Two\tslides\nwere stained anew\n")
    text = describe_folder(tmp_path, tmp_path / "cohort.toml")
    assert "[tasks.survival]" in text
    assert 'event = "event"    # may be: event' in text
    assert "# Not a table, so left out: " in text
    assert set(read_cohort(tmp_path / "cohort.toml").tasks) == {"survival", "label"}


def test_headers_with_line_breaks_and_slides_between_bars_are_described(tmp_path):
    table = TABLE.replace("label", '"tumor\nclass"').replace("p0,s0", "p0,s0|s5").replace("p5,s5,b,6,1\n", "")
    _folder(tmp_path, table)
    text = describe_folder(tmp_path, tmp_path / "cohort.toml")
    assert 'separator = "|"' in text
    cohort = read_cohort(tmp_path / "cohort.toml")
    assert len(cohort.samples) == 6
    assert cohort.tasks["tumor\nclass"].columns == {"column": "tumor\nclass"}


def test_a_second_encoder_is_no_second_magnification(tmp_path):
    _folder(tmp_path, TABLE, "resnet", "uni")
    for number in range(6):
        write_bag(tmp_path / "uni" / f"s{number}.h5", torch.ones(3, 5))
    text = describe_folder(tmp_path, tmp_path / "cohort.toml")
    assert "# Another encoder (width 5 instead of 4). A model sees one, so choose one of the folders:" in text
    assert read_cohort(tmp_path / "cohort.toml").magnifications == ("resnet",)


def test_control_characters_and_other_encodings_of_names_make_no_broken_file(tmp_path):
    _folder(tmp_path, TABLE.replace("label", "la\x01bel").replace(",a,", ",a\x7f\x08,"))
    write_bag(tmp_path / "slides" / "s0.h5", torch.ones(3, 4), torch.zeros(3, 2), step=1, encoder="uni\nv1\x02")
    describe_folder(tmp_path, tmp_path / "cohort.toml")
    assert "la\x01bel" in read_cohort(tmp_path / "cohort.toml").tasks
    (tmp_path / "slides").rename(tmp_path / "B\udcf6nn")  # a name in Latin-1
    with pytest.raises(ValueError, match=r"names of files must be in UTF-8, got '.*B\\udcf6': rename it"):
        describe_folder(tmp_path, tmp_path / "other.toml")
    assert not (tmp_path / "other.toml").exists()


def test_a_folder_without_expression_is_said_to_train_students(tmp_path):
    _folder(tmp_path, TABLE)
    text = describe_folder(tmp_path, tmp_path / "cohort.toml")
    assert "# No table of expression was found. Students are trained on slides and labels alone." in text
    assert "train needs" not in text


def _expression(patients: int = 6, genes: int = 30) -> pd.DataFrame:
    values = np.random.default_rng(0).poisson(np.geomspace(1, 5000, genes), (patients, genes)) + 0.5
    return pd.DataFrame(values, [f"p{n}" for n in range(patients)], [f"GENE{n}" for n in range(genes)])


@pytest.mark.parametrize("name", ["rna.csv", "rna.parquet", "rna.h5ad"])
def test_tables_of_expression_of_every_kind_are_found(tmp_path, name):
    _folder(tmp_path, TABLE)
    (tmp_path / "sets.gmt").write_text("TUMOR\td\tGENE1\tGENE2\nTME\td\tGENE3\tGENE4\n")
    if name.endswith("csv"):
        _expression().to_csv(tmp_path / name, sep=";", decimal=",")
    elif name.endswith("parquet"):
        pytest.importorskip("pyarrow")
        _expression().to_parquet(tmp_path / name)
    else:
        pytest.importorskip("anndata").AnnData(_expression()).write_h5ad(tmp_path / name)
    text = describe_folder(tmp_path, tmp_path / "cohort.toml")
    assert f'table = "{name}"' in text
    assert "log1p = true    # scale: linear values" in text
    cohort = read_cohort(tmp_path / "cohort.toml")
    assert (len(cohort.paired), cohort.magnifications) == (6, ("slides",))
    with pytest.raises(ValueError, match=f"{name}: must be another file than .*, which is read"):
        describe_folder(tmp_path, tmp_path / name, overwrite=True)


def test_times_with_decimal_commas_are_times(tmp_path):
    rows = "".join(f"p{n};s{n};{n},5;{n % 2}\n" for n in range(6))
    _folder(tmp_path, "patient_id;slides;os_months;event\n" + rows)
    describe_folder(tmp_path, tmp_path / "cohort.toml")
    assert read_cohort(tmp_path / "cohort.toml").tasks["survival"].columns == {"time": "os_months", "event": "event"}


def test_a_table_of_patients_that_is_not_read_is_named_with_a_remedy(tmp_path):
    _folder(tmp_path, "case_id,slide_id\n" + "".join(f"p{n},s{n}.svs\n" for n in range(6)))
    portal = "case_submitter_id\tvital_status\n" + "".join(f"p{n}\t{'Dead' if n % 2 else 'Alive'}\n" for n in range(6))
    (tmp_path / "portal.tsv").write_text(portal)
    text = describe_folder(tmp_path, tmp_path / "cohort.toml")
    line = (
        "# portal.tsv names patients too (case_submitter_id) and is not read: to use its columns, "
        'set table = ["clinical.csv", "portal.tsv"], and patient to a list of columns if they differ.'
    )
    assert line in text
    (tmp_path / "clinical.csv").unlink()
    message = (
        r"got portal\.tsv: name them .*; portal\.tsv names patients in 'case_submitter_id', and lacks a column of "
        "slides: add one with the names of their files, such as 's0', separated by semicolons .*, or "
        "let the files begin with the names of their patients"
    )
    with pytest.raises(ValueError, match=message):
        describe_folder(tmp_path, tmp_path / "other.toml")


LABELS = "PATIENT,KRAS,os_days,event\n" + "".join(f"p{n},{'ab'[n % 2]},{n + 1},{n % 2}\n" for n in range(4))


def test_a_table_of_slides_is_joined_with_the_labels_of_its_patients(tmp_path):
    """STAMP has a clinical table and a slide table."""
    _folder(tmp_path, LABELS)
    (tmp_path / "slides.csv").write_text("PATIENT,FILENAME\n" + "".join(f"p{n % 4},s{n}.h5\n" for n in range(6)))
    text = describe_folder(tmp_path, tmp_path / "cohort.toml")
    assert 'table = ["clinical.csv", "slides.csv"]\npatient = "PATIENT"    # columns: PATIENT, KRAS' in text
    assert "not read" not in text
    cohort = read_cohort(tmp_path / "cohort.toml")
    assert [sample.patient for sample in cohort.samples] == ["p0", "p0", "p1", "p1", "p2", "p3"]
    assert set(cohort.tasks) == {"survival", "KRAS"}
    (tmp_path / "slides.csv").write_text("case,FILENAME\n" + "".join(f"p{n % 4},s{n}.h5\n" for n in range(6)))
    assert 'patient = ["PATIENT", "case"]' in describe_folder(tmp_path, tmp_path / "cohort.toml", overwrite=True)
    assert read_cohort(tmp_path / "cohort.toml").patients == cohort.patients


def test_files_that_begin_with_the_names_of_patients_need_no_column_of_slides(tmp_path):
    """The patient table of cBioPortal names no slide, and its barcodes may be those of samples."""
    patients = [f"TCGA-02-000{n}" for n in range(4)]
    (tmp_path / "slides").mkdir()
    for name in (*(f"{patient}-01Z-00-DX{slide}.{slide}f-a" for patient in patients for slide in (1, 2)), "control"):
        write_bag(tmp_path / "slides" / f"{name}.h5", torch.ones(3, 4))
    rows = "".join(f"{patient}-01\t{'ab'[n % 2]}\n" for n, patient in enumerate(patients))
    (tmp_path / "patients.txt").write_text("#Patient\n#STRING\nPATIENT_ID\tSUBTYPE\n" + rows)
    text = describe_folder(tmp_path, tmp_path / "cohort.toml")
    assert "slides_by_name = true    # 8 of 9 files begin with the name of a patient" in text
    assert 'barcodes = "patient"' in text
    with pytest.warns(UserWarning, match="left out are 1 files whose names begin with no patient .*: control"):
        assert read_cohort(tmp_path / "cohort.toml").patients == tuple(patients)
