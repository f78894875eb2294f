"""nbd_plugin: the second front end. nbdkit serves the same volumes and snapshots, through the same engine."""
