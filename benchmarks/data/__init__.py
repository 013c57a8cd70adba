"""Data sets of the studies: emojis in ten styles, and scenes of several emojis each."""
