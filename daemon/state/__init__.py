"""The state directory: its owner, its permissions, and the space that is reserved there."""
