"""The types of the control API: bodies of requests and responses, and what `--json` prints, by noun."""
