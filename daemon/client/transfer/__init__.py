"""Transfers: contents of snapshots on their way to and from backups and copies, as a client of NBD."""
