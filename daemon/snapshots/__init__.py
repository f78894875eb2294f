"""Snapshots: how they are taken, what changed between them, and deletions."""
