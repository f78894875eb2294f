//! Only the sink refers to a finished request, so that its buffer can be reused for the next one.
//!
//! Strategy          Requests on each path through the engine: on the submitting thread, on their processor, on the
//!                   pool; in place and redirected. The sink counts other references to a request. When a processor
//!                   held large writes until they were settled, each cost 256 new pages.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use polyvol_engine::buffer::Buffer;
use polyvol_engine::engine::Engine;
use polyvol_engine::engine::spec::{ExtentSpec, Manifests, VolumeSpec};
use polyvol_engine::io::device::Mode;
use polyvol_engine::request::{Request, Sink, Verb};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 16 * MIB;
const LENGTHS: [u64; 6] = [512, 4096, 20_480, 128 << 10, MIB, 8 * MIB];

struct Counter {
    others: AtomicUsize,
    done: mpsc::SyncSender<bool>,
}

impl Sink for Counter {
    fn complete(&self, request: Arc<Request>) {
        self.others.store(Arc::strong_count(&request) - 1, Ordering::Release);
        let _ = self.done.try_send(request.result().is_ok());
    }

    fn kick(&self) {}
}

struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn engine(scratch: &Scratch) -> Engine {
    std::fs::create_dir(&scratch.0).unwrap();
    let engine = Engine::new(2).unwrap();
    for (id, name, size) in [(1, "base", SIZE), (2, "log", 4 * SIZE)] {
        let path = scratch.0.join(name);
        std::fs::File::create(&path).unwrap().set_len(size).unwrap();
        engine.open_device(id, &path, Mode::SPARSE).unwrap();
    }
    let extent = |device, offset, length| ExtentSpec { device, offset, length };
    let spec = VolumeSpec {
        id: 1,
        uuid: [1; 16],
        name: "v".to_owned(),
        size: SIZE,
        partition_size: SIZE,
        partitions: vec![(0, vec![extent(1, 0, SIZE)])],
        logs: vec![(1, vec![extent(2, 0, 4 * SIZE)])],
        log_rules: Default::default(),
        directory: scratch.0.join("volume"),
        manifests: Manifests::new(scratch.0.join("volume")),
        snapshots: Vec::new(),
        bounds: Vec::new(),
        rollbacks: Vec::new(),
        origin: None,
        next_epoch: 1,
    };
    engine.add_volume(spec).unwrap();
    engine.export("v", "", 1, None).unwrap();
    engine
}

/// The number of other references to a request of `length` bytes when its sink gets it.
fn others(engine: &Engine, verb: Verb, length: u64) -> usize {
    let (done, finished) = mpsc::sync_channel(1);
    let counter = Arc::new(Counter { others: AtomicUsize::new(usize::MAX), done });
    let sink: Arc<dyn Sink> = Arc::clone(&counter) as Arc<dyn Sink>;
    let data = match verb {
        Verb::Read | Verb::Write => Buffer::zeroed(length as usize),
        _ => Buffer::zeroed(0),
    };
    let request = Request::new(verb, 0, length, data, sink);
    let attachment = engine.exports.attach("v").unwrap();
    attachment.target.submit(&mut vec![Arc::new(request)]);
    assert!(finished.recv_timeout(Duration::from_secs(20)).unwrap(), "{verb:?} of {length} bytes");
    counter.others.load(Ordering::Acquire)
}

#[test]
fn a_finished_request_has_no_other_reference() {
    let name = format!("polyvol-done-{}", std::process::id());
    let scratch = Scratch(std::env::temp_dir().join(name));
    let engine = engine(&scratch);
    for cut in [false, true] {
        for length in LENGTHS {
            if cut {
                let epoch = engine.cut(&[(1, Default::default())]).unwrap().epochs[0].1;
                engine.settle(1, epoch).unwrap();
            }
            let verbs = [Verb::Write, Verb::Write, Verb::Read, Verb::Trim];
            for verb in verbs {
                assert_eq!(
                    others(&engine, verb, length),
                    0,
                    "{verb:?} of {length} bytes, after a cut: {cut}"
                );
            }
        }
    }
}
