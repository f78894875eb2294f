"""The benchmark behind scripts/bench: polyvol beside other NBD servers, in the same run on the same data."""
