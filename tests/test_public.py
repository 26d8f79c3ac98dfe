"""The public surface: every name is there, and importing costs nothing that was not asked for."""

import subprocess
import sys
from importlib import import_module

import pytest

import disentangled_mil

UNWANTED = (
    "captum",
    "h5py",
    "huggingface_hub",
    "lifelines",
    "matplotlib",
    "pandas",
    "safetensors",
    "sklearn",
    "tqdm",
    "triton",
)


@pytest.mark.parametrize("name", disentangled_mil.__all__)
def test_every_public_name_is_there_and_says_what_it_is(name: str) -> None:
    assert (getattr(disentangled_mil, name).__doc__ or "").strip()


@pytest.mark.parametrize("part", ["", ".losses", ".models", ".nn", ".ops", ".optim", ".tasks"])
def test_public_names_exist_and_are_listed_once(part: str) -> None:
    package = import_module(f"disentangled_mil{part}")
    assert len(package.__all__) == len(set(package.__all__))
    assert all(hasattr(package, name) for name in package.__all__)


def test_importing_loads_no_extra_and_touches_no_gpu() -> None:
    # What torch itself loads does not count.
    program = (
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        "import disentangled_mil\n"
        "loaded = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        f"assert not loaded & set({UNWANTED!r}), loaded & set({UNWANTED!r})\n"
        "assert not torch.cuda.is_initialized()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_missing_extra_is_named_where_its_package_is_imported() -> None:
    program = (
        "import sys\n"
        "from importlib import import_module\n"
        "sys.modules['pandas'] = None\n"
        "for room in ('data', 'train', 'report'):\n"
        "    try:\n"
        "        import_module(f'disentangled_mil.{room}')\n"
        "    except ModuleNotFoundError as error:\n"
        "        print(error.name, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    line = "pandas pandas is not installed; install the extra: pip install 'disentangled_mil[train]'"
    assert done.stdout.splitlines() == [line] * 3
