"""Damaged files that are chosen by the code that they reach: the targets and the rule of ``tests/fuzz.py``, by atheris.

    pip install atheris
    python -m tests.fuzz_guided --inputs 200000

Every target gets the same number of inputs. ``--corpus`` keeps those that reached new code, and starts from them.
"""

import argparse
import math
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["disentangled_mil", "tomllib"]):
    from tests import fuzz


def guided(corpus: Path, known: Sequence[fuzz.Target], seed: int, pipe: Connection, trace: Path) -> None:
    """Do what :func:`tests.fuzz.work` does, for one target, with inputs of libFuzzer."""
    (target,) = known
    fuzz.answer_where(trace)

    def read(content: bytes) -> None:
        pipe.send((0, content))
        pipe.send(fuzz.fault(target, content))

    words = corpus.with_suffix(".dict")
    escaped = ("".join(f"\\x{byte:02x}" for byte in piece) for piece in fuzz.PIECES)
    words.write_text("".join(f'"{piece}"\n' for piece in escaped))
    most = 2 * max(map(len, target.contents))
    # Time is watched from outside (0 would be no time), and SIGUSR1 asks where the process is.
    options = {"seed": seed, "max_len": most, "dict": words, "timeout": 10**6, "rss_limit_mb": 0, "handle_usr1": 0}
    options |= {"detect_leaks": 0, "verbosity": 0, "close_fd_mask": 3, "artifact_prefix": f"{corpus.parent}/"}
    atheris.Setup([sys.argv[0], *(f"-{name}={value}" for name, value in options.items()), str(corpus)], read)
    atheris.Fuzz()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; 1 where there is a finding."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz_guided")
    parser.add_argument("--inputs", type=int, default=200_000, help="of all targets together (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=math.inf, help="limit of each target (default: none)")
    parser.add_argument("--targets", nargs="+", help="names of targets (default: all)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--corpus", type=Path, help="folder of inputs that reached new code (default: a temporary one)")
    parser.add_argument("--out", type=Path, default=Path("findings"))
    options = parser.parse_args(arguments)
    findings = fuzz.Findings(options.out)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        known = [target for target in fuzz.targets(folder) if target.name in (options.targets or [target.name])]
        try:
            for target in known:
                corpus = (options.corpus or folder / "corpus").resolve() / target.name.replace(" ", "_")
                corpus.mkdir(parents=True, exist_ok=True)
                for number, content in enumerate(target.contents):
                    (corpus / f"whole{number}").write_bytes(content)
                fuzz.run(
                    options.seconds,
                    options.seed,
                    findings,
                    [target],
                    folder / "trace",
                    work=partial(guided, corpus),
                    most=options.inputs // len(known),
                )
        finally:
            findings.close()
    return 1 if findings.kinds else 0


if __name__ == "__main__":
    sys.exit(main())
