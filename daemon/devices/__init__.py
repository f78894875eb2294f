"""Devices: their verbs, their open files, and the handling of one that disappears, returns, grows or
shrinks."""
