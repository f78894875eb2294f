"""Processors, as users see them."""
