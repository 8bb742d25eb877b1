"""Errors of making models."""


class ModelError(ValueError):
    """A model cannot be made as configured; the text says what was found, what is allowed and how to fix it."""
