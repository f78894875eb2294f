"""Restores: volumes that a backup is being written to."""
