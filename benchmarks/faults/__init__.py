"""Faults put in on purpose: what was tried on this package, and what was lost.

The battery is `tests/faults` and the tests that were there; `python -m benchmarks.faults` runs it,
counts what it tried, and writes the tables of research/faults.md.
"""
