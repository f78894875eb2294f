"""Space: of change logs and of the state directory, warnings, and what happens when there is no more."""
