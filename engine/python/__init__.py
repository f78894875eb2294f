"""polyvol: a virtual block volume on several processors, served over NBD, with consistent snapshots."""
