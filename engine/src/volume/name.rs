//! The name of a volume, for messages. It can change while the volume is in use; all holders of the volume then use the
//! new one.
//!
//! Owner and locks   a lock over the text, held while it is copied or replaced.

use std::fmt;
use std::sync::{Mutex, PoisonError};

/// See the module's head.
pub struct VolumeName(Mutex<String>);

impl VolumeName {
    /// This name.
    pub fn new(name: &str) -> Self {
        Self(Mutex::new(name.to_owned()))
    }

    /// Replaces it.
    pub fn set(&self, name: &str) {
        name.clone_into(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl fmt::Display for VolumeName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
