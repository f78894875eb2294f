//! Memory under attack: many peers ask for as much as they can and read none of it. Alone in its process,
//! because it looks at the process's memory.

mod nbd_support;

use std::io::Write;
use std::time::{Duration, Instant};

use nbd_support::{Client, MIB, Memory, READ, WRITE, Way, request_bytes, serve};

/// How many attack.
const PEERS: usize = 400;

fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 10
}

/// Reads of 4 KiB, one by one, for a while: the slowest tenth's fastest, and how many there were.
fn good_reads(good: &mut Client, time: Duration) -> (Duration, usize) {
    let mut times = Vec::new();
    let until = Instant::now() + time;
    while Instant::now() < until {
        let start = Instant::now();
        good.request(0, READ, 1, 0, 4096);
        assert_eq!(good.reply().data.len(), 4096);
        times.push(start.elapsed());
    }
    times.sort();
    (times[times.len() * 9 / 10], times.len())
}

#[test]
fn memory_stays_bounded_and_a_good_peer_is_served() {
    let served = serve(Memory::new(1 << 40, 0, Way::Later));
    let mut good = served.go(true);
    let before = resident_mib();
    let mut attackers: Vec<Client> = (0..PEERS).map(|_| served.go(true)).collect();
    // Some earn what proven peers are trusted with, to abuse it.
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
                0 => bytes.extend(request_bytes(0, READ, cookie, 0, 32 << 20)),
                1 => bytes.extend(request_bytes(0, READ, cookie, 0, 65536)),
                2 => bytes.extend(request_bytes(0, READ, cookie, 0, 4096)),
                _ => {}
            }
        }
        if index % 4 == 3 {
            bytes.extend(request_bytes(0, WRITE, 1, 0, 32 << 20));
            bytes.resize(150_000, 7);
        }
        let _ = (&attacker.stream).write(&bytes);
    }
    let (latency, count) = good_reads(&mut good, Duration::from_secs(5));
    let held = resident_mib() - before;
    assert!(held < 512, "{held} MiB are held");
    assert!(latency < Duration::from_millis(100), "{latency:?} of {count}");
    assert!(served.server.connections() <= PEERS, "those who hold the pool and do not move stay");
    // A great request gets its turn as well, because this peer has shown that it reads.
    let start = Instant::now();
    good.request(0, READ, 2, MIB, 32 << 20);
    assert_eq!(good.reply().data.len(), 32 << 20);
    assert!(start.elapsed() < Duration::from_secs(18), "{:?}", start.elapsed());
    println!(
        "held {held} MiB; reads {latency:?}, {count} of them; 32 MiB after {:?}",
        start.elapsed()
    );
    drop(attackers);
    served.server.stop();
}
