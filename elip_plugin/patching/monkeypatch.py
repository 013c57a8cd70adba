"""Changing for a while what belongs to somebody else: an attribute, what is logged."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give an attribute another value inside the context."""
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
    """Drop log messages up to warnings, where a host warns of what is meant."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
