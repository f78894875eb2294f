//! NBD server: connections of hosts, from the first byte of the handshake to the last reply.
#![forbid(unsafe_code)]
