//! Handle: I/O on one export from Python.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};

use pyo3::buffer::PyBuffer;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};

use crate::error::Errno;
use crate::python::errors::os_error;
use crate::request::Verb;
use crate::volume::local_client::LocalClient;

/// See `engine.pyi`.
#[pyclass(frozen, module = "polyvol.engine")]
pub struct Handle {
    client: RwLock<Option<Arc<LocalClient>>>,
    /// Calls in flight.
    in_flight: AtomicU64,
    /// Bytes written by calls that succeeded.
    written: AtomicU64,
    /// Bytes read.
    read: AtomicU64,
}

impl Handle {
    /// A handle on this client.
    pub fn new(client: LocalClient) -> Handle {
        Handle {
            client: RwLock::new(Some(Arc::new(client))),
            in_flight: AtomicU64::new(0),
            written: AtomicU64::new(0),
            read: AtomicU64::new(0),
        }
    }

    fn client(&self) -> PyResult<Arc<LocalClient>> {
        let client = self.client.read().expect("no holder panics").clone();
        client.ok_or_else(|| os_error(Errno::ESHUTDOWN))
    }

    /// Calls the client without the GIL, and counts the call as in flight.
    fn call<T: Send>(
        &self,
        py: Python<'_>,
        ask: impl FnOnce(&LocalClient) -> Result<T, Errno> + Send,
    ) -> PyResult<T> {
        let client = self.client()?;
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        let done = py.detach(|| ask(&client));
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        done.map_err(os_error)
    }

    fn range(
        &self,
        py: Python<'_>,
        verb: Verb,
        length: u64,
        offset: u64,
        fua: bool,
    ) -> PyResult<()> {
        self.call(py, |client| client.range(verb, offset, length, fua))
    }

    fn read(&self, py: Python<'_>, length: u64, offset: u64) -> PyResult<crate::buffer::Buffer> {
        let request = self.call(py, |client| client.read(offset, length))?;
        self.read.fetch_add(length, Ordering::Relaxed);
        // The sink has returned the request, so no other thread holds it for long; but a processor may not have
        // released its reference yet.
        Ok(match Arc::try_unwrap(request) {
            Ok(request) => request.data,
            Err(shared) => crate::buffer::Buffer::copy_of(shared.data.as_slice()),
        })
    }
}

#[pymethods]
impl Handle {
    #[getter]
    fn size(&self) -> PyResult<u64> {
        Ok(self.client()?.size())
    }

    #[getter]
    fn read_only(&self) -> PyResult<bool> {
        Ok(self.client()?.read_only())
    }

    fn traffic(&self) -> (u64, u64, u64) {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (count(&self.in_flight), count(&self.written), count(&self.read))
    }

    fn pread<'py>(
        &self,
        py: Python<'py>,
        length: u64,
        offset: u64,
    ) -> PyResult<Bound<'py, PyBytes>> {
        Ok(PyBytes::new(py, self.read(py, length, offset)?.as_slice()))
    }

    fn pread_into(&self, py: Python<'_>, buffer: PyBuffer<u8>, offset: u64) -> PyResult<()> {
        let data = self.read(py, buffer.len_bytes() as u64, offset)?;
        buffer.copy_from_slice(py, data.as_slice())
    }

    #[pyo3(signature = (data, offset, *, fua = false))]
    fn pwrite(&self, py: Python<'_>, data: PyBuffer<u8>, offset: u64, fua: bool) -> PyResult<()> {
        let bytes = data.to_vec(py)?;
        self.call(py, |client| client.write(offset, &bytes, fua))?;
        self.written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    #[pyo3(signature = (length, offset, *, no_hole = false, fast = false, fua = false))]
    fn zero(
        &self,
        py: Python<'_>,
        length: u64,
        offset: u64,
        no_hole: bool,
        fast: bool,
        fua: bool,
    ) -> PyResult<()> {
        self.range(py, Verb::Zero { no_hole, fast }, length, offset, fua)
    }

    #[pyo3(signature = (length, offset, *, fua = false))]
    fn trim(&self, py: Python<'_>, length: u64, offset: u64, fua: bool) -> PyResult<()> {
        self.range(py, Verb::Trim, length, offset, fua)
    }

    fn flush(&self, py: Python<'_>) -> PyResult<()> {
        self.call(py, LocalClient::flush)
    }

    fn cache(&self, py: Python<'_>, length: u64, offset: u64) -> PyResult<()> {
        self.range(py, Verb::Cache, length, offset, false)
    }

    fn block_status<'py>(
        &self,
        py: Python<'py>,
        length: u64,
        offset: u64,
    ) -> PyResult<Bound<'py, PyList>> {
        let found = self.call(py, |client| client.block_status(offset, length))?;
        let list = PyList::empty(py);
        for extent in found {
            let dict = PyDict::new(py);
            dict.set_item("offset", extent.offset)?;
            dict.set_item("length", extent.length)?;
            dict.set_item("hole", extent.hole)?;
            dict.set_item("zero", extent.zero)?;
            list.append(dict)?;
        }
        Ok(list)
    }

    fn close(&self) -> Result<(), PyErr> {
        self.client.write().map_err(|_| os_error(Errno::EIO))?.take();
        Ok(())
    }
}
