"""The version of this polyvol, for people and for comparing the two ends of the control API."""

from functools import cache


@cache
def version() -> str:
    """As the package says it."""
    import importlib.metadata  # loads much, and most commands do not need it

    return importlib.metadata.version("polyvol")
