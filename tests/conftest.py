"""What all tests share: the device, the folder of golden numbers and real data, and reproducible randomness."""

import os
from pathlib import Path

# Processes side by side (pytest -n auto) must not keep cores busy with waiting. OpenMP reads this as torch loads it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch
from hypothesis import settings

from tests.support.golden import shared_folder

# Triton reads this when it is first imported. Other files of fixtures do that before the option of the device is known.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("dev", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "dev")

# Measuring coverage makes compilers and Triton's interpreter up to twice as slow, and trainings 1.4 times. Hardly a
# line (pytrees, refusals while compiling) is run by the former alone, and of kernels one test runs nearly all. Tests
# of benchmarks train what other tests train too.
BENCHMARKS = {"test_benchmarks.py", "test_experiments.py", "test_public_bags.py"}
UNMEASURED = {"test_compile.py", "test_docs.py", "test_triton.py", *BENCHMARKS}
MEASURED = "test_results_and_gradients_are_those_of_the_reference"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that names the device."""
    parser.addoption(
        "--device",
        choices=("cpu", "cuda"),
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="where kernels are tested: compiled on cuda, or in Triton's interpreter on the cpu (default: %(default)s)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Choose Triton's interpreter for the CPU; Triton reads the variable when it is first imported."""
    if config.getoption("device") == "cpu":
        os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Measure coverage only where it tells something."""
    for item in items:
        if item.path.name in UNMEASURED and not item.name.startswith(MEASURED):
            item.add_marker(pytest.mark.no_cover)


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    """The device of ``--device``, ``"cpu"`` or ``"cuda"``."""
    chosen: str = request.config.getoption("device")
    return chosen


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with golden numbers and real patients; tests that need it skip only where it is absent."""
    return shared_folder()


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded source of randomness."""
    return torch.Generator().manual_seed(0)
