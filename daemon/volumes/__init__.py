"""Volumes: their verbs, log areas and log rules, growth, scrubs, and removal."""
