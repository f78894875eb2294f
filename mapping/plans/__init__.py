"""Plans: what a volume, a clone or a log area to be made would be. Pure."""
