//! What is in the memory that the client hands out.

use cubecl::MemoryScope;
use cubecl::client::Client;

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

/// Fills memory with NaN and frees it, so that every buffer of this thread comes out of it until it is
/// used up. Returns what is reserved, or nothing where the device's pools hand out other memory.
///
/// # Panics
/// If so on CUDA, whose pools are known to give back what was freed.
pub fn poison(client: &Client) -> Option<u64> {
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
pub fn reserved(client: &Client) -> u64 {
    let report = client.memory_report(MemoryScope::CurrentStream);
    let streams = report.streams.iter();
    streams.map(|it| it.pools.usage().bytes_reserved).sum()
}
