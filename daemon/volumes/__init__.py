"""Volumes: their verbs, change logs, growth, scrubs, and what is removed."""
