"""Threads that sleep while they wait for each other, in commands.

By default OpenMP's threads keep their core busy while they wait. Where other programs use the cores, several such
threads can take ten times as long as one; threads that sleep do not. OpenMP reads the variable as torch loads it, so
the package imports this module first. Programs that import the package keep their own setting.
"""

import os
import sys

# Python sets argv[0] to "-m" while it locates the module that runs, and imports this package on the way.
if sys.argv[:1] == ["-m"] and "disentangled_mil" in sys.orig_argv:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
