//! Volumes: what a host sees, and how a request finds the processors that serve it.

pub mod export;
pub mod request;
