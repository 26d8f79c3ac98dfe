"""Write ``_generated/report_of_a_run.html``: the report of a small run on planted patients with survival times."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from disentangled_mil.report import write_report
from disentangled_mil.train.demo import DEMO_OPTIONS, run_demo


def draw(path: Path) -> None:
    """Train for a moment, so that the page has all of its parts; its numbers mean nothing."""
    with TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        options = replace(DEMO_OPTIONS, epochs=1, distill="never")
        run_demo(run, "survival", options, patients=20, threads=1, quiet=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_report(run, path, overwrite=True)


if __name__ == "__main__":
    draw(Path(__file__).parent / "_generated" / "report_of_a_run.html")
