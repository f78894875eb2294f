//! I/O: devices, and the threads that wait for them where a processor must not.

pub mod device;
pub mod mapping;
pub mod pool;
