"""Space of change logs and of the state directory: warnings, and the actions when it is exhausted."""
