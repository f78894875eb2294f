"""The host of polyvold: users, callers, sockets, signals, standard streams, systemd, memory."""
