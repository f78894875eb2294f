"""The programs that talk to a polyvold: the command line, backups and restores, block devices of a host."""
