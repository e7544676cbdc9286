//! Damaged and hostile bags.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use groot_policy::recording::bag::{Bag, BagError, Fault, Limits};
use mcap::{WriteOptions, records::MessageHeader};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{
    anything,
    support::{Listed, bags, copy, expected, listed, order},
};

const CHUNKED: [&str; 3] = ["mcap_none.mcap", "mcap_lz4.mcap", "mcap_zstd.mcap"];

fn open_bytes(folder: &Path, bytes: &[u8]) -> Result<Bag, BagError> {
    let path = folder.join("file.mcap");
    std::fs::write(&path, bytes).unwrap();
    Bag::open(path)
}

/// What is given of damaged bytes, sorted, and how often something was wrong.
fn given(folder: &Path, bytes: &[u8]) -> (Vec<Listed>, u64) {
    let bag = open_bytes(folder, bytes).unwrap();
    let mut messages = bag.messages();
    let mut found: Vec<Listed> = messages.by_ref().map(|message| listed(&message.unwrap())).collect();
    found.sort_by(order);
    (found, messages.report().total())
}

/// The chunks of a whole file as its writer's index tells them: end in the file, and messages before that end.
fn chunks(bytes: &[u8]) -> Vec<(u64, usize)> {
    let summary = mcap::Summary::read(bytes).unwrap().unwrap();
    let mut chunks: Vec<_> = summary.chunk_indexes.iter().collect();
    chunks.sort_by_key(|chunk| chunk.chunk_start_offset);
    let mut messages = 0;
    chunks
        .iter()
        .map(|chunk| {
            messages +=
                summary.read_message_indexes(bytes, chunk).unwrap().values().map(Vec::len).sum::<usize>();
            (chunk.chunk_start_offset + chunk.chunk_length, messages)
        })
        .collect()
}

#[test]
fn a_file_that_was_cut_off_anywhere_loses_only_the_chunk_that_was_cut() {
    let folder = tempfile::tempdir().unwrap();
    let whole: BTreeSet<Listed> = expected().into_iter().collect();
    for name in CHUNKED {
        let bytes = std::fs::read(bags().join(name)).unwrap();
        let chunks = chunks(&bytes);
        assert!(chunks.len() > 5 && chunks.last().unwrap().1 == whole.len());
        // Anywhere, and exactly around the ends of chunks.
        let ends =
            chunks.iter().flat_map(|(end, _)| [end - 1, *end, end + 1, end + 9]).map(|end| end as usize);
        let mut cuts: Vec<usize> = (8..bytes.len()).step_by(997).chain(ends).collect();
        cuts.sort_unstable();
        for cut in cuts {
            let (found, faults) = given(folder.path(), &bytes[..cut]);
            let kept = chunks
                .iter()
                .rev()
                .find(|(end, _)| *end as usize <= cut)
                .map_or(0, |(_, messages)| *messages);
            assert_eq!(found.len(), kept, "{name} cut at {cut} of {}", bytes.len());
            assert!(found.iter().all(|message| whole.contains(message)), "{name} cut at {cut}");
            let complete = chunks.iter().any(|(end, _)| *end as usize == cut);
            assert!(faults <= 1 && (!complete || faults == 0), "{name} cut at {cut}: {faults}");
        }
    }
}

#[test]
fn a_file_without_chunks_that_was_cut_off_loses_only_the_last_message() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = std::fs::read(bags().join("mcap_unchunked.mcap")).unwrap();
    let mut before = 0;
    for cut in (8..bytes.len()).step_by(1999) {
        let (found, _) = given(folder.path(), &bytes[..cut]);
        assert!(found.len() >= before && found.len() <= expected().len(), "cut at {cut}");
        // The largest message has some 2 KB.
        assert!(
            before == 0 || found.len() > before || cut > bytes.len() - 20_000,
            "cut at {cut}: {}",
            found.len()
        );
        before = found.len();
    }
    assert_eq!(before, expected().len());
}

#[test]
fn a_flipped_byte_costs_one_chunk_and_nothing_wrong_is_given() {
    let folder = tempfile::tempdir().unwrap();
    let whole: BTreeSet<Listed> = expected().into_iter().collect();
    let mut random = ChaCha8Rng::seed_from_u64(1);
    for name in CHUNKED {
        let bytes = std::fs::read(bags().join(name)).unwrap();
        let ends = chunks(&bytes);
        let data_end = ends.last().unwrap().0 as usize;
        let most = ends.windows(2).map(|pair| pair[1].1 - pair[0].1).max().unwrap().max(ends[0].1);
        for _ in 0..150 {
            let mut damaged = bytes.clone();
            // Not the magic bytes; in the data, which the checksums of chunks cover, or between chunks.
            let place = random.random_range(8..data_end);
            damaged[place] ^= 1 << random.random_range(0..8);
            let (found, faults) = given(folder.path(), &damaged);
            let what = format!("{name}, byte {place} of {}: {} of {}", bytes.len(), found.len(), whole.len());
            assert!(found.iter().all(|message| whole.contains(message)), "{what}");
            assert!(found.len() + most >= whole.len(), "{what}");
            assert!(found.len() == whole.len() || faults > 0, "{what}");
        }
    }
}

#[test]
fn a_wrong_checksum_is_named_and_the_other_chunks_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let mut bytes = std::fs::read(bags().join("mcap_none.mcap")).unwrap();
    let ends = chunks(&bytes);
    // The last bytes of the third chunk are those of a message.
    bytes[ends[2].0 as usize - 1] ^= 1;
    let bag = open_bytes(folder.path(), &bytes).unwrap();
    assert!(bag.report().is_clean());
    let mut messages = bag.messages();
    let lost = ends[2].1 - ends[1].1;
    assert_eq!(messages.by_ref().count(), expected().len() - lost);
    assert_eq!((messages.report().total(), messages.report().count(Fault::Checksum)), (1, 1));
    let text = messages.report().to_string();
    assert!(text.contains("file.mcap: wrong checksum 1x, first: the chunk at byte"), "{text}");
    assert!(text.contains("expected the checksum 0x"), "{text}");
}

#[test]
fn a_damaged_summary_is_not_believed() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = std::fs::read(bags().join("mcap_zstd.mcap")).unwrap();
    let summary = chunks(&bytes).last().unwrap().0 as usize;
    let mut random = ChaCha8Rng::seed_from_u64(2);
    for _ in 0..100 {
        let mut damaged = bytes.clone();
        let place = random.random_range(summary + 400..bytes.len() - 8);
        damaged[place] ^= 1 << random.random_range(0..8);
        let (found, faults) = given(folder.path(), &damaged);
        assert!(found == expected(), "byte {place}");
        assert!(faults <= 2, "byte {place}: {faults}");
    }
}

/// Where the first chunk's record begins.
fn first_chunk(bytes: &[u8]) -> usize {
    let summary = mcap::Summary::read(bytes).unwrap().unwrap();
    summary.chunk_indexes.iter().map(|chunk| chunk.chunk_start_offset).min().unwrap() as usize
}

#[test]
fn sizes_that_cannot_be_are_named_with_their_limit() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = std::fs::read(bags().join("mcap_zstd.mcap")).unwrap();
    let chunk = first_chunk(&bytes);
    let first = chunks(&bytes)[0].1;
    let forty = 40_000_000_000_u64.to_le_bytes();
    // The record's length, the unpacked size, the packed size; each with the part of the message that it must give.
    for (offset, expected_text) in [
        (1, "of 40000000000 bytes"),
        (9 + 16, "40000000000 unpacked, at most 268435456 are read"),
        (9 + 28 + 4 + 4, "has a broken header"),
    ] {
        let mut hostile = bytes.clone();
        hostile[chunk + offset..chunk + offset + 8].copy_from_slice(&forty);
        let bag = open_bytes(folder.path(), &hostile).unwrap();
        let text = bag.report().to_string();
        assert!(text.contains(expected_text), "{text}");
        assert_eq!(bag.messages().count(), expected().len() - first, "{text}");
    }
    // A size that the limit allows but that is a lie.
    let mut hostile = bytes.clone();
    hostile[chunk + 9 + 16..chunk + 9 + 24].copy_from_slice(&200_000_000_u64.to_le_bytes());
    let bag = open_bytes(folder.path(), &hostile).unwrap();
    let mut messages = bag.messages();
    assert_eq!(messages.by_ref().count(), expected().len() - first);
    let text = messages.report().to_string();
    assert!(text.contains("expected 200000000 bytes unpacked, found"), "{text}");
}

/// A file of one channel with these payloads, log times 1, 2, ...
fn written(kind: &str, encoding: &str, payloads: &[&[u8]]) -> Vec<u8> {
    let options = WriteOptions::new().compression(None).use_chunks(true);
    let mut writer = options.create(std::io::Cursor::new(Vec::new())).unwrap();
    let schema = writer.add_schema(kind, "ros2msg", b"").unwrap();
    let channel = writer.add_channel(schema, "/t", encoding, &BTreeMap::new()).unwrap();
    for (index, payload) in payloads.iter().enumerate() {
        let time = index as u64 + 1;
        let header = MessageHeader { channel_id: channel, sequence: 0, log_time: time, publish_time: time };
        writer.write_to_known_channel(&header, payload).unwrap();
    }
    writer.finish().unwrap();
    writer.into_inner().into_inner()
}

#[test]
fn a_message_that_unpacks_to_more_than_the_limit_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let bomb = zstd::encode_all(&vec![0; 10 << 20][..], 3).unwrap();
    let broken = &bomb[..bomb.len() - 5];
    let file = written("std_msgs/msg/String", "cdr", &[&bomb, b"\0\x01\0\0\x03\0\0\0hi\0", broken]);
    let path = folder.path().join("bomb.mcap");
    std::fs::write(&path, file).unwrap();
    let bag = Bag::open_with(&path, Limits { message: 1 << 20, ..Limits::default() }).unwrap();
    let mut messages = bag.messages();
    assert_eq!(messages.by_ref().count(), 1);
    let report = messages.report();
    assert_eq!((report.count(Fault::TooLarge), report.count(Fault::Compression), report.total()), (2, 0, 2));
    let bag = Bag::open(&path).unwrap();
    let mut messages = bag.messages();
    assert_eq!(messages.by_ref().count(), 2);
    assert_eq!(messages.report().count(Fault::Compression), 1);

    let packed = folder.path().join("bomb.mcap.zstd");
    std::fs::write(&packed, &bomb).unwrap();
    let limits = Limits { unpacked_file: 1 << 20, ..Limits::default() };
    let error = Bag::open_with(&packed, limits).err().unwrap().to_string();
    assert!(error.contains("unpacks to more than 1048576 bytes; raise `Limits::unpacked_file`"), "{error}");
}

#[test]
fn overlapping_chunks_beyond_the_limit_are_given_late_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let mut bytes = std::fs::read(bags().join("mcap_none.mcap")).unwrap();
    // Every chunk claims to begin at the beginning.
    let summary = mcap::Summary::read(&bytes).unwrap().unwrap();
    for chunk in &summary.chunk_indexes {
        let start = chunk.chunk_start_offset as usize + 9;
        bytes[start..start + 8].copy_from_slice(&1_u64.to_le_bytes());
    }
    let path = folder.path().join("x.mcap");
    std::fs::write(&path, &bytes).unwrap();
    for (reorder, faults) in [(1 << 30, false), (50_000, true)] {
        let bag = Bag::open_with(&path, Limits { reorder, ..Limits::default() }).unwrap();
        let mut messages = bag.messages();
        let mut found: Vec<Listed> = messages.by_ref().map(|message| listed(&message.unwrap())).collect();
        assert!(faults || found.is_sorted_by_key(|(_, _, time, _)| *time));
        found.sort_by(order);
        assert!(found == expected());
        assert_eq!(messages.report().count(Fault::Order) > 0, faults);
    }
}

#[test]
fn a_damaged_database_gives_what_can_still_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let bag = copy("rosbags_sqlite_8", folder.path());
    std::fs::remove_file(bag.join("metadata.yaml")).unwrap();
    let path = bag.join("rosbags_sqlite_8.db3");
    let bytes = std::fs::read(&path).unwrap();
    let whole: BTreeSet<Listed> = expected().into_iter().collect();
    let read = |damaged: &[u8]| {
        std::fs::write(&path, damaged).unwrap();
        let bag = Bag::open(&path).ok()?;
        let mut messages = bag.messages();
        let found: Vec<Listed> = messages.by_ref().map(|message| listed(&message.unwrap())).collect();
        let unique: BTreeSet<&Listed> = found.iter().collect();
        assert_eq!(unique.len(), found.len(), "nothing is given twice");
        Some((found, messages.report().clone()))
    };
    let pages = bytes.len() / 4096;
    // Cut off: what was written first is there.
    let (found, report) = read(&bytes[..pages * 3 / 4 * 4096]).unwrap();
    assert!(found.len() > whole.len() / 3 && found.len() < whole.len(), "{}", found.len());
    assert!(
        found.iter().all(|message| whole.contains(message)) && report.count(Fault::Storage) > 0,
        "{report}"
    );
    // A page of the table or the index overwritten: the rest is there.
    let mut kept = 0;
    for page in 8..pages {
        let mut damaged = bytes.clone();
        damaged[page * 4096..(page + 1) * 4096].fill(0xa5);
        if let Some((found, _)) = read(&damaged) {
            kept += found.iter().filter(|message| whole.contains(message)).count();
        }
    }
    let share = kept as f64 / (whole.len() * (pages - 8)) as f64;
    assert!(share > 0.9, "{share}");
}

#[test]
fn rows_that_are_no_messages_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = copy("rosbags_sqlite_9", folder.path()).join("rosbags_sqlite_9.db3");
    let database = rusqlite::Connection::open(&path).unwrap();
    // Row by row: no blob, an undeclared topic, a time that is none.
    database
        .execute_batch(
            "UPDATE messages SET data = 'text' WHERE id = 5; UPDATE messages SET topic_id = 99 WHERE id = 6;
             UPDATE messages SET timestamp = 'soon' WHERE id = 7;",
        )
        .unwrap();
    drop(database);
    let bag = Bag::open(&path).unwrap();
    let mut messages = bag.messages();
    assert_eq!(messages.by_ref().count(), expected().len() - 3);
    let text = messages.report().to_string();
    assert!(text.contains("row 5: expected a blob, found Text"), "{text}");
    assert!(messages.report().count(Fault::Storage) > 0, "{text}");
}

#[test]
fn a_database_without_its_index_is_read_in_the_order_of_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = copy("rosbags_sqlite_9", folder.path()).join("rosbags_sqlite_9.db3");
    rusqlite::Connection::open(&path).unwrap().execute_batch("DROP INDEX timestamp_idx").unwrap();
    let bag = Bag::open(&path).unwrap();
    let mut found = crate::support::read(&bag);
    assert!(found.is_sorted_by_key(|(_, _, time, _)| *time));
    found.sort_by(order);
    assert!(found == expected());
}

#[test]
fn messages_of_a_channel_that_nobody_declared_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let file = written("std_msgs/msg/String", "cdr", &[b"\0\x01\0\0", b"\0\x01\0\0"]);
    // The channel of both messages, behind opcode, length: 1 becomes 7 where the crate begins to count at 0 or 1.
    let bag = open_bytes(folder.path(), &file).unwrap();
    assert_eq!(bag.messages().count(), 2);
    let mut damaged = file.clone();
    let chunk = first_chunk(&file);
    let crc = chunk + 9 + 24;
    damaged[crc..crc + 4].fill(0);
    let message = (22_u64 + 4).to_le_bytes();
    let pattern: Vec<u8> = [&[5][..], &message].concat();
    let place = damaged.windows(9).position(|window| window == pattern).unwrap();
    damaged[place + 9] = 7;
    let bag = open_bytes(folder.path(), &damaged).unwrap();
    let mut messages = bag.messages();
    assert_eq!(messages.by_ref().count(), 1);
    let text = messages.report().to_string();
    assert!(text.contains("unknown channel 1x, first: channel 7 of message 0 is not declared"), "{text}");
}

#[test]
fn a_packed_file_that_was_cut_off_gives_what_could_be_unpacked() {
    let folder = tempfile::tempdir().unwrap();
    let bag = copy("rosbags_mcap_file_zstd_without_metadata", folder.path());
    let path = bag.join("rosbags_mcap_file_zstd.mcap.zstd");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 3000]).unwrap();
    let bag = Bag::open(&bag).unwrap();
    let text = bag.report().to_string();
    assert!(text.contains("broken compression 1x") && text.contains("unpacked bytes"), "{text}");
    bag.messages().for_each(|message| drop(message.unwrap()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_damage_panics(file in 0..8_usize, flips in prop::collection::vec((any::<u32>(), any::<u8>()), 1..20), cut in any::<u32>()) {
        const FILES: [&str; 8] = [
            "mcap_none.mcap",
            "mcap_lz4.mcap",
            "mcap_zstd.mcap",
            "mcap_unchunked.mcap",
            "rosbags_sqlite_9/rosbags_sqlite_9.db3",
            "humble_split/humble_split_1.db3",
            "rosbags_mcap_message_zstd/rosbags_mcap_message_zstd.mcap",
            "rosbags_sqlite_file_zstd/rosbags_sqlite_file_zstd.db3.zstd",
        ];
        let mut bytes = std::fs::read(bags().join(FILES[file])).unwrap();
        for (place, value) in flips {
            let place = place as usize % bytes.len();
            bytes[place] = value;
        }
        if cut % 3 == 0 {
            bytes.truncate(cut as usize % bytes.len());
        }
        let folder = tempfile::tempdir().unwrap();
        anything::read_file(folder.path(), &bytes);
    }

    #[test]
    fn no_bytes_panic_as_messages(mut bytes in prop::collection::vec(any::<u8>(), 0..200), representation in any::<bool>()) {
        if bytes.len() >= 2 {
            bytes[..2].copy_from_slice(&[0, u8::from(representation)]);
        }
        anything::decode_bytes(&bytes);
    }

    #[test]
    fn no_metadata_panics(flips in prop::collection::vec((any::<u32>(), any::<u8>()), 1..20), jazzy in any::<bool>()) {
        let name = if jazzy { "jazzy_split" } else { "humble_split" };
        let folder = tempfile::tempdir().unwrap();
        let bag = copy(name, folder.path());
        let mut bytes = std::fs::read(bag.join("metadata.yaml")).unwrap();
        for (place, value) in flips {
            let place = place as usize % bytes.len();
            bytes[place] = value;
        }
        anything::read_metadata(&bag, &bytes);
    }
}
