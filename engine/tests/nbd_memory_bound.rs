//! Memory under attack: many peers request as much as they can and read none of it. Alone in its process, because it
//! measures the process's memory.

mod nbd_support;

use std::io::Write;
use std::time::{Duration, Instant};

use nbd_support::{Client, MIB, Memory, READ, Served, WRITE, Way, request_bytes, serve};

/// Number of attackers.
const PEERS: usize = 400;
/// How long a good peer's request may take on an idle machine.
const PROMPTLY: Duration = Duration::from_millis(100);
/// The largest request.
const LARGE: u32 = 32 << 20;

fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 10
}

/// Reads of `bytes` bytes, one by one, for `time`: the 90th percentile, the slowest, and the number of reads.
fn good_reads(good: &mut Client, bytes: u32, time: Duration) -> (Duration, Duration, usize) {
    let mut times = Vec::new();
    let until = Instant::now() + time;
    while Instant::now() < until {
        let start = Instant::now();
        good.request(0, READ, 1, 0, bytes);
        assert_eq!(good.reply().data.len(), bytes as usize);
        times.push(start.elapsed());
    }
    times.sort();
    (times[times.len() * 9 / 10], times[times.len() - 1], times.len())
}

/// How long the largest read takes.
fn large_read(good: &mut Client) -> Duration {
    let start = Instant::now();
    good.request(0, READ, 2, MIB, LARGE);
    assert_eq!(good.reply().data.len(), LARGE as usize);
    start.elapsed()
}

/// How long one read and one write of 1 MiB take a new client.
fn newcomer(served: &Served) -> [Duration; 2] {
    let mut client = served.go(true);
    let start = Instant::now();
    client.request(0, READ, 1, 0, 1 << 20);
    assert_eq!(client.reply().data.len(), 1 << 20);
    let read = start.elapsed();
    client.write(0, 2, 0, &vec![1; 1 << 20]);
    assert_eq!(client.reply().error, 0);
    [read, start.elapsed() - read]
}

#[test]
fn memory_stays_bounded_and_a_good_peer_is_served() {
    let served = serve(Memory::new(1 << 40, 0, Way::Later));
    let mut good = served.go(true);
    // Several large requests of attackers come first, whose buffers this machine has to fill.
    let promptly = PROMPTLY.max(2 * large_read(&mut good));
    // Until the peers that hold all memory were closed.
    let in_turn = (20 * PROMPTLY).max(4 * promptly);
    let before = resident_mib();
    let mut attackers: Vec<Client> = (0..PEERS).map(|_| served.go(true)).collect();
    // Some become proven peers, to abuse that.
    let earned = vec![7; 5 << 20];
    for attacker in attackers.iter_mut().step_by(4).take(PEERS / 40) {
        attacker.write(0, 999, 0, &earned);
        assert_eq!(attacker.reply().error, 0);
    }
    for (index, attacker) in attackers.iter_mut().enumerate() {
        attacker.stream.set_nonblocking(true).unwrap();
        let mut bytes = Vec::new();
        for cookie in 0..100 {
            match index % 4 {
                0 => bytes.extend(request_bytes(0, READ, cookie, 0, LARGE)),
                1 => bytes.extend(request_bytes(0, READ, cookie, 0, 65536)),
                2 => bytes.extend(request_bytes(0, READ, cookie, 0, 4096)),
                _ => {}
            }
        }
        if index % 4 == 3 {
            bytes.extend(request_bytes(0, WRITE, 1, 0, LARGE));
            bytes.resize(150_000, 7);
        }
        let _ = (&attacker.stream).write(&bytes);
    }
    let new = newcomer(&served);
    let (small, slowest, count) = good_reads(&mut good, 4096, Duration::from_secs(2));
    println!("4 KiB {small:?}, at most {slowest:?}, {count} of them");
    let held = resident_mib() - before;
    assert!(held < 512, "{held} MiB are held");
    assert!(small < promptly, "{small:?} of {count}");
    let (large, slowest, count) = good_reads(&mut good, 1 << 20, Duration::from_secs(2));
    println!("1 MiB {large:?}, at most {slowest:?}, {count} of them");
    assert!(large < promptly, "{large:?} of {count}");
    let mut news: Vec<_> = (0..9).map(|_| newcomer(&served)).collect();
    news.sort();
    println!("1 MiB for a newcomer: read and write {new:?}, then {:?} to {:?}", news[0], news[8]);
    assert!(news[4].iter().all(|took| *took < promptly), "{news:?}");
    // The very first one finds all memory reserved by proven attackers, and precedes the large requests of the others.
    assert!(new.iter().all(|took| *took < in_turn), "{new:?}");
    // A large request is served too, because this peer is proven.
    let large = large_read(&mut good);
    assert!(large < in_turn, "{large:?}");
    println!("held {held} MiB; 32 MiB after {large:?}; promptly is {promptly:?}");
    drop(attackers);
    served.server.stop();
}
