//! The function `check`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::engine::check::check_volume;
use crate::python::errors::raised;
use crate::python::spec;
use crate::system::System;
use crate::system::linux::Linux;

/// See `engine.pyi`.
#[pyfunction]
#[pyo3(signature = (spec, devices, *, data = false))]
pub fn check<'py>(
    py: Python<'py>,
    spec: &Bound<'py, PyDict>,
    devices: BTreeMap<u64, PathBuf>,
    data: bool,
) -> PyResult<Bound<'py, PyDict>> {
    let spec = spec::volume(spec)?;
    let linux: Arc<dyn System> = Arc::new(Linux);
    let checked = py.detach(|| check_volume(&linux, &spec, &devices, data));
    let report = checked.map_err(|error| raised(py, &error))?;
    let dict = PyDict::new(py);
    dict.set_item("problems", report.problems)?;
    dict.set_item("more_problems", report.more_problems)?;
    dict.set_item("deleted_snapshots", report.deleted_snapshots)?;
    dict.set_item("leftovers", report.leftovers)?;
    dict.set_item("slots", report.slots)?;
    dict.set_item("records", report.records)?;
    dict.set_item("checked_bytes", report.checked_bytes)?;
    let processors = PyList::empty(py);
    for (processor, recorded_from, cuts) in report.cuts {
        let dict = PyDict::new(py);
        dict.set_item("processor", processor)?;
        dict.set_item("recorded_from", recorded_from)?;
        let found = PyList::empty(py);
        for cut in cuts {
            let dict = PyDict::new(py);
            dict.set_item("epoch", cut.epoch)?;
            dict.set_item("instant_ns", cut.instant_ns)?;
            dict.set_item("partitions", cut.partitions)?;
            found.append(dict)?;
        }
        dict.set_item("cuts", found)?;
        processors.append(dict)?;
    }
    dict.set_item("processors", processors)?;
    Ok(dict)
}
