"""Clients: who is connected, and the end of a connection."""
