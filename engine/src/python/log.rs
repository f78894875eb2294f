//! Log: the engine's lines, for Python to log as its own.

use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::log::{LOG, Level};

/// See `engine.pyi`.
#[pyfunction]
pub fn next_log_lines(py: Python<'_>, timeout_s: f64) -> PyResult<(Bound<'_, PyList>, u64)> {
    let timeout = Duration::try_from_secs_f64(timeout_s).unwrap_or(Duration::ZERO);
    let (lines, dropped) = py.detach(|| LOG.take(timeout));
    let list = PyList::empty(py);
    for line in lines {
        let dict = PyDict::new(py);
        let level = match line.level {
            Level::Error => "error",
            Level::Warning => "warning",
            Level::Info => "info",
        };
        dict.set_item("level", level)?;
        dict.set_item("code", line.code)?;
        dict.set_item("text", line.text)?;
        dict.set_item("volume", line.volume)?;
        dict.set_item("device", line.device)?;
        dict.set_item("errno", line.errno)?;
        dict.set_item("times", line.times)?;
        list.append(dict)?;
    }
    Ok((list, dropped))
}

/// See `engine.pyi`.
#[pyfunction]
pub fn wake_log_readers() {
    LOG.wake();
}
