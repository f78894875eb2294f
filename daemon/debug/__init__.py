"""Debug: what the process is at, for who looks for what is stuck, and for bug reports."""
