//! MCAP files, in the order of log time and in bounded memory.
//!
//! The crate `mcap` knows the layout of records and writes files. Reading is done here, because its readers end at the
//! first damage, take a chunk's own word for its size, or want the whole file mapped, which counts as resident memory.
//!
//! | file | part |
//! |---|---|
//! | [`window`] | reading from anywhere in a file |
//! | [`index`] | where chunks and messages are, found by walking over the records' headers |
//! | [`channels`] | declared schemas and channels |
//! | [`summary`] | what the file's end says of its content |
//! | [`block`] | one chunk or run of messages: unpacked, checked, taken apart |
//! | [`stream`] | the blocks' messages in the order of time |

mod block;
mod channels;
mod index;
mod stream;
mod summary;
mod window;

use std::{collections::BTreeMap, fs::File, path::Path, sync::Arc};

pub(super) use stream::McapStream;

use super::{BagError, BagReport, Limits, Topic, message::Channel};
use crate::ros::Stamp;
use channels::Channels;
use index::{Block, Index};

/// An MCAP file whose records were walked over.
pub(super) struct McapFile {
    file: File,
    name: String,
    limits: Limits,
    blocks: Vec<Block>,
    channels: Channels,
    /// Messages per channel, where they are known.
    counts: Option<BTreeMap<u16, u64>>,
}

impl McapFile {
    /// Walks over the file; what is wrong with its structure goes into the report. `name` is what it is called there.
    pub fn open(path: &Path, name: &str, limits: &Limits, report: &mut BagReport) -> Result<Self, BagError> {
        let fail = || BagError::io(path);
        let file = File::open(path).map_err(fail())?;
        let Index { blocks, mut channels, data_end } =
            Index::build(&file, name, limits, report).map_err(fail())?;
        let summary = summary::read(&file, data_end).map_err(fail())?;
        let mut counts = None;
        match summary {
            Ok(Some(summary)) => {
                // The summary's declarations come with a checksum; they are complete where chunks may be lost.
                if !summary.channels.is_empty() {
                    channels = summary.channels;
                }
                counts = summary.counts;
            }
            Ok(None) => {}
            Err(problem) => report.file(name, super::Fault::Structure, format!("summary: {problem}")),
        }
        let mut opened = Self { file, name: name.to_owned(), limits: *limits, blocks, channels, counts };
        if opened.counts.is_none() {
            opened.count();
        }
        // A file that ends early has no summary; its recorder may have ordered chunks by anything.
        opened.blocks.sort_by_key(|block| (block.start, block.offset));
        Ok(opened)
    }

    /// Reads everything once, for the declarations and counts that a file without summary does not tell otherwise.
    fn count(&mut self) {
        let mut ignored = BagReport::default();
        let mut counts = BTreeMap::new();
        for block in &self.blocks {
            let mut channels = std::mem::take(&mut self.channels);
            let source = block::Source { file: &self.file, name: &self.name };
            let mut count = |id| *counts.entry(id).or_default() += 1;
            block::read(&source, block, &mut channels, &mut ignored, |id, _, _, _| count(id));
            self.channels = channels;
        }
        self.counts = Some(counts);
    }

    /// Times of the first and the last message, by the chunks' headers; `None` without messages.
    pub fn span(&self) -> Option<(Stamp, Stamp)> {
        // A chunk without messages has the times zero, or such as no message can have, depending on its writer.
        let times = |block: &&Block| (block.start, block.end) != (0, 0) && block.start <= block.end;
        let blocks = || self.blocks.iter().filter(times);
        let start = blocks().map(|block| block.start).min()?;
        let end = blocks().map(|block| block.end).max()?;
        Some((stamp(start), stamp(end)))
    }

    /// Topics in the order of their channels.
    pub fn topics(&self) -> Vec<Topic> {
        let mut topics: Vec<(u16, Topic)> = self
            .channels
            .iter()
            .map(|(id, declared)| {
                let Channel { topic, kind, encoding } = declared.channel.as_ref().clone();
                let count = self.counts.as_ref().map(|counts| counts.get(&id).copied().unwrap_or(0));
                (id, Topic { name: topic, kind, encoding, count, qos: declared.qos.clone() })
            })
            .collect();
        topics.sort_by_key(|(id, _)| *id);
        topics.into_iter().map(|(_, topic)| topic).collect()
    }

    /// The messages of the topics that `wanted` names.
    pub fn stream(self: &Arc<Self>, wanted: Arc<dyn Fn(&str) -> bool + Send + Sync>) -> McapStream {
        McapStream::new(self.clone(), wanted)
    }
}

/// The format counts from 0 to 2⁶⁴ nanoseconds, we to 2⁶³, the year 2262.
fn stamp(nanoseconds: u64) -> Stamp {
    Stamp(i64::try_from(nanoseconds).unwrap_or(i64::MAX))
}
