"""The process polyvold while it serves: its main thread, or nbdkit as the front end."""
