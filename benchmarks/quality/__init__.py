"""Does pruning keep the quality? Small models trained on emojis, side by side.

variants -> training (one of them) -> grid (all, in parallel) -> results_log -> report -> page.
"""
