//! Inspect: what the engine is at, as Python's dictionaries: an `EngineInspection`.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::engine::Engine;
use crate::engine::inspect::{ProcessorLook, VolumeLook};
use crate::limits;
use crate::nbd::Server;
use crate::nbd::budget;
use crate::processor::inspect::{Group, ShareLook};
use crate::system::pool::{Lane, PoolLook};
use crate::system::ticks::{Tick, Ticks};

/// What was found without the GIL.
pub struct Looked {
    processors: Vec<ProcessorLook>,
    volumes: Vec<VolumeLook>,
    pools: [(&'static str, PoolLook); 2],
    cutting: bool,
    now_ns: u64,
}

impl Looked {
    /// Looks at everything; takes half a second at most.
    pub fn of(engine: &Engine) -> Looked {
        Looked {
            processors: engine.inspect_processors(),
            volumes: engine.inspect_volumes(),
            pools: engine.inspect_pools(),
            cutting: engine.is_cutting(),
            now_ns: engine.system.monotonic_ns(),
        }
    }

    /// An `EngineInspection`.
    pub fn report<'py>(
        &self,
        py: Python<'py>,
        engine: &Engine,
        server: &Server,
    ) -> PyResult<Bound<'py, PyDict>> {
        let ticks = &*engine.ticks;
        let of = |one: &VolumeLook| (one.volume.share, one.volume.id);
        let volume_of: HashMap<u32, u64> = self.volumes.iter().map(of).collect();
        let processors = PyList::empty(py);
        for (number, look) in self.processors.iter().enumerate() {
            processors.append(processor(py, ticks, number, look, &volume_of, self.now_ns)?)?;
        }
        let flushers = PyList::empty(py);
        for one in &self.volumes {
            let (flusher, dict) = (&one.flusher, PyDict::new(py));
            dict.set_item("volume", one.volume.id)?;
            dict.set_item("waiting", group(py, ticks, flusher.waiting)?)?;
            dict.set_item("served", group(py, ticks, flusher.served)?)?;
            dict.set_item("sync_ms", age(ticks, flusher.began))?;
            dict.set_item("overdue", flusher.overdue)?;
            let shares = one.volume.shares.iter();
            let failures =
                shares.map(|share| share.stats.checkpoint_failures.load(Ordering::Relaxed));
            dict.set_item("checkpoint_failures", failures.sum::<u64>())?;
            flushers.append(dict)?;
        }
        let pools = PyList::empty(py);
        for (name, look) in &self.pools {
            pools.append(pool(py, name, look, &volume_of)?)?;
        }
        let dict = PyDict::new(py);
        dict.set_item("processors", processors)?;
        dict.set_item("flushers", flushers)?;
        dict.set_item("pools", pools)?;
        dict.set_item("cutting", self.cutting)?;
        dict.set_item("memory", memory(py, server)?)?;
        dict.set_item("limits", limits_of(py, ticks)?)?;
        Ok(dict)
    }
}

/// How long ago that was, milliseconds, right to a tick; `None` for tick 0.
fn age(ticks: &Ticks, since: Tick) -> Option<u64> {
    let lasted = || u64::try_from(ticks.lasted(since).as_millis()).unwrap_or(u64::MAX);
    (since != 0).then(lasted)
}

fn group<'py>(py: Python<'py>, ticks: &Ticks, found: Group) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("count", found.count)?;
    dict.set_item("oldest_ms", age(ticks, found.oldest))?;
    Ok(dict)
}

fn processor<'py>(
    py: Python<'py>,
    ticks: &Ticks,
    number: usize,
    look: &ProcessorLook,
    volume_of: &HashMap<u32, u64>,
    now_ns: u64,
) -> PyResult<Bound<'py, PyDict>> {
    let queue = &look.queue;
    let volume = |share: u32| volume_of.get(&share).copied();
    let dict = PyDict::new(py);
    dict.set_item("processor", number)?;
    dict.set_item("answered", look.answered)?;
    dict.set_item("running", queue.running)?;
    dict.set_item("sharing", queue.sharing)?;
    let busy = queue.running || queue.sharing > 0;
    dict.set_item("own_thread", (queue.running).then_some(queue.own))?;
    dict.set_item("thread", busy.then_some(queue.thread))?;
    dict.set_item("since_ms", age(ticks, queue.since))?;
    dict.set_item("doing", look.doing.0)?;
    dict.set_item("doing_volume", look.doing.1.and_then(volume))?;
    dict.set_item("queued_parts", group(py, ticks, queue.parts)?)?;
    dict.set_item("queued_others", group(py, ticks, queue.others)?)?;
    dict.set_item("shares_ms", look.shares.as_ref().and_then(|(at, _)| age(ticks, *at)))?;
    let mut shares = Vec::new();
    for found in look.shares.iter().flat_map(|(_, shares)| shares) {
        let queued = queue.by_share.iter().find(|(share, _)| *share == found.share);
        let queued = queued.map_or(0, |(_, count)| *count);
        let dict = share(py, ticks, found, now_ns)?;
        dict.set_item("volume", volume(found.share))?;
        dict.set_item("queued", queued)?;
        shares.push(dict);
    }
    // Of a processor that does not answer, at least who waits for it is known.
    for (number, count) in queue.by_share.iter().filter(|_| look.shares.is_none()) {
        let dict = share(py, ticks, &ShareLook { share: *number, ..ShareLook::default() }, now_ns)?;
        dict.set_item("volume", volume(*number))?;
        dict.set_item("queued", *count)?;
        shares.push(dict);
    }
    dict.set_item("shares", PyList::new(py, shares)?)?;
    Ok(dict)
}

fn share<'py>(
    py: Python<'py>,
    ticks: &Ticks,
    found: &ShareLook,
    now_ns: u64,
) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    let groups = [
        ("turn", found.turn),
        ("overlap", found.overlap),
        ("held", found.held),
        ("starved", found.starved),
        ("reserved", found.reserved),
        ("given_up", found.given_up),
        ("settling", found.settling),
    ];
    for (name, one) in groups {
        dict.set_item(name, group(py, ticks, one)?)?;
    }
    let backlog = PyDict::new(py);
    for (kind, one) in &found.backlog {
        backlog.set_item(kind, group(py, ticks, *one)?)?;
    }
    dict.set_item("backlog", backlog)?;
    let in_flight = PyList::empty(py);
    for handed in &found.handed {
        let one = group(py, ticks, handed.group)?;
        one.set_item("kind", handed.kind)?;
        one.set_item("place", handed.place.name())?;
        in_flight.append(one)?;
    }
    dict.set_item("in_flight", in_flight)?;
    let cut_ms = found.cut_since_ns.map(|since| now_ns.saturating_sub(since) / 1_000_000);
    dict.set_item("cut_ms", cut_ms)?;
    dict.set_item("checkpointing", found.checkpointing)?;
    dict.set_item("leaving", found.leaving)?;
    dict.set_item("rolling_back", found.rolling_back)?;
    Ok(dict)
}

fn pool<'py>(
    py: Python<'py>,
    name: &str,
    look: &PoolLook,
    volume_of: &HashMap<u32, u64>,
) -> PyResult<Bound<'py, PyDict>> {
    let lanes = PyList::empty(py);
    for (lane, queued, running) in &look.lanes {
        let (kind, device, share) = match lane {
            Lane::Device(device) => ("device", Some(*device), None),
            Lane::Probe(device) => ("probe", Some(*device), None),
            Lane::Share(share) => ("share", None, Some(share)),
            Lane::Files(share) => ("files", None, Some(share)),
        };
        let dict = PyDict::new(py);
        dict.set_item("kind", kind)?;
        dict.set_item("device", device)?;
        dict.set_item("volume", share.and_then(|share| volume_of.get(share).copied()))?;
        dict.set_item("queued", queued)?;
        dict.set_item("running", running)?;
        lanes.append(dict)?;
    }
    let dict = PyDict::new(py);
    dict.set_item("name", name)?;
    dict.set_item("threads", look.threads)?;
    dict.set_item("idle", look.idle)?;
    dict.set_item("lanes", lanes)?;
    Ok(dict)
}

/// What connections may hold, and what of it is free.
fn memory<'py>(py: Python<'py>, server: &Server) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("pool_bytes", budget::POOL_BYTES)?;
    dict.set_item("pool_free_bytes", server.memory_free())?;
    dict.set_item("waited_for_bytes", server.memory_waited_for())?;
    Ok(dict)
}

fn limits_of<'py>(py: Python<'py>, ticks: &Ticks) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("io_timeout_s", ticks.timeout().map_or(0.0, |timeout| timeout.as_secs_f64()))?;
    dict.set_item("request_bytes", limits::REQUEST_BYTES_MAX)?;
    dict.set_item("processors", limits::PROCESSORS_MAX)?;
    dict.set_item("connections", budget::CONNECTIONS_MAX)?;
    dict.set_item("connection_requests", budget::CONNECTION_REQUESTS_MAX)?;
    dict.set_item("connection_bytes", budget::CONNECTION_BYTES_MAX)?;
    dict.set_item("server_bytes", budget::SERVER_BYTES_MAX)?;
    Ok(dict)
}
