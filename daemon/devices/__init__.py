"""Devices: their verbs, their open files, and what happens when one goes, comes back, grows or shrinks."""
