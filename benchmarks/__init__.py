"""Studies of what pruning does to quality; they are not part of the wheel."""
