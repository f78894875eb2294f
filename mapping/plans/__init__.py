"""Plans: what a volume, a clone or a change log to be made would be. Pure."""
