"""Real clients on a real daemon."""
