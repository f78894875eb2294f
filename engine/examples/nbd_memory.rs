//! nbd_memory SOCKET BYTES [threads]: serves memory over a unix socket, to test and measure the NBD server alone. With
//! `threads`, requests are finished by that many other threads instead of the reader's.

use std::collections::BTreeMap;
use std::os::unix::net::UnixListener;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, RwLock};

use polyvol_engine::nbd::Server;
use polyvol_engine::request::{Request, Sink, StatusExtent, Target, Verb};
use polyvol_engine::volume::export::ExportTable;

/// Memory as a target.
struct Memory {
    size: u64,
    bytes: RwLock<Vec<u8>>,
    queues: Vec<Mutex<Sender<Vec<Arc<Request>>>>>,
}

impl Memory {
    fn serve(&self, request: &Request) {
        let (start, length) = (request.offset as usize, request.length as usize);
        match request.verb {
            Verb::Read => {
                let bytes = self.bytes.read().expect("no holder panics");
                // SAFETY: B3: this request has one part, which this thread holds.
                let to = unsafe { request.data.part_mut(0, length) };
                to.copy_from_slice(&bytes[start..start + length]);
            }
            Verb::Write => {
                let mut bytes = self.bytes.write().expect("no holder panics");
                bytes[start..start + length].copy_from_slice(request.data.as_slice());
            }
            Verb::Zero { .. } | Verb::Trim => {
                let mut bytes = self.bytes.write().expect("no holder panics");
                bytes[start..start + length].fill(0);
            }
            Verb::BlockStatus => {
                let (offset, length) = (request.offset, request.length);
                request.add_status(&[StatusExtent { offset, length, hole: false, zero: false }]);
            }
            Verb::Flush | Verb::Cache => {}
        }
    }

    fn serve_all(&self, batch: &mut Vec<Arc<Request>>) {
        let mut kicked: BTreeMap<*const (), Arc<dyn Sink>> = BTreeMap::new();
        for request in batch.drain(..) {
            self.serve(&request);
            let sink = Arc::clone(request.sink());
            kicked.insert(Arc::as_ptr(&sink).cast(), sink);
            request.complete();
        }
        for sink in kicked.values() {
            sink.kick();
        }
    }
}

impl Target for Memory {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_only(&self) -> bool {
        false
    }

    fn submit(&self, batch: &mut Vec<Arc<Request>>) {
        if self.queues.is_empty() {
            return self.serve_all(batch);
        }
        let mut shares: Vec<Vec<Arc<Request>>> = self.queues.iter().map(|_| Vec::new()).collect();
        for request in batch.drain(..) {
            let index = (request.offset >> 20) as usize % shares.len();
            shares[index].push(request);
        }
        for (queue, share) in self.queues.iter().zip(shares) {
            if !share.is_empty() {
                queue
                    .lock()
                    .expect("no holder panics")
                    .send(share)
                    .expect("the thread still serves");
            }
        }
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let path = arguments.get(1).expect("usage: nbd_memory SOCKET BYTES [threads]");
    let size: u64 = arguments[2].parse().expect("BYTES is a number");
    let threads: usize = arguments.get(3).map_or(0, |text| text.parse().expect("a number"));
    let (queues, ends): (Vec<_>, Vec<_>) = (0..threads).map(|_| channel()).unzip();
    let memory = Arc::new(Memory {
        size,
        bytes: RwLock::new(vec![0; size as usize]),
        queues: queues.into_iter().map(Mutex::new).collect(),
    });
    for end in ends {
        let memory = Arc::clone(&memory);
        std::thread::spawn(move || {
            while let Ok(mut share) = end.recv() {
                memory.serve_all(&mut share);
            }
        });
    }
    let exports = Arc::new(ExportTable::default());
    exports.add("memory", "some memory", memory).expect("the table is empty");
    let server = Server::new(exports, Arc::new(())).expect("the server starts");
    let _ = std::fs::remove_file(path);
    let socket = UnixListener::bind(path).expect("the socket's path is free");
    server.listen(socket.into()).expect("it listens");
    println!("ready: nbd+unix:///memory?socket={path}");
    loop {
        std::thread::park();
    }
}
