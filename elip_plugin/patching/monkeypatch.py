"""Changing for a while what belongs to somebody else: an attribute, what is logged."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give an attribute another value inside the context.

    Args:
        owner: A module or class.
        name: The attribute, its own or inherited.
        value: Its value for a while.

    Yields:
        Nothing; at the end the attribute is as it was, inherited again if it was.
    """
    own = name in vars(owner)
    before = vars(owner).get(name)  # past descriptors, so that a classmethod stays one
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


@contextmanager
def silenced() -> Iterator[None]:
    """Drop log messages up to warnings, where a host warns of what is meant.

    Yields:
        Nothing; at the end logging is as it was.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
