"""Does pruning keep the quality? Small models trained from scratch on real pairs, side by side.

variants -> run (one training) -> grid (all of them, side by side) -> ledger -> report.
"""
