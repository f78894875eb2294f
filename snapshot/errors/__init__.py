"""Errors of groups, snapshots, schedules and hooks, in the form of mapping/errors.py, by noun."""
