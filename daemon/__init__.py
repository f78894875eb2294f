"""polyvold and polyvol: configuration, lifecycle, the control API and its command line."""
