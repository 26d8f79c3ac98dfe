"""The command line: parse, call, print. Every command is one file of ``commands``."""

from .run_command import main

__all__ = ["main"]
