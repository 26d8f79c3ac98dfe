"""Time and memory of the operators and layers against their dense reference: ``python -m benchmarks``.

Runs from a checkout; it is no part of the installed package.
"""
