"""The command: choose cases and sizes, refuse candidates that disagree, measure, store, print."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from . import pages, results
from .agreement import Checked, Disagreement, check
from .cases import CASES
from .measure import ceilings, measure

_SHARE_OF_MEMORY = 0.7  # largest share that a candidate may take
_FEWEST_TOKENS = 16  # a layer samples one key from 16 tokens


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 1 where a candidate disagrees with its oracle and 2 where the input is wrong."""
    options = _parser().parse_args(arguments)
    if options.list:
        for name, case in CASES.items():
            print(f"{name:18}{case.about} ({', '.join(f'{size:,}' for size in case.sizes)} tokens)")
        return 0
    if options.pages:
        pages.write()
        return 0
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    path = results.file_of(options.out, results.device_name(device))
    if options.plot:
        return _show(path, options.plot)
    limit = 1e9 * options.limit if options.limit else _SHARE_OF_MEMORY * _memory(device)
    wanted = [(case, size) for case in options.cases or CASES for size in options.size or CASES[case].sizes]
    try:
        checked = {(name, size): _check(name, size, limit, device) for name, size in wanted}
    except Disagreement as error:
        print(f"error: {error}; nothing was timed", file=sys.stderr)
        return 1
    records = []
    for (name, size), agreeing in checked.items():
        print(f"measuring {name}, {size:,} tokens", file=sys.stderr)
        effort = {"repeats": options.repeats, "seconds": options.seconds, "memory": options.memory}
        candidates = measure(name, size, agreeing, device, **effort)
        records.append(results.record(name, size, device, ceilings(device), candidates))
        results.keep(path, records[-1])
    print(results.table(records))
    if device.type == "cpu":
        print("\nThis run measured nothing on a GPU.")
    print(f"stored in {path}", file=sys.stderr)
    return 0


def _check(name: str, size: int, limit: float, device: torch.device) -> Checked:
    print(f"comparing {name}, {size:,} tokens", file=sys.stderr)
    return check(name, size, limit, device)


def _memory(device: torch.device) -> int:
    """Count the bytes of memory of the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _show(path: Path, folder: Path) -> int:
    """Print the table of the stored results and draw the figures."""
    records = results.read(path)
    if not records:
        print(f"error: {path} holds no results; measure first", file=sys.stderr)
        return 2
    print(results.table(records))
    try:
        from .plot import draw, draw_growth
    except ModuleNotFoundError as error:
        print(f"error: {error}; the figure needs matplotlib: pip install matplotlib", file=sys.stderr)
        return 2
    for case, drawn in (("scaling", draw), ("growth", draw_growth)):
        if chosen := [record for record in records if record["case"] == case]:
            drawn(chosen, folder / f"{case}.svg")
            print(f"drawn in {folder / case}.svg", file=sys.stderr)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Compare time and memory of candidates with the dense reference, after a check that they agree.",
    )
    add = parser.add_argument
    add("cases", nargs="*", type=_case, metavar="CASE", help="cases to measure (default: all; see --list)")
    add("--list", action="store_true", help="name the cases and measure nothing")
    add("--plot", type=Path, metavar="FOLDER", help="print stored results, and draw scaling.svg and growth.svg")
    add("--pages", action="store_true", help="write the tables of the documentation from stored results")
    add("--size", nargs="+", type=_tokens, metavar="TOKENS", help="numbers of tokens (default: those of the case)")
    add("--device", type=_device, default="cpu", help="cpu or cuda (default: %(default)s)")
    add("--threads", type=_positive, default=torch.get_num_threads(), help="threads of the CPU (default: %(default)s)")
    add("--repeats", type=_positive, default=7, help="largest number of rounds (default: %(default)s)")
    add(
        "--seconds",
        type=float,
        default=30.0,
        help="time for the rounds of a case and size; longer work runs once (default: %(default)s)",
    )
    add("--limit", type=float, metavar="GB", help="memory for dense candidates (default: 70 %% of the device's)")
    add("--memory", action=argparse.BooleanOptionalAction, default=True, help="measure memory on a CPU")
    add("--out", type=Path, default=results.RESULTS, help="folder of the results (default: benchmarks/results)")
    return parser


def _case(name: str) -> str:
    if name not in CASES:
        raise argparse.ArgumentTypeError(f"there is no case {name!r}; there are {', '.join(CASES)}")
    return name


def _tokens(text: str) -> int:
    if not text.isdigit() or int(text) < _FEWEST_TOKENS:
        raise argparse.ArgumentTypeError(f"must be an integer of at least {_FEWEST_TOKENS}, got {text!r}")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer, got {text!r}")
    return int(text)


def _device(name: str) -> str:
    if name not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"must be cpu or cuda, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError("there is no CUDA device")
    return name


if __name__ == "__main__":
    sys.exit(main())
