"""Does pruning keep the quality on photographs? Small models trained on Tiny ImageNet.

folder -> grid (trainings of `benchmarks.board`) -> results log -> page.
"""
