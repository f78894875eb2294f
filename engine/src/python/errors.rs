//! Conversion of errors for Python: [`Error`] becomes `EngineError`, an [`Errno`] becomes `OSError`.

use pyo3::create_exception;
use pyo3::exceptions::{PyException, PyOSError};
use pyo3::prelude::*;

use crate::error::{Errno, Error, ErrorKind};

create_exception!(polyvol.engine, EngineError, PyException, "A call that failed.");

/// An `EngineError` with `kind` and `errno`.
pub fn raised(py: Python<'_>, error: &Error) -> PyErr {
    let kind = match error.kind {
        ErrorKind::NotFound => "not-found",
        ErrorKind::Exists => "exists",
        ErrorKind::Busy => "busy",
        ErrorKind::Invalid => "invalid",
        ErrorKind::Corrupt => "corrupt",
        ErrorKind::Io => "io",
    };
    let exception = EngineError::new_err(error.what.clone());
    let value = exception.value(py);
    let errno = error.errno.map_or(0, Errno::raw);
    match value.setattr("kind", kind).and_then(|()| value.setattr("errno", errno)) {
        Ok(()) => exception,
        Err(other) => other,
    }
}

/// An `OSError` with the errno that a host would see.
pub fn os_error(errno: Errno) -> PyErr {
    PyOSError::new_err((errno.raw(), errno.words()))
}
