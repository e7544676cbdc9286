//! Where the messages of an MCAP file are: one walk over the headers of its records, which are not read themselves.
//!
//! Chunks are found by walking and not by the index at the file's end, so that a file that has none (its recorder was
//! killed) is read the same way. Where a record's header is damaged, the walk goes on at the next thing that has every
//! mark of a chunk.

use std::{fs::File, io};

use mcap::records::{ChunkHeader, MessageHeader, Record, op};

use super::{
    super::{BagReport, Fault, Limits, limits::RECORD_BYTES},
    channels::Channels,
    window::{Window, read_at},
};

/// Opcode and length in front of each record.
pub(super) const RECORD_HEADER: u64 = 9;
/// Channel, sequence number and two times in front of a message's data.
pub(super) const MESSAGE_HEADER: u64 = 22;
/// Times, sizes, checksum and the longest known name of a compression in front of a chunk's data.
const CHUNK_HEADER: usize = 64;
/// Messages outside of chunks are read this many bytes at a time.
const RUN: u64 = 1 << 20;
/// Bytes that the search for the next chunk reads at a time.
const SEARCHED: usize = 64 << 10;

/// A part of the file that is read at once: a chunk, or messages in a row that are in none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Block {
    /// Earliest log time, by the header.
    pub start: u64,
    /// Latest log time, by the header.
    pub end: u64,
    /// Where its first record begins.
    pub offset: u64,
    /// Bytes of its records, headers included.
    pub length: u64,
    /// Whether it is a chunk.
    pub chunk: bool,
}

/// What a walk over a file found.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// In the order of the file.
    pub blocks: Vec<Block>,
    pub channels: Channels,
    /// Where the data section ends as far as it was walked.
    pub data_end: u64,
}

impl Index {
    /// Walks over the file, whose magic bytes were checked.
    pub fn build(file: &File, name: &str, limits: &Limits, report: &mut BagReport) -> io::Result<Self> {
        let length = file.metadata()?.len();
        let mut walk = Walk {
            window: Window::new(file),
            file,
            name,
            length,
            limits,
            report,
            index: Self::default(),
            run: None,
        };
        walk.walk()?;
        Ok(walk.index)
    }
}

struct Walk<'a> {
    window: Window<'a>,
    file: &'a File,
    name: &'a str,
    length: u64,
    limits: &'a Limits,
    report: &'a mut BagReport,
    index: Index,
    /// Messages outside of chunks that belong to no block yet.
    run: Option<Block>,
}

impl Walk<'_> {
    fn walk(&mut self) -> io::Result<()> {
        let mut position = mcap::MAGIC.len() as u64;
        // The record before: its length may be what is wrong where the next one makes no sense.
        let mut before = position;
        while position < self.length {
            // Fewer bytes than a header has are no record either.
            let header = self.header(position)?;
            let (opcode, size) = header.unwrap_or((0, u64::MAX));
            let end = position.checked_add(RECORD_HEADER).and_then(|data| data.checked_add(size));
            let end = end.filter(|&end| end <= self.length);
            let sound = match opcode {
                op::DATA_END => size == 4,
                op::FOOTER => size == 20,
                op::HEADER..=op::DATA_END | 0x80.. => true,
                _ => false,
            };
            let Some(next) = end.filter(|_| sound) else {
                // The length of the record before may be what is wrong: what it skipped is searched as well.
                let chunk = self.next_chunk(before.saturating_add(1))?.filter(|&chunk| chunk > before);
                let what = match header {
                    Some(_) => format!("record {opcode:#04x} of {size} bytes at byte {position}"),
                    None => format!("the beginning of a record at byte {position}"),
                };
                match chunk {
                    Some(chunk) => {
                        self.fault(Fault::Structure, format!("{what}; read on at the chunk at byte {chunk}"));
                        // What was taken for chunks behind it was none.
                        self.forget_from(chunk);
                        (before, position) = (chunk, chunk);
                        continue;
                    }
                    None if end.is_none() => {
                        let left = self.length - position;
                        self.fault(Fault::Truncated, format!("{what}, of which {left} bytes are there"));
                    }
                    None => self.fault(Fault::Structure, format!("{what}; no chunk follows")),
                }
                break;
            };
            match opcode {
                op::DATA_END | op::FOOTER => break,
                op::CHUNK => self.chunk(position, size)?,
                op::MESSAGE => self.message(position, next, size)?,
                op::SCHEMA | op::CHANNEL => self.declaration(opcode, position, size)?,
                // Indexes, attachments, metadata, private records.
                _ => {}
            }
            (before, position) = (position, next);
        }
        self.end_run();
        self.index.data_end = position;
        Ok(())
    }

    /// Forgets blocks that begin at `offset` or later.
    fn forget_from(&mut self, offset: u64) {
        self.end_run();
        self.index.blocks.retain(|block| block.offset < offset);
    }

    fn fault(&mut self, fault: Fault, text: String) {
        self.report.file(self.name, fault, text);
    }

    fn header(&mut self, position: u64) -> io::Result<Option<(u8, u64)>> {
        Ok(record_header(self.window.get(position, RECORD_HEADER as usize)?))
    }

    fn chunk(&mut self, position: u64, size: u64) -> io::Result<()> {
        self.end_run();
        let bytes = self.window.get(position + RECORD_HEADER, CHUNK_HEADER)?;
        let Some(chunk) = ChunkStart::parse(bytes, size) else {
            self.fault(Fault::Structure, format!("the chunk at byte {position} has a broken header"));
            return Ok(());
        };
        let limit = self.limits.chunk;
        if size > limit || chunk.header.uncompressed_size > limit {
            let unpacked = chunk.header.uncompressed_size;
            let text = format!(
                "the chunk at byte {position} claims {size} bytes, {unpacked} unpacked, at most {limit} are read"
            );
            self.fault(Fault::TooLarge, text);
            return Ok(());
        }
        let ChunkHeader { message_start_time: start, message_end_time: end, .. } = chunk.header;
        let length = RECORD_HEADER + size;
        self.index.blocks.push(Block { start, end, offset: position, length, chunk: true });
        Ok(())
    }

    fn message(&mut self, position: u64, next: u64, size: u64) -> io::Result<()> {
        let bytes = self.window.get(position + RECORD_HEADER, MESSAGE_HEADER as usize)?;
        let Some(header) = message_header(bytes) else {
            self.fault(
                Fault::Structure,
                format!("the message at byte {position} has {size} bytes, fewer than its header"),
            );
            return Ok(());
        };
        if size - MESSAGE_HEADER > self.limits.message {
            let limit = self.limits.message;
            let text = format!("the message at byte {position} has {size} bytes, at most {limit} are read");
            self.fault(Fault::TooLarge, text);
            // Its run must not hold it.
            self.end_run();
            return Ok(());
        }
        let time = header.log_time;
        match &mut self.run {
            Some(run) if run.offset + run.length == position && run.length < RUN => {
                run.length = next - run.offset;
                run.start = run.start.min(time);
                run.end = run.end.max(time);
            }
            _ => {
                self.end_run();
                self.run = Some(Block {
                    start: time,
                    end: time,
                    offset: position,
                    length: next - position,
                    chunk: false,
                });
            }
        }
        Ok(())
    }

    fn end_run(&mut self) {
        self.index.blocks.extend(self.run.take());
    }

    fn declaration(&mut self, opcode: u8, position: u64, size: u64) -> io::Result<()> {
        if size > RECORD_BYTES {
            let text = format!(
                "the declaration at byte {position} has {size} bytes, at most {RECORD_BYTES} are read"
            );
            self.fault(Fault::TooLarge, text);
            return Ok(());
        }
        let body = read_at(self.file, position + RECORD_HEADER, size as usize)?;
        if let Err(problem) = self.index.channels.declare(opcode, &body) {
            self.fault(Fault::Structure, format!("the declaration at byte {position}: {problem}"));
        }
        Ok(())
    }

    /// Where the next chunk begins, from `from` on: an opcode and a header in which all sizes agree.
    fn next_chunk(&mut self, from: u64) -> io::Result<Option<u64>> {
        let mut start = from;
        while start < self.length {
            let bytes = read_at(self.file, start, SEARCHED)?;
            for (skip, _) in bytes.iter().enumerate().filter(|(_, byte)| **byte == op::CHUNK) {
                let position = start + skip as u64;
                if self.is_chunk(position)? {
                    return Ok(Some(position));
                }
            }
            start += SEARCHED as u64;
        }
        Ok(None)
    }

    fn is_chunk(&mut self, position: u64) -> io::Result<bool> {
        let Some((op::CHUNK, size)) = self.header(position)? else { return Ok(false) };
        let end = position.saturating_add(RECORD_HEADER).saturating_add(size);
        if end > self.length {
            return Ok(false);
        }
        let chunk = ChunkStart::parse(self.window.get(position + RECORD_HEADER, CHUNK_HEADER)?, size);
        Ok(chunk.is_some_and(|chunk| {
            let ChunkHeader { message_start_time: start, message_end_time: end, .. } = chunk.header;
            start <= end && matches!(chunk.header.compression.as_str(), "" | "zstd" | "lz4")
        }))
    }
}

/// Opcode and length of a record.
pub(super) fn record_header(bytes: &[u8]) -> Option<(u8, u64)> {
    let (opcode, rest) = bytes.split_first()?;
    Some((*opcode, u64::from_le_bytes(*rest.first_chunk()?)))
}

/// A message's header.
pub(super) fn message_header(bytes: &[u8]) -> Option<MessageHeader> {
    let (channel, rest) = bytes.split_first_chunk()?;
    let (sequence, rest) = rest.split_first_chunk()?;
    let (log_time, rest) = rest.split_first_chunk()?;
    let publish_time = rest.first_chunk()?;
    Some(MessageHeader {
        channel_id: u16::from_le_bytes(*channel),
        sequence: u32::from_le_bytes(*sequence),
        log_time: u64::from_le_bytes(*log_time),
        publish_time: u64::from_le_bytes(*publish_time),
    })
}

/// A chunk's header, and where its data begins behind the record's header.
pub(super) struct ChunkStart {
    pub header: ChunkHeader,
    pub data: u64,
}

impl ChunkStart {
    /// Parses the first bytes of a chunk record of `size` bytes; `None` where the sizes in it do not agree.
    pub fn parse(bytes: &[u8], size: u64) -> Option<Self> {
        // Two times, a size, a checksum, then the length of the compression's name: one that is not among the first
        // bytes is none of the known ones.
        const NAME: usize = 28;
        let name = u32::from_le_bytes(*bytes.get(NAME..)?.first_chunk()?) as usize;
        let data = NAME.checked_add(4)?.checked_add(name)?.checked_add(8)?;
        let mut body = bytes.get(..data)?.to_vec();
        // The parser wants the data with the header, and is given a chunk without any.
        let packed = body.len() - 8;
        let compressed_size = u64::from_le_bytes(*body.get(packed..)?.first_chunk()?);
        body.truncate(packed);
        body.extend([0; 8]);
        let Ok(Record::Chunk { mut header, .. }) = mcap::parse_record(op::CHUNK, &body) else { return None };
        header.compressed_size = compressed_size;
        let fits = (data as u64).checked_add(compressed_size)? <= size;
        fits.then_some(Self { header, data: data as u64 })
    }
}
