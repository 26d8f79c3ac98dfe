"""What a command needs before torch is loaded: threads that sleep while they wait, and a quiet end on Ctrl-C.

By default OpenMP's threads keep their core busy while they wait. Where other programs use the cores, several such
threads can take ten times as long as one; threads that sleep do not. OpenMP reads the variable as torch loads it, so
the package imports this module first. Programs that import the package keep their own settings.
"""

import os
import signal
import sys

# Python sets argv[0] to "-m" while it locates the module that runs, and imports this package on the way.
if sys.argv[:1] == ["-m"] and "disentangled_mil" in sys.orig_argv:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Ctrl-C ends the process at once until `__main__` has loaded all; an exception in an import shows a traceback.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
