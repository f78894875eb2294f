//! Control calls that overlap other work of the engine.

use std::sync::{Arc, Barrier};
use std::time::Duration;

use super::Engine;
use super::spec::{ExtentSpec, Manifests, VolumeSpec};
use crate::error::Errno;
use crate::io::device::Mode;
use crate::processor::messages::Control;
use crate::processor::queue::ask;
use crate::system::linux::Linux;
use crate::system::pool::{LANE_THREADS, Lane};
use crate::volume::local_client::LocalClient;

const MIB: u64 = 1 << 20;

fn with_engine(name: &str, f: impl FnOnce(Arc<Engine>)) {
    let directory =
        std::env::temp_dir().join(format!("polyvol-engine-{}-{name}", std::process::id()));
    std::fs::create_dir(&directory).unwrap();
    let engine = Arc::new(Engine::new(1).unwrap());
    let path = directory.join("base");
    std::fs::File::create(&path).unwrap().set_len(4 * MIB).unwrap();
    engine.open_device(1, &path, Mode::SPARSE).unwrap();
    let extent = ExtentSpec { device: 1, offset: 0, length: 4 * MIB };
    let spec = VolumeSpec {
        id: 1,
        uuid: [1; 16],
        name: "v".to_owned(),
        size: 4 * MIB,
        partition_size: 4 * MIB,
        partitions: vec![(0, vec![extent])],
        logs: Vec::new(),
        log_rules: Default::default(),
        directory: directory.join("volume"),
        manifests: Manifests::new(directory.join("manifests")),
        snapshots: Vec::new(),
        next_epoch: 1,
        bounds: Vec::new(),
        rollbacks: Vec::new(),
        origin: None,
    };
    engine.add_volume(spec).unwrap();
    f(Arc::clone(&engine));
    engine.stop().unwrap();
    std::fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn a_volume_is_closed_only_when_readers_of_its_snapshots_are_done() {
    with_engine("readers", |engine| {
        let epoch = engine.cut(&[(1, Default::default())]).unwrap().epochs[0].1;
        engine.export("v@s", "", 1, Some(epoch)).unwrap();
        let client = LocalClient::new(engine.exports.attach("v@s").unwrap());
        // Every thread that the device may have is busy until the test releases it.
        let all = || Arc::new(Barrier::new(LANE_THREADS + 1));
        let (busy, go) = (all(), all());
        for _ in 0..LANE_THREADS {
            let (busy, go) = (Arc::clone(&busy), Arc::clone(&go));
            engine.pool.run(Lane::Device(1), move || {
                busy.wait();
                go.wait();
            });
        }
        busy.wait();
        let reader = std::thread::spawn(move || client.read(0, MIB).map(|_| ()));
        std::thread::sleep(Duration::from_millis(100));
        let ours = Arc::clone(&engine);
        engine.exports.clear(); // as a stop does
        let stopper = std::thread::spawn(move || ours.remove_volume(1));
        std::thread::sleep(Duration::from_millis(100));
        assert!(!stopper.is_finished());
        go.wait();
        reader.join().unwrap().unwrap();
        stopper.join().unwrap().unwrap();
    });
}

#[test]
fn a_query_of_a_closed_volume_is_refused_and_harms_no_other() {
    with_engine("gone", |engine| {
        let volume = engine.volume(1).unwrap();
        engine.remove_volume(1).unwrap();
        let queue = &volume.shares[0].queue;
        assert!(
            ask(&Linux, queue, |answer| Control::Versions(volume.share, 0..1, answer)).is_err()
        );
        assert!(ask(&Linux, queue, |answer| Control::Settle(volume.share, 1, answer)).is_err());
        assert!(
            ask(&Linux, queue, |answer| Control::Drop(volume.share, vec![1], None, answer))
                .is_err()
        );
    });
}

#[test]
fn a_client_still_attached_when_the_engine_has_stopped_is_refused() {
    with_engine("stopped", |engine| {
        engine.export("v", "", 1, None).unwrap();
        let client = LocalClient::new(engine.exports.attach("v").unwrap());
        let volume = engine.volume(1).unwrap();
        engine.stop().unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let write = client.write(0, &[1; 4096], true);
            let asked =
                ask(&Linux, &volume.shares[0].queue, |answer| Control::Versions(0, 0..1, answer));
            let _ =
                sender.send((write, client.read(0, 4096).err(), client.flush(), asked.is_err()));
        });
        let down = Errno::ESHUTDOWN;
        let found = receiver.recv_timeout(Duration::from_secs(10)).unwrap();
        assert_eq!(found, (Err(down), Some(down), Err(down), true));
    });
}
