"""Hooks: commands that make applications ready for a cut, and all that they start."""
