"""Threads that sleep while they wait for each other, in commands.

By default OpenMP's threads keep their core busy while they wait. With three other programs on two cores, a student's
training step on a slide of 10,000 patches took 37 s on two threads, and 3.3 s on two threads that sleep. OpenMP reads
the variable as torch loads it, so :meth:`__init__` imports this module first. Programs that import the package are left
alone.
"""

import os
import sys

# Python sets argv[0] to "-m" while it locates the module that runs, and imports this package on the way.
if sys.argv[:1] == ["-m"] and "disentangled_mil" in sys.orig_argv:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
