"""Does pruning keep the quality? Small models trained from scratch on real pairs, side by side.

variants -> training (one of them) -> grid (all of them, in parallel) -> results_log -> report.
"""
