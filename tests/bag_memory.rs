//! What hostile recordings may cost: bytes that are held at once, counted by the allocator. One test, because all tests of a
//! process share the allocator.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    collections::BTreeMap,
    io::{Cursor, Read},
    sync::atomic::{AtomicUsize, Ordering},
};

use groot_policy::{
    recording::bag::{Bag, Limits},
    ros::{
        cdr,
        msg::{ActionChunk, Image, JointState, JointTrajectory},
    },
};
use mcap::{Compression, WriteOptions, records::MessageHeader};

struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged; only sizes are counted beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(held, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of this same function.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the pointer came from `alloc` above, which is the system's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Most bytes that were held at once during `work`, beyond those before it.
fn peak(work: impl FnOnce()) -> usize {
    let before = HELD.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    work();
    PEAK.load(Ordering::Relaxed) - before
}

/// A file of many messages, whose chunks are compressed; where its first chunk begins.
fn file() -> (Vec<u8>, usize) {
    let options = WriteOptions::new().compression(Some(Compression::Zstd)).chunk_size(Some(100_000));
    let mut writer = options.create(Cursor::new(Vec::new())).unwrap();
    let schema = writer.add_schema("std_msgs/msg/String", "ros2msg", b"string data").unwrap();
    let channel = writer.add_channel(schema, "/t", "cdr", &BTreeMap::new()).unwrap();
    for time in 1..2000 {
        let header = MessageHeader { channel_id: channel, sequence: 0, log_time: time, publish_time: time };
        writer.write_to_known_channel(&header, &[7; 1000]).unwrap();
    }
    writer.finish().unwrap();
    let bytes = writer.into_inner().into_inner();
    let summary = mcap::Summary::read(&bytes).unwrap().unwrap();
    let chunk = summary.chunk_indexes[0].chunk_start_offset as usize;
    (bytes, chunk)
}

const MIB: usize = 1 << 20;

#[test]
fn no_claim_of_a_size_fills_the_memory() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.mcap");
    let (whole, chunk) = file();
    let read = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        peak(|| {
            let bag = Bag::open_with(&path, Limits::default()).unwrap();
            bag.messages().for_each(|message| drop(message.unwrap()));
        })
    };
    // One chunk of 100 kB, unpacked, and what zstd needs for it.
    assert!(read(&whole) < 4 * MIB, "{}", read(&whole));
    // Record length, unpacked size, name length, packed size: each claims much.
    for (offset, size) in [(1, 8), (9 + 16, 8), (9 + 28, 4), (9 + 28 + 4 + 4, 8)] {
        for claim in [200 << 20, 40_000_000_000_u64, u64::MAX] {
            let mut hostile = whole.clone();
            hostile[chunk + offset..chunk + offset + size].copy_from_slice(&claim.to_le_bytes()[..size]);
            let peak = read(&hostile);
            assert!(peak < 4 * MIB, "a claim of {claim} at {offset}: {peak} bytes");
        }
    }
    // A message that is compressed by itself and unpacks to 64 MiB.
    let bomb = zstd::encode_all(std::io::repeat(0).take(64 * MIB as u64), 3).unwrap();
    let limits = Limits { message: MIB as u64, ..Limits::default() };
    let options = WriteOptions::new().compression(None);
    let mut writer = options.create(Cursor::new(Vec::new())).unwrap();
    let schema = writer.add_schema("std_msgs/msg/String", "ros2msg", b"string data").unwrap();
    let channel = writer.add_channel(schema, "/t", "cdr", &BTreeMap::new()).unwrap();
    let header = MessageHeader { channel_id: channel, sequence: 0, log_time: 1, publish_time: 1 };
    writer.write_to_known_channel(&header, &bomb).unwrap();
    writer.finish().unwrap();
    std::fs::write(&path, writer.into_inner().into_inner()).unwrap();
    let bomb = peak(|| {
        let bag = Bag::open_with(&path, limits).unwrap();
        assert_eq!(bag.messages().count(), 0);
    });
    assert!(bomb < 8 * MIB, "{bomb}");

    // Messages that claim sequences of any length at every place.
    let state = JointState { name: vec!["a".into(); 3], position: vec![1.0; 3], ..JointState::default() };
    let bytes = cdr::encode(&state).unwrap();
    for place in 4..bytes.len() - 3 {
        for claim in [u32::MAX, i32::MAX as u32, 100_000_000] {
            let mut hostile = bytes.clone();
            hostile[place..place + 4].copy_from_slice(&claim.to_le_bytes());
            let peak = peak(|| {
                let _ = cdr::decode::<JointState>(&hostile);
                let _ = cdr::decode::<Image>(&hostile);
                let _ = cdr::decode::<ActionChunk>(&hostile);
                let _ = cdr::decode::<JointTrajectory>(&hostile);
            });
            // serde takes a length's word for at most one mebibyte.
            assert!(peak < 4 * MIB, "a length of {claim} at {place}: {peak} bytes");
        }
    }
}
