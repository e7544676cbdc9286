//! The messages of a file in the order of log time.
//!
//! Recorders write nearly in that order, but not quite: neighbouring chunks overlap. A chunk is therefore read as soon as
//! its first message may be due, and its messages wait in a heap. In a usual file that is one chunk or two; in one whose
//! chunks all claim to begin at once, [`Limits::reorder`](super::super::Limits::reorder) ends the waiting.

use std::{cmp::Reverse, collections::BinaryHeap, sync::Arc};

use super::super::{BagReport, Fault, message::RawMessage, waiting::Waiting};
use super::{
    McapFile,
    block::{self, Source},
    channels::Channels,
    stamp,
};

pub(in super::super) struct McapStream {
    file: Arc<McapFile>,
    wanted: Arc<dyn Fn(&str) -> bool + Send + Sync>,
    channels: Channels,
    /// How many blocks were read.
    blocks: usize,
    waiting: BinaryHeap<Reverse<Waiting<(u64, u64)>>>,
    /// Bytes of the waiting messages.
    bytes: u64,
    /// How many messages were read, to keep those of one time in their order.
    read: u64,
}

impl McapStream {
    pub(super) fn new(file: Arc<McapFile>, wanted: Arc<dyn Fn(&str) -> bool + Send + Sync>) -> Self {
        let channels = file.channels.clone();
        Self { file, wanted, channels, blocks: 0, waiting: BinaryHeap::new(), bytes: 0, read: 0 }
    }

    pub fn next(&mut self, report: &mut BagReport) -> Option<RawMessage> {
        while let Some(block) = self.file.blocks.get(self.blocks) {
            if self.waiting.peek().is_some_and(|Reverse(first)| first.key.0 < block.start) {
                break;
            }
            if self.bytes > self.file.limits.reorder {
                let limit = self.file.limits.reorder;
                let text = format!(
                    "the chunk at byte {} overlaps others of more than {limit} bytes; its messages come late",
                    block.offset
                );
                report.file(&self.file.name, Fault::Order, text);
                break;
            }
            self.read_block(report);
        }
        let Reverse(first) = self.waiting.pop()?;
        self.bytes -= first.message.data.len() as u64;
        Some(first.message)
    }

    fn read_block(&mut self, report: &mut BagReport) {
        let Some(block) = self.file.blocks.get(self.blocks) else { return };
        self.blocks += 1;
        let source = Source { file: &self.file.file, name: &self.file.name };
        let mut wanted = Vec::new();
        let (mut bytes, mut held) = (0_u64, 0);
        let choose = &self.wanted;
        block::read(&source, block, &mut self.channels, report, |_, channel, header, data| {
            if choose(&channel.topic) {
                bytes += data.len() as u64;
                held = data.held() as u64;
                wanted.push((channel.clone(), header, data));
            }
        });
        // Otherwise a few small messages would keep the rest of the chunk alive.
        let detach = bytes < held / 2;
        for (channel, header, data) in wanted {
            let message = RawMessage {
                channel,
                log_time: stamp(header.log_time),
                publish_time: stamp(header.publish_time),
                data: if detach { data.detached() } else { data },
            };
            self.waiting.push(Reverse(Waiting { key: (header.log_time, self.read), message }));
            self.read += 1;
        }
        self.bytes += bytes;
    }
}
