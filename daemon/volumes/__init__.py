"""Volumes: their verbs, change logs, growth, scrubs, and removal."""
