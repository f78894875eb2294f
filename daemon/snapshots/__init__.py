"""Snapshots: taking, comparing and deleting them."""
