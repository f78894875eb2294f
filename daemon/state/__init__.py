"""The state directory: who owns it, who can write to it, and the room that is kept there."""
