"""Transfers: contents of snapshots to and from backups and copies, as an NBD client."""
