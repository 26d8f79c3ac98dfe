"""Experiments: questions about the method, each answered by one command: ``python -m benchmarks.experiments NAME``.

A file per experiment declares cases and variants. Everything else is shared: :mod:`.cohorts` gives the patients,
:mod:`.training` the work, :mod:`.schedule` runs what is missing, :mod:`.runs` stores it, and :mod:`.summary` makes of
it what :mod:`.tables`, :mod:`.figures` and the page show.
"""

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # torch's profiler, which counts memory, prints each start and stop
