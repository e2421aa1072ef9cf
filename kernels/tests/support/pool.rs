//! What is in the memory that the client hands out.

use std::panic::resume_unwind;
use std::thread;

use cubecl::MemoryScope;
use cubecl::client::Client;

use super::client;

/// Bytes that are NaN in every float type, and -1 in every integer type.
const NAN: u8 = 0xff;

/// Sizes of the buffers that are poisoned, and how many of each: pools keep sizes apart.
const POISONED: [(usize, usize); 6] = [
    (48 << 20, 1),
    (20 << 20, 2),
    (2 << 20, 16),
    (80 << 10, 128),
    (60 << 10, 128),
    (16 << 10, 1024),
];

/// Runs `check` on a thread of its own, whose buffers come out of memory that was filled with NaN and freed; not at all where
/// the device's pools hand out other memory.
///
/// # Panics
/// If they do on CUDA, whose pools are known to give back what was freed, and if `check` asked for more memory than that.
pub fn from_poisoned(check: impl FnOnce() + Send) {
    let run = || {
        let client = client();
        if let Some(poisoned) = poison(&client) {
            check();
            assert_eq!(poisoned, reserved(&client), "memory that was not poisoned");
        }
    };
    // A thread has a stream, and a stream its pools, which hold nothing yet that was written.
    if let Err(panic) = thread::scope(|scope| scope.spawn(run).join()) {
        resume_unwind(panic);
    }
}

/// What is reserved where buffers are NaN now.
fn poison(client: &Client) -> Option<u64> {
    let nan = vec![NAN; POISONED[0].0];
    let poisoned: Vec<_> = POISONED
        .into_iter()
        .flat_map(|(size, count)| (0..count).map(move |_| size))
        .map(|size| client.create_from_slice(&nan[..size]))
        .collect();
    cubecl::future::block_on(client.sync()).expect("the device answers");
    drop(poisoned);

    let reserved = reserved(client);
    let handles: Vec<_> = [64, 4 << 10, 60 << 10, 80 << 10, 2 << 20, 20 << 20]
        .map(|size| client.empty(size))
        .into();
    let buffers = client.read(handles).expect("the device answers");
    let all = buffers
        .iter()
        .all(|bytes| bytes.iter().all(|&byte| byte == NAN));
    if !all || reserved != self::reserved(client) {
        assert_ne!(client.name(), "cuda", "buffers come out of what was freed");
        println!("not tested: new buffers do not come out of what was freed");
        return None;
    }
    Some(reserved)
}

/// Bytes that this thread's buffers and those it could have at once take.
fn reserved(client: &Client) -> u64 {
    let report = client.memory_report(MemoryScope::CurrentStream);
    let streams = report.streams.iter();
    streams.map(|it| it.pools.usage().bytes_reserved).sum()
}
