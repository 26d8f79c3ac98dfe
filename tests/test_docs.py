"""README and documentation: their code runs, their tables are current, and they name everything that is public."""

import importlib
import importlib.util
import inspect
import re
import runpy
import sys
from itertools import chain
from pathlib import Path

import pytest

import disentangled_mil
from benchmarks import pages
from disentangled_mil.data.cohort_file import read_cohort
from disentangled_mil.data.planted import planted_cohort, write_cohort

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

REPOSITORY = Path(__file__).resolve().parents[1]
DOCS = REPOSITORY / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)
README = REPOSITORY / "README.md"
WIDEST_LINE = 88  # characters of a code block that fit beside the contents of a page
PACKAGES = (
    "bags", "ops", "ops.attention", "ops.density_peaks", "ops.position_bias",
    "nn", "losses", "optim", "models", "tasks", "metrics", "data", "extract", "train", "report", "explain",
    "deploy",
)  # fmt: skip


def blocks(path: Path, language: str) -> list[str]:
    """The code of every fenced block in a language, after empty lines that keep the line numbers of the file."""
    text = path.read_text(encoding="utf-8")
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return ["\n" * text.count("\n", 0, match.start(1)) + match[1] for match in found]


def documented() -> set[int]:
    """The identities of the objects that some page of the reference documents."""
    objects = set()
    for page in (DOCS / "api").glob("*.md"):
        for target in re.findall(r"^\.\. auto(?:class|function|data):: (\S+)$", page.read_text(), re.MULTILINE):
            parts = target.split(".")
            depth = next(d for d in range(len(parts) - 1, 0, -1) if importlib.util.find_spec(".".join(parts[:d])))
            value = importlib.import_module(".".join(parts[:depth]))
            for part in parts[depth:]:
                value = getattr(value, part)
            objects.add(id(value))
    return objects


@pytest.mark.parametrize("path", [p for p in (README, *PAGES) if blocks(p, "python")], ids=lambda p: p.stem)
def test_code_of_a_page_runs_in_order(path):
    namespace = {"__name__": path.stem}
    for code in blocks(path, "python"):
        exec(compile(code, str(path), "exec"), namespace)


def test_first_layer_of_the_readme_takes_at_most_twelve_lines():
    first = blocks(README, "python")[0].strip().splitlines()
    assert len(first) <= 12
    assert any("DMSF(" in line for line in first)


def test_cgc_of_the_readme_projects_the_less_confident_subspace():
    namespace = {}
    for code in blocks(README, "python"):
        exec(code, namespace)
    report = namespace["optimizer"].report
    assert (report.cosine["tumor", "tme"] < 0).all()
    confident = max(report.confidence, key=lambda name: float(report.confidence[name]))
    assert {name: int(rows) > 0 for name, rows in report.projected.items()} == {
        name: name != confident for name in ("tumor", "tme")
    }


@pytest.mark.parametrize("path", [README, *PAGES], ids=lambda p: f"{p.parent.stem}-{p.stem}")
def test_code_blocks_fit_the_page(path):
    fences = re.findall(r"^```([^\n]*)\n(.*?)^```$", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    code = [line for language, inside in fences if not language.startswith("{") for line in inside.split("\n")]
    assert [line for line in code if len(line) > WIDEST_LINE] == []


@pytest.mark.parametrize("path", pages.PAGES, ids=lambda p: p.stem)
def test_tables_are_those_of_the_stored_results(path):
    """``python -m benchmarks --pages`` writes them."""
    text = path.read_text(encoding="utf-8")
    assert "<!-- table: " in text
    assert text == pages.rendered(text)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_picture_of_the_method_is_that_of_its_script(scheme):
    method = runpy.run_path(str(DOCS / "figures" / "method.py"))
    drawn = method["draw"](method["SCHEMES"][scheme])
    assert (DOCS / "figures" / f"method-{scheme}.svg").read_text(encoding="utf-8") == drawn


def test_performance_is_a_short_page():
    assert len((DOCS / "performance.md").read_text(encoding="utf-8").splitlines()) < 120


@pytest.mark.parametrize("package", ["", *PACKAGES])
def test_reference_lists_every_public_name(package):
    module = importlib.import_module(f"disentangled_mil.{package}".rstrip("."))
    names = getattr(module, "__all__", ())
    known = documented()
    missing = [name for name in names if id(getattr(module, name)) not in known]
    assert not missing


def test_every_page_is_in_a_table_of_contents():
    listed = {DOCS / "index.md"}
    for page in PAGES:
        for toctree in blocks(page, "{toctree}"):
            entries = [line for line in toctree.split("\n") if line and not line.startswith(":")]
            listed |= {(page.parent / entry).with_suffix(".md") for entry in entries}
    assert set(PAGES) == listed


def named(name: str) -> object:
    """The object that a dotted name of the pages stands for."""
    first, *rest = name.split(".")
    packages = [
        importlib.import_module(f"disentangled_mil.{p}".rstrip(".")) for p in ("", *PACKAGES, "models.released")
    ]
    value = next(getattr(package, first) for package in packages if hasattr(package, first))
    for part in rest:
        value = getattr(value, part)
    return value


def test_options_on_the_page_of_differences_exist():
    text = (DOCS / "differs.md").read_text(encoding="utf-8")
    found = re.findall(r"`(\w+(?:\.\w+)*)`: ((?:`[^`]+`(?:, | or )?)+)", text)
    assert len(found) > 10
    for owner, given in found:
        for option in re.findall(r"`(\w+)", given):
            assert option in inspect.signature(named(owner)).parameters, f"{owner}: {option}"


def test_classes_on_the_page_of_differences_exist():
    for name in re.findall(r"`([A-Z][a-z]\w+(?:\.\w+)*)`", (DOCS / "differs.md").read_text(encoding="utf-8")):
        assert named(name) is not None


def test_architecture_says_truly_where_things_are():
    text = (DOCS / "architecture.md").read_text()
    package = Path(disentangled_mil.__file__).parent
    places = re.findall(r"`([\w/]+?)(?:\.py)?`: ((?:`\w+`(?:, )?)+)", text)
    assert len(places) > 10
    for place, names in places:
        assert (package / place).is_dir() or (package / f"{place}.py").is_file()
        module = importlib.import_module(f"disentangled_mil.{place.replace('/', '.')}")
        for name in re.findall(r"\w+", names):
            assert hasattr(module, name), f"{place}: {name}"


@pytest.fixture
def described(tmp_path):
    """A planted cohort in files, with the description that the quick start shows."""
    write_cohort(planted_cohort(4, seed=7, grid=(4, 4)), tmp_path)
    (description,) = blocks(DOCS / "quickstart.md", "toml")
    (tmp_path / "cohort.toml").write_text(description, encoding="utf-8")
    return tmp_path / "cohort.toml"


def test_cohort_description_of_the_quick_start_is_read(described):
    cohort = read_cohort(described)
    assert cohort.magnifications == ("10x", "20x")
    assert set(cohort.gene_sets) == {"tumor", "tme"}
    assert set(cohort.tasks) == {"diagnosis", "grading", "survival"}


def test_cohort_description_of_the_quick_start_is_complete(described):
    """The description shows every key of the reader's docstring; optional ones may be commented out."""
    documented_keys = re.findall(r"^ +(?:# )?(\w+) = ", read_cohort.__doc__, re.MULTILINE)
    shown = re.findall(r"^(?:# )?(\w+) = ", described.read_text(), re.MULTILINE)
    assert set(documented_keys) - {"amplified"} <= set(shown)  # a subspace of further omics, named by the user


def test_unknown_key_in_a_description_is_refused(described):
    described.write_text(described.read_text().replace("fraction =", "fractoin ="))
    with pytest.raises(ValueError, match="unknown key 'fractoin'"):
        read_cohort(described)


def test_readme_has_the_two_commands_word_for_word():
    commands = [code.strip() for code in blocks(README, "bash")]
    assert "pip install -c tests/constraints.txt -e '.[train]' && python -m disentangled_mil demo" in commands
    assert "pip install -c tests/constraints.txt -e '.[train,test]' && pytest" in commands


def test_version_is_that_of_the_project():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert project["version"] == disentangled_mil.__version__


def test_constraints_pin_every_requirement_exactly():
    lines = (REPOSITORY / "tests" / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    required = [r for r in chain(project["dependencies"], *extras.values()) if ";" not in r]
    names = [re.match(r"[\w-]+", requirement)[0] for requirement in required]
    assert [name for name in names if name.replace("_", "-") not in pins and name != project["name"]] == []
    assert pins["torch"] == "2.13.0"


def test_every_guarantee_names_tests_that_exist():
    text = (DOCS / "guarantees.md").read_text(encoding="utf-8")
    rows = [row for row in text.splitlines() if row.startswith("| ") and not row.startswith("| promise")]
    for row in rows:
        file = ""
        _, figure, tests = row.split(" | ")
        assert figure.strip(), row
        named = re.findall("`([^`]+)`", tests)
        assert len(named) > 1, row
        for name in named:
            if name.startswith("tests/"):
                file = (REPOSITORY / name).read_text(encoding="utf-8")
            else:
                assert f"def test_{name}(" in file, name
