//! What was wrong in a bag: counted and named, never fatal.

use std::{collections::BTreeMap, fmt};

/// Most topics and files that are counted apart.
const PLACES: usize = 4096;

/// Longest example that is kept, in characters.
const EXAMPLE_CHARS: usize = 400;

/// What can be wrong with a part of a bag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// The file ends early.
    Truncated,
    /// Bytes that are no record where one should be.
    Structure,
    /// The content is not what its checksum says.
    Checksum,
    /// Compressed data that cannot be unpacked.
    Compression,
    /// More than the [`Limits`](super::Limits) allow.
    TooLarge,
    /// A message of a channel or topic that nobody declared.
    UnknownChannel,
    /// A type that is not understood where one of another type is needed.
    Type,
    /// A message that is not what its type says.
    Decode,
    /// A message that its receiver refuses: joints are missing, an image cannot be decoded.
    Refused,
    /// Messages that could not be brought into the order of time within the limits.
    Order,
    /// The database or the disk reports an error.
    Storage,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Truncated => "cut off",
            Self::Structure => "broken structure",
            Self::Checksum => "wrong checksum",
            Self::Compression => "broken compression",
            Self::TooLarge => "too large",
            Self::UnknownChannel => "unknown channel",
            Self::Type => "unexpected type",
            Self::Decode => "undecodable",
            Self::Refused => "refused",
            Self::Order => "out of order",
            Self::Storage => "storage error",
        })
    }
}

/// How often something was wrong, and how it looked the first time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tally {
    /// How often.
    pub count: u64,
    /// The first case.
    pub first: String,
}

/// What was read of a bag, and what of it was no use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BagReport {
    /// Messages given, by topic.
    pub read: BTreeMap<String, u64>,
    /// Faults of messages, by topic.
    pub topics: BTreeMap<String, BTreeMap<Fault, Tally>>,
    /// Faults of files as a whole or of parts that belong to no topic, by file name.
    pub files: BTreeMap<String, BTreeMap<Fault, Tally>>,
}

impl BagReport {
    /// Whether nothing was wrong.
    pub fn is_clean(&self) -> bool {
        self.topics.is_empty() && self.files.is_empty()
    }

    /// How often this was wrong, anywhere.
    pub fn count(&self, fault: Fault) -> u64 {
        let places = self.topics.values().chain(self.files.values());
        places.filter_map(|faults| faults.get(&fault)).map(|tally| tally.count).sum()
    }

    /// Faults, anywhere.
    pub fn total(&self) -> u64 {
        let places = self.topics.values().chain(self.files.values());
        places.flat_map(BTreeMap::values).map(|tally| tally.count).sum()
    }

    pub(super) fn read(&mut self, topic: &str) {
        if let Some(count) = self.read.get_mut(topic) {
            *count += 1;
        } else if self.read.len() < PLACES {
            self.read.insert(topic.to_owned(), 1);
        }
    }

    pub(super) fn topic(&mut self, topic: &str, fault: Fault, example: impl fmt::Display) {
        tally(&mut self.topics, topic, fault, example);
    }

    pub(super) fn file(&mut self, file: &str, fault: Fault, example: impl fmt::Display) {
        tally(&mut self.files, file, fault, example);
    }

    /// Adds what another report counted.
    pub fn merge(&mut self, other: &Self) {
        for (topic, count) in &other.read {
            *self.read.entry(topic.clone()).or_default() += count;
        }
        for (ours, theirs) in [(&mut self.topics, &other.topics), (&mut self.files, &other.files)] {
            for (place, faults) in theirs {
                let ours = ours.entry(place.clone()).or_default();
                for (fault, tally) in faults {
                    let count = tally.count;
                    ours.entry(*fault)
                        .and_modify(|ours| ours.count += count)
                        .or_insert_with(|| tally.clone());
                }
            }
        }
    }
}

fn tally(
    places: &mut BTreeMap<String, BTreeMap<Fault, Tally>>,
    place: &str,
    fault: Fault,
    example: impl fmt::Display,
) {
    let place = if places.contains_key(place) || places.len() < PLACES { place } else { "others" };
    let faults = places.entry(place.to_owned()).or_default();
    let first = || {
        let text = example.to_string();
        match text.char_indices().nth(EXAMPLE_CHARS) {
            Some((end, _)) => format!("{}…", &text[..end]),
            None => text,
        }
    };
    faults
        .entry(fault)
        .and_modify(|tally| tally.count += 1)
        .or_insert_with(|| Tally { count: 1, first: first() });
}

impl fmt::Display for BagReport {
    /// One line per place and kind of fault; nothing where nothing was wrong.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, faults) in self.files.iter().chain(&self.topics) {
            for (fault, Tally { count, first }) in faults {
                writeln!(f, "{place}: {fault} {count}x, first: {first}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_example_is_kept_and_the_rest_counted() {
        let mut report = BagReport::default();
        assert!(report.is_clean() && report.to_string().is_empty());
        report.topic("/a", Fault::Decode, "one");
        report.topic("/a", Fault::Decode, "two");
        report.file("x.mcap", Fault::Checksum, "chunk at byte 9");
        assert_eq!(
            report.to_string(),
            "x.mcap: wrong checksum 1x, first: chunk at byte 9\n/a: undecodable 2x, first: one\n"
        );
        assert_eq!((report.count(Fault::Decode), report.total(), report.is_clean()), (2, 3, false));
        let mut sum = report.clone();
        sum.merge(&report);
        assert_eq!((sum.count(Fault::Decode), sum.total()), (4, 6));
        assert_eq!(sum.topics["/a"][&Fault::Decode].first, "one");
    }

    #[test]
    fn names_and_examples_from_a_hostile_file_are_bounded() {
        let mut report = BagReport::default();
        for index in 0..2 * PLACES {
            report.topic(&format!("/{index}"), Fault::Decode, "x".repeat(10_000));
            report.read(&format!("/{index}"));
        }
        assert_eq!(report.topics.len(), PLACES + 1);
        assert_eq!(report.topics["others"][&Fault::Decode].count, PLACES as u64);
        assert_eq!(report.read.len(), PLACES);
        assert!(report.topics["/0"][&Fault::Decode].first.chars().count() == EXAMPLE_CHARS + 1);
    }
}
