//! Reads bytes as every kind of bag and every message, as the fuzz targets and the tests with damaged bags do. Whatever the
//! bytes are, this must end without a panic.

use std::path::Path;

use groot_policy::{
    recording::bag::{Bag, Limits, RawMessage},
    ros::{
        cdr,
        msg::{
            ActionChunk, CompressedImage, Float64MultiArray, Image, JointState, JointTrajectory, String,
            Twist, TwistStamped,
        },
    },
};

/// Small enough that a fuzzer can reach them.
pub const LIMITS: Limits =
    Limits { chunk: 1 << 20, message: 1 << 18, reorder: 1 << 20, unpacked_file: 1 << 22 };

/// Reads the bytes as a file of a bag, in `folder`; how many messages there are.
pub fn read_file(folder: &Path, bytes: &[u8]) -> usize {
    let path = folder.join("file");
    std::fs::write(&path, bytes).expect("the folder can be written");
    read_bag(&path)
}

/// Reads the bytes as the `metadata.yaml` of a bag whose files are in `folder`; how many messages there are.
#[allow(dead_code, reason = "not every user damages metadata")]
pub fn read_metadata(folder: &Path, bytes: &[u8]) -> usize {
    std::fs::write(folder.join("metadata.yaml"), bytes).expect("the folder can be written");
    read_bag(folder)
}

fn read_bag(path: &Path) -> usize {
    let Ok(bag) = Bag::open_with(path, LIMITS) else { return 0 };
    let _ = (bag.start(), bag.end(), bag.duration(), bag.topics().len());
    let mut messages = bag.messages();
    let mut count = 0;
    for message in messages.by_ref().flatten() {
        assert!(message.data.len() as u64 <= LIMITS.message);
        decode(&message);
        count += 1;
    }
    let _ = messages.report().to_string();
    count
}

fn decode(message: &RawMessage) {
    let _ = message.decode::<JointState>();
    let _ = message.decode::<CompressedImage>();
    let _ = message.decode::<Image>();
    let _ = message.decode::<String>();
    let _ = message.decode::<Float64MultiArray>();
    let _ = message.decode::<JointTrajectory>();
}

/// Decodes the bytes as every message.
pub fn decode_bytes(bytes: &[u8]) {
    let _ = cdr::decode::<JointState>(bytes);
    let _ = cdr::decode::<CompressedImage>(bytes);
    let _ = cdr::decode::<Image>(bytes);
    let _ = cdr::decode::<String>(bytes);
    let _ = cdr::decode::<Float64MultiArray>(bytes);
    let _ = cdr::decode::<JointTrajectory>(bytes);
    let _ = cdr::decode::<Twist>(bytes);
    let _ = cdr::decode::<TwistStamped>(bytes);
    let _ = cdr::decode::<ActionChunk>(bytes);
}
