//! What is in the memory that the client hands out.

use cubecl::MemoryScope;
use cubecl::client::Client;

/// Bytes that are NaN in every float type, and -1 in every integer type.
const NAN: u8 = 0xff;

/// What is reserved for large buffers, and what for small ones.
const LARGE: usize = 48 << 20;
const SMALL: usize = 16 << 10;
const SMALLS: usize = 1024;

/// Fills memory with NaN and frees it, so that every buffer of this thread comes out of it until it is
/// used up. Returns what is reserved.
///
/// # Panics
/// If it does not come out of it.
pub fn poison(client: &Client) -> u64 {
    let nan = vec![NAN; LARGE];
    let large = client.create_from_slice(&nan);
    let small: Vec<_> = (0..SMALLS)
        .map(|_| client.create_from_slice(&nan[..SMALL]))
        .collect();
    cubecl::future::block_on(client.sync()).expect("the device answers");
    drop((large, small));

    let reserved = reserved(client);
    let handles: Vec<_> = [64, 4 << 10, 60 << 10, 80 << 10, 2 << 20, 20 << 20]
        .map(|size| client.empty(size))
        .into();
    for bytes in client.read(handles).expect("the device answers") {
        let nan = bytes.iter().all(|&byte| byte == NAN);
        assert!(nan, "{} bytes are not of what was freed", bytes.len());
    }
    assert_eq!(reserved, self::reserved(client), "memory of another page");
    reserved
}

/// Bytes that this thread's buffers and those it could have at once take.
pub fn reserved(client: &Client) -> u64 {
    let report = client.memory_report(MemoryScope::CurrentStream);
    let streams = report.streams.iter();
    streams.map(|it| it.pools.usage().bytes_reserved).sum()
}
