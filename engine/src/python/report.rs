//! Reports: what the engine tells, as Python's dictionaries.

use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::io::device::Device;

/// A `DeviceStats`.
pub fn device<'py>(py: Python<'py>, device: &Device) -> PyResult<Bound<'py, PyDict>> {
    let (errors, last_errno) = device.errors();
    let dict = PyDict::new(py);
    dict.set_item("device", device.id)?;
    dict.set_item("present", device.is_present())?;
    dict.set_item("errors", errors)?;
    dict.set_item("last_errno", last_errno)?;
    let fault = device.fault().map(|fault| {
        let dict = PyDict::new(py);
        dict.set_item("call", fault.call.name())?;
        dict.set_item("errno", fault.errno.raw())?;
        dict.set_item("offset", fault.offset)?;
        dict.set_item("first_ns", fault.first_ns)?;
        dict.set_item("last_ns", fault.last_ns)?;
        dict.set_item("times", fault.times)?;
        Ok::<_, PyErr>(dict)
    });
    dict.set_item("fault", fault.transpose()?)?;
    Ok(dict)
}
