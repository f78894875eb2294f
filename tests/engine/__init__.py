"""The engine as Python sees it."""
