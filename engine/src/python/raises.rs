//! RaisesReturned: a callable that raises what a Python function returns, without a traceback.

use pyo3::exceptions::PyBaseException;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

/// See `engine.pyi`.
#[pyclass(frozen, module = "polyvol.engine")]
pub struct RaisesReturned {
    function: Py<PyAny>,
}

#[pymethods]
impl RaisesReturned {
    #[new]
    fn new(function: Py<PyAny>) -> RaisesReturned {
        RaisesReturned { function }
    }

    #[pyo3(signature = (*args))]
    fn __call__(&self, py: Python<'_>, args: &Bound<'_, PyTuple>) -> PyResult<Py<PyAny>> {
        let returned = self.function.bind(py).call1(args)?;
        if returned.is_instance_of::<PyBaseException>() {
            return Err(PyErr::from_value(returned));
        }
        Ok(returned.unbind())
    }
}
