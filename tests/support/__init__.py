"""What tests share: the daemon, NBD clients, fio, nbdfuse with loop devices, bounded processes."""
