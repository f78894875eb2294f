"""polyvol: the command line, the control API's first client."""
