"""nbd_plugin: the second way in. nbdkit serves the same volumes and snapshots, through the same engine."""
