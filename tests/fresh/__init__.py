"""tests.fresh: a Debian 12 and a Debian 13 with nothing on them but minbase and git."""
