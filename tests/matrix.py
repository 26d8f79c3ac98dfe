"""One combination of versions: an environment of its own, the tests in it, and a row for the table of the page.

    python -m tests.matrix --python python3.12                            # the newest of all, whole suite
    python -m tests.matrix --lowest numpy --pin torch==2.13.0 --smoke     # one package at its lower bound
    python -m tests.matrix --python python3.10 --lowest all

The status is that of pytest, or of the step that failed before.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
SMOKE = (
    "tests/bags",
    "tests/losses",
    "tests/tasks",
    "tests/data/slides",
    "tests/nn/test_ita.py",
    "tests/train/test_checkpoint.py",
)
SHOWN = ("torch", "numpy", "scipy", "pandas", "h5py")
_VERSIONS = (
    "import json, sys; from importlib.metadata import version; "
    "print(json.dumps([sys.version.split()[0], *map(version, sys.argv[1:])]))"
)


def lowest(names: Sequence[str]) -> list[str]:
    """The constraints that hold packages at the lower bounds of pyproject.toml; ``all`` names every package.

    Raises:
        ValueError: a package has no lower bound.
    """
    script, project = REPOSITORY / ".ci" / "lowest.py", REPOSITORY / "pyproject.toml"
    printed = subprocess.run([sys.executable, script, project], capture_output=True, text=True, check=True).stdout
    bounds = {line.partition("==")[0]: line for line in printed.split()}
    if "all" in names:
        return list(bounds.values())
    unknown = sorted(set(names) - set(bounds))
    if unknown:
        raise ValueError(f"--lowest must name packages among {', '.join(bounds)}, got {', '.join(unknown)}")
    return [bounds[name] for name in names]


def row(versions: Sequence[str], selection: str, output: str) -> str:
    """The row of a finished run, from the last line that pytest wrote."""
    (*_, summary) = re.findall(r"^=* ?(\d+ .*?(?:passed|failed|error).*?) in .*$", output, re.MULTILINE) or [
        "no test ran"
    ]
    return f"| {' | '.join([*versions, selection, summary])} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m tests.matrix")
    parser.add_argument("--python", default=sys.executable, help="interpreter (default: this one)")
    parser.add_argument(
        "--lowest", nargs="+", default=[], help="packages at their lower bounds, or all (default: none)"
    )
    parser.add_argument("--pin", nargs="+", default=[], help="further constraints, such as torch==2.13.0")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--smoke", action="store_true", help=f"only {', '.join(SMOKE)}")
    chosen.add_argument("--tests", nargs="+", default=[], help="what pytest runs (default: the whole suite)")
    options = parser.parse_args(arguments)
    try:
        constraints = [*lowest(options.lowest), *options.pin]
    except ValueError as error:
        parser.error(str(error))
    if not (python := shutil.which(options.python)):
        parser.error(f"--python must be an interpreter, found no {options.python}")
    tests = list(SMOKE if options.smoke else options.tests)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        listed = folder / "constraints.txt"
        listed.write_text("\n".join(constraints) + "\n")
        inside = folder / "environment" / "bin" / "python"
        steps: list[list[str | Path]] = [
            [python, "-m", "venv", folder / "environment"],
            [inside, "-m", "pip", "install", "--quiet", "-c", listed, "-e", f"{REPOSITORY}[train,test]"],
        ]
        clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
        for step in steps:
            if status := subprocess.run(step, env=clean, check=False).returncode:
                return status
        found = json.loads(subprocess.check_output([inside, "-c", _VERSIONS, *SHOWN], env=clean, text=True))
        # Warnings of other versions are theirs.
        command = [inside, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "default", *tests]
        done = subprocess.run(command, cwd=REPOSITORY, env=clean, stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout)
    print(row(found, "smoke" if options.smoke else " ".join(tests) or "all", done.stdout))
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
