"""The catalog: SQLite in the state directory, the only SQL of the project."""
