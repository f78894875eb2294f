"""What polyvold has of its host: users, who calls it, sockets, signals, standard streams, systemd, memory."""
