"""The client programs of polyvold: the command line, backups and restores, block devices of a host."""
