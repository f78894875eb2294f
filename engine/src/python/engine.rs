//! The class `Engine`.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::block_map::history::Rollback;
use crate::engine::Engine as Inner;
use crate::engine::relocate::{Bounds, Kind, Scattered};
use crate::error::{Error, ErrorKind, Result};
use crate::io::device::Mode;
use crate::limits;
use crate::nbd::Server;
use crate::processor::share::scrub::Cursor;
use crate::python::errors::raised;
use crate::python::handle::Handle;
use crate::python::{partitions, report, spec, stats};
use crate::units::BLOCK_SIZE;
use crate::units::Epoch;
use crate::volume::local_client::LocalClient;

/// Extents, and the start of the next page.
type ChangesPage = (Vec<(u64, u64)>, Option<u64>);

/// See `engine.pyi`.
#[pyclass(frozen, module = "polyvol.engine")]
pub struct Engine {
    inner: Inner,
    server: Server,
}

impl Engine {
    /// Runs a call without the GIL, unless the engine has been stopped.
    fn call<T: Send>(
        &self,
        py: Python<'_>,
        f: impl FnOnce(&Self) -> Result<T> + Send,
    ) -> PyResult<T> {
        let result = py.detach(|| match self.inner.is_stopped() {
            true => Err(Error::new(ErrorKind::Invalid, "the engine has been stopped")),
            false => f(self),
        });
        result.map_err(|error| raised(py, &error))
    }
}

#[pymethods]
impl Engine {
    #[new]
    fn new(py: Python<'_>, processors: u32) -> PyResult<Engine> {
        let made = py.detach(|| {
            limits::apply_test_overrides();
            crate::log::log_panics();
            let inner = Inner::new(processors)?;
            let server = Server::new(std::sync::Arc::clone(&inner.exports), inner.reaping())?;
            Ok(Engine { inner, server })
        });
        made.map_err(|error| raised(py, &error))
    }

    fn grow_processors(&self, py: Python<'_>, processors: u32) -> PyResult<()> {
        self.call(py, |this| this.inner.grow_processors(processors))
    }

    #[pyo3(signature = (device, path, *, sparse = true, direct = false, size = 0))]
    fn open_device(
        &self,
        py: Python<'_>,
        device: u64,
        path: PathBuf,
        sparse: bool,
        direct: bool,
        size: u64,
    ) -> PyResult<()> {
        let mode = Mode { read_only: false, sparse, direct, size };
        self.call(py, |this| this.inner.open_device(device, &path, mode))
    }

    #[pyo3(signature = (device, *, sparse = true, clean = false, direct = false, size = 0))]
    fn absent_device(
        &self,
        py: Python<'_>,
        device: u64,
        sparse: bool,
        clean: bool,
        direct: bool,
        size: u64,
    ) -> PyResult<()> {
        let mode = Mode { read_only: false, sparse, direct, size };
        self.call(py, |this| this.inner.absent_device(device, mode, clean))
    }

    fn reopen_device(&self, py: Python<'_>, device: u64, path: PathBuf) -> PyResult<()> {
        self.call(py, |this| this.inner.reopen_device(device, &path))
    }

    fn close_device(&self, py: Python<'_>, device: u64) -> PyResult<()> {
        self.call(py, |this| this.inner.close_device(device))
    }

    fn set_io_timeout(&self, py: Python<'_>, timeout_s: f64) -> PyResult<()> {
        let timeout = Duration::try_from_secs_f64(timeout_s).unwrap_or(Duration::ZERO);
        self.call(py, |this| {
            this.inner.set_io_timeout(timeout);
            Ok(())
        })
    }

    fn add_volume(&self, py: Python<'_>, spec: &Bound<'_, PyDict>) -> PyResult<Vec<Epoch>> {
        let spec = spec::volume(spec)?;
        self.call(py, |this| this.inner.add_volume(spec))
    }

    fn grow_volume(&self, py: Python<'_>, spec: &Bound<'_, PyDict>) -> PyResult<()> {
        let spec = spec::volume(spec)?;
        self.call(py, |this| this.inner.grow_volume(spec))
    }

    fn rename_volume(&self, py: Python<'_>, volume: u64, name: &str) -> PyResult<()> {
        self.call(py, |this| this.inner.rename_volume(volume, name))
    }

    fn remove_volume(&self, py: Python<'_>, volume: u64) -> PyResult<()> {
        self.call(py, |this| this.inner.remove_volume(volume))
    }

    fn add_log(
        &self,
        py: Python<'_>,
        volume: u64,
        log: &Bound<'_, PyDict>,
        rules: &Bound<'_, PyDict>,
    ) -> PyResult<()> {
        let (number, extents) = (spec::entry(log, "number")?, spec::extents(log)?);
        let rules = spec::volume_rules(rules)?;
        self.call(py, |this| this.inner.add_log(volume, number, &extents, &rules))
    }

    fn set_log_rules(
        &self,
        py: Python<'_>,
        volume: u64,
        rules: &Bound<'_, PyDict>,
    ) -> PyResult<()> {
        let rules = spec::volume_rules(rules)?;
        self.call(py, |this| this.inner.set_log_rules(volume, &rules))
    }

    fn relocate<'py>(
        &self,
        py: Python<'py>,
        volume: u64,
        bytes: u64,
        seconds: f64,
        urgent: bool,
        scattered: Option<(u32, bool)>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let away = |(runs, cold)| Kind::Away(Scattered { runs, cold });
        let kind = scattered.map_or(Kind::Home, away);
        let time = Duration::try_from_secs_f64(seconds)
            .map_err(|error| PyValueError::new_err(error.to_string()))?;
        let bounds = Bounds { bytes, time, urgent, kind };
        let done = self.call(py, |this| this.inner.relocate(volume, bounds))?;
        report::relocation(py, done)
    }

    fn ask_when_full(&self, py: Python<'_>, volume: u64, asks: bool) -> PyResult<()> {
        self.call(py, |this| this.inner.ask_when_full(volume, asks))
    }

    fn try_again(&self, py: Python<'_>, volume: u64) -> PyResult<()> {
        self.call(py, |this| this.inner.try_again(volume))
    }

    fn next_event<'py>(
        &self,
        py: Python<'py>,
        timeout_s: f64,
    ) -> PyResult<Option<Bound<'py, PyDict>>> {
        let timeout = Duration::try_from_secs_f64(timeout_s).unwrap_or(Duration::ZERO);
        let event = self.call(py, |this| Ok(this.inner.events.next(timeout)))?;
        event.map(|event| super::space::event(py, event)).transpose()
    }

    fn end_events(&self, py: Python<'_>) -> PyResult<()> {
        self.call(py, |this| {
            this.inner.events.close();
            this.inner.refuse_without_space();
            Ok(())
        })
    }

    fn space<'py>(&self, py: Python<'py>, volume: u64) -> PyResult<Bound<'py, PyDict>> {
        let volume = self.call(py, |this| this.inner.volume(volume))?;
        super::space::space(py, &volume)
    }

    fn export(
        &self,
        py: Python<'_>,
        name: &str,
        description: &str,
        volume: u64,
        epoch: Option<Epoch>,
    ) -> PyResult<()> {
        self.call(py, |this| this.inner.export(name, description, volume, epoch))
    }

    fn export_hidden(
        &self,
        py: Python<'_>,
        name: &str,
        description: &str,
        volume: u64,
    ) -> PyResult<()> {
        self.call(py, |this| this.inner.export_hidden(name, description, volume))
    }

    fn unexport(&self, py: Python<'_>, name: &str) -> PyResult<()> {
        self.call(py, |this| this.inner.exports.remove(name))
    }

    fn exports<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let list = PyList::empty(py);
        for export in self.inner.exports.list() {
            let dict = PyDict::new(py);
            dict.set_item("name", &export.name)?;
            dict.set_item("size", export.target.size())?;
            dict.set_item("read_only", export.target.read_only())?;
            dict.set_item("hidden", export.hidden)?;
            dict.set_item("connections", export.connections())?;
            list.append(dict)?;
        }
        Ok(list)
    }

    fn cut<'py>(
        &self,
        py: Python<'py>,
        volumes: Vec<Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let mut wanted = Vec::new();
        for volume in &volumes {
            wanted.push((spec::entry(volume, "volume")?, spec::log_rules(volume)?));
        }
        let made = self.call(py, |this| this.inner.cut(&wanted))?;
        report::cut(py, &made)
    }

    fn settle(&self, py: Python<'_>, volume: u64, epoch: Epoch) -> PyResult<()> {
        self.call(py, |this| this.inner.settle(volume, epoch))
    }

    fn flush(&self, py: Python<'_>, volume: u64) -> PyResult<()> {
        self.call(py, |this| this.inner.flush(volume))
    }

    fn drop_snapshot(&self, py: Python<'_>, volume: u64, epoch: Epoch) -> PyResult<u64> {
        self.call(py, |this| this.inner.drop_snapshot(volume, epoch))
    }

    fn drop_snapshots(&self, py: Python<'_>, volume: u64, epochs: Vec<Epoch>) -> PyResult<u64> {
        self.call(py, |this| this.inner.drop_snapshots(volume, &epochs))
    }

    fn roll_back(&self, py: Python<'_>, volume: u64, at: Epoch, to: Epoch) -> PyResult<()> {
        self.call(py, |this| this.inner.roll_back(volume, Rollback { at, to }))
    }

    fn relieve(&self, py: Python<'_>, volume: u64) -> PyResult<()> {
        self.call(py, |this| this.inner.relieve(volume))
    }

    fn renew_missing_files(
        &self,
        py: Python<'_>,
        volume: u64,
    ) -> PyResult<(Vec<PathBuf>, Vec<PathBuf>)> {
        let found = self.call(py, |this| this.inner.renew_missing_files(volume))?;
        let (now, replaced): (Vec<_>, Vec<_>) =
            found.into_iter().map(|gone| (gone.now, gone.replaced)).unzip();
        Ok((now.into_iter().flatten().collect(), replaced.into_iter().flatten().collect()))
    }

    fn cover_rollbacks(&self, py: Python<'_>, volume: u64) -> PyResult<()> {
        self.call(py, |this| this.inner.cover_rollbacks(volume))
    }

    fn unneeded_rollback(&self, py: Python<'_>, volume: u64) -> PyResult<Option<Epoch>> {
        self.call(py, |this| this.inner.unneeded_rollback(volume))
    }

    fn forget_rollback(&self, py: Python<'_>, volume: u64, at: Epoch) -> PyResult<u64> {
        self.call(py, |this| this.inner.forget_rollback(volume, at))
    }

    fn homeward(&self, py: Python<'_>, volume: u64) -> PyResult<(u64, u64)> {
        let found = self.call(py, |this| this.inner.homeward(volume))?;
        Ok((found.home * BLOCK_SIZE, found.pinned * BLOCK_SIZE))
    }

    fn snapshot_use<'py>(&self, py: Python<'py>, volume: u64) -> PyResult<Bound<'py, PyDict>> {
        let found = self.call(py, |this| this.inner.snapshot_use(volume))?;
        super::space::snapshot_use(py, &found)
    }

    fn partition_snapshots<'py>(
        &self,
        py: Python<'py>,
        volume: u64,
        epoch: Epoch,
        first: u32,
        count: u32,
    ) -> PyResult<Bound<'py, PyList>> {
        let range = first..first.saturating_add(count);
        let found = self.call(py, |this| this.inner.partition_snapshots(volume, epoch, range))?;
        partitions::snapshots(py, epoch, &found)
    }

    fn partitions<'py>(
        &self,
        py: Python<'py>,
        volume: u64,
        first: u32,
        count: u32,
    ) -> PyResult<Bound<'py, PyList>> {
        let range = first..first.saturating_add(count);
        partitions::partitions(py, &self.call(py, |this| this.inner.partitions(volume, range))?)
    }

    fn change_logs<'py>(
        &self,
        py: Python<'py>,
        volume: u64,
        first: u32,
        count: u32,
        begin: Option<Epoch>,
    ) -> PyResult<Bound<'py, PyList>> {
        let range = first..first.saturating_add(count);
        let found = self.call(py, |this| this.inner.change_logs(volume, range, begin))?;
        partitions::change_logs(py, &found)
    }

    fn change_log_counts<'py>(&self, py: Python<'py>, volume: u64) -> PyResult<Bound<'py, PyList>> {
        let found = self.call(py, |this| this.inner.change_log_counts(volume))?;
        partitions::counts(py, &found)
    }

    fn change_log_runs<'py>(
        &self,
        py: Python<'py>,
        volume: u64,
        partition: u32,
        begin: Epoch,
        first_run: usize,
        count: usize,
    ) -> PyResult<(Bound<'py, PyList>, usize)> {
        let (runs, total) = self.call(py, |this| {
            this.inner.change_log_runs(volume, partition, begin, first_run, count)
        })?;
        Ok((partitions::runs(py, &runs)?, total))
    }

    fn locate<'py>(
        &self,
        py: Python<'py>,
        volume: u64,
        offset: u64,
        epoch: Option<Epoch>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let found = self.call(py, |this| this.inner.locate(volume, offset, epoch))?;
        partitions::location(py, &found)
    }

    fn changes(
        &self,
        py: Python<'_>,
        volume: u64,
        since: Epoch,
        until: Option<Epoch>,
        start: u64,
        extents_max: usize,
    ) -> PyResult<ChangesPage> {
        let changes =
            self.call(py, |this| this.inner.changes(volume, since, until, start, extents_max))?;
        Ok((changes.extents, changes.next))
    }

    fn change_total(
        &self,
        py: Python<'_>,
        volume: u64,
        since: Epoch,
        until: Option<Epoch>,
    ) -> PyResult<(u64, u64)> {
        let total = self.call(py, |this| this.inner.change_total(volume, since, until))?;
        Ok((total.extents, total.bytes))
    }

    fn volume_stats<'py>(&self, py: Python<'py>, volume: u64) -> PyResult<Bound<'py, PyDict>> {
        let volume = self.call(py, |this| this.inner.volume(volume))?;
        stats::volume(py, &self.inner, &volume)
    }

    fn scrub<'py>(
        &self,
        py: Python<'py>,
        volume: u64,
        partition: u32,
        cursor: (u32, Epoch),
        bytes_max: u64,
    ) -> PyResult<Bound<'py, PyDict>> {
        let from = Cursor { leaf: cursor.0, epoch: cursor.1 };
        let done = self.call(py, |this| this.inner.scrub(volume, partition, from, bytes_max))?;
        report::scrub(py, &done)
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        stats::engine(py, &self.inner, &self.server)
    }

    fn inspect<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let looked = self.call(py, |this| Ok(super::inspect::Looked::of(&this.inner)))?;
        looked.report(py, &self.inner, &self.server)
    }

    fn listen(&self, py: Python<'_>, fd: RawFd) -> PyResult<()> {
        // SAFETY: the caller transfers this descriptor and does not use it any more (see engine.pyi).
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        self.call(py, |this| this.server.listen(socket))
    }

    fn disconnect(&self, py: Python<'_>, export: &str) -> PyResult<()> {
        self.call(py, |this| {
            this.server.disconnect(export);
            Ok(())
        })
    }

    fn clients<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let list = PyList::empty(py);
        for client in self.call(py, |this| Ok(this.server.clients()))? {
            list.append(report::client(py, &client)?)?;
        }
        Ok(list)
    }

    fn disconnect_client(&self, py: Python<'_>, number: u64) -> PyResult<bool> {
        self.call(py, |this| Ok(this.server.disconnect_client(number)))
    }

    fn hand_over<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let handed = self.call(py, |this| {
            this.inner.hurry();
            Ok(this.server.hand_over())
        })?;
        report::hand_over(py, handed)
    }

    fn adopt(&self, py: Python<'_>, fd: RawFd, export: &str, state: &[u8]) -> PyResult<()> {
        // SAFETY: the caller transfers this descriptor and does not use it any more (see engine.pyi).
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        self.call(py, |this| this.server.adopt(socket, export, state))
    }

    fn open(&self, py: Python<'_>, export: &str) -> PyResult<Handle> {
        let attached = self.call(py, |this| {
            let missing =
                || Error::new(ErrorKind::NotFound, format!("there is no export {export}"));
            this.inner.exports.attach(export).ok_or_else(missing)
        })?;
        Ok(Handle::new(LocalClient::new(attached)))
    }

    fn stop(&self, py: Python<'_>) -> PyResult<()> {
        let result = py.detach(|| {
            self.inner.refuse_without_space();
            self.inner.hurry();
            self.server.stop();
            self.inner.stop()
        });
        result.map_err(|error| raised(py, &error))
    }
}
