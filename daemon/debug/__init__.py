"""Debug: what the process is doing, to find what is stuck, and for bug reports."""
