"""What the commands' help has in common."""

from __future__ import annotations


def examples(*commands: str) -> str:
    """Return the end of a command's help: its examples, a line each."""
    return "\n\n".join(("Examples:", *commands))
