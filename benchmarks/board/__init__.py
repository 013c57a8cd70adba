"""What the boards of contrastive training share: emojis (`quality`) and photographs (`photos`).

variants -> training (one of them) -> grid (all of them) -> report and chart.
"""
