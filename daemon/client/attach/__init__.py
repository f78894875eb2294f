"""attach: a volume or snapshot as a block device of this host, by the kernel's NBD client or by nbdfuse."""
