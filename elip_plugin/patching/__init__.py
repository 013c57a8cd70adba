"""Patching other people's models in place, and undoing it."""
