"""The parser of all commands."""

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from typing import Protocol

from .. import __version__
from .commands import check, demo, explain, export, extract, init, join, predict, report, train


class Command(Protocol):
    """What the module of a command has."""

    HELP: str
    """What the command does, in the list of commands."""

    def add_options(self, parser: ArgumentParser, /) -> None:
        """Add the arguments of the command."""

    def run(self, options: Namespace, /) -> int | None:
        """Run the command, and return its exit status if it is not 0."""


# In the order of the list of commands.
COMMANDS: Mapping[str, Command] = {
    "demo": demo,
    "train": train,
    "join": join,
    "predict": predict,
    "explain": explain,
    "extract": extract,
    "export": export,
    "check": check,
    "report": report,
    "init": init,
}


def command_parser() -> ArgumentParser:
    """The parser; what it returns has the function ``run`` of the command."""
    parser = ArgumentParser(
        prog="python -m disentangled_mil",
        description="Disentangled multi-modal learning of histology and transcriptomics.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        own = commands.add_parser(name, help=command.HELP)
        command.add_options(own)
        own.set_defaults(run=command.run)
    return parser
