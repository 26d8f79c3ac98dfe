"""Benchmarks of the operators and layers against their dense reference: ``python -m benchmarks``.

They run from a checkout and are not part of the installed package.
"""
