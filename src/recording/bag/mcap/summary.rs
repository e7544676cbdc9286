//! The end of an MCAP file: declarations and counts of everything before it, behind a checksum.

use std::{collections::BTreeMap, fs::File, io};

use mcap::records::{Footer, Record, op};

use super::{
    super::limits::RECORD_BYTES,
    channels::Channels,
    index::{RECORD_HEADER, record_header},
    window::{Window, read_at},
};

/// What the summary says.
pub(super) struct Summary {
    pub channels: Channels,
    /// Messages per channel.
    pub counts: Option<BTreeMap<u16, u64>>,
}

/// Bytes of a footer record, header included.
const FOOTER: u64 = RECORD_HEADER + 20;
/// Footer and magic bytes.
const TAIL: u64 = FOOTER + 8;
/// Bytes that the checksum is computed of at a time.
const PIECE: u64 = 1 << 20;

/// Reads the summary; `None` where the file has none, the text of a problem where it cannot be trusted. `data_end` is where
/// the walk over the records ended: no summary begins before.
pub(super) fn read(file: &File, data_end: u64) -> io::Result<Result<Option<Summary>, String>> {
    let length = file.metadata()?.len();
    let Some(footer_start) = length.checked_sub(TAIL) else { return Ok(Ok(None)) };
    let tail = read_at(file, footer_start, TAIL as usize)?;
    let Some(footer) = footer(&tail) else { return Ok(Ok(None)) };
    let start = footer.summary_start;
    if start == 0 {
        return Ok(Ok(None));
    }
    if start < data_end || start > footer_start {
        return Ok(Err(format!(
            "the footer says that it begins at byte {start}, beyond {data_end} to {footer_start}"
        )));
    }
    if footer.summary_crc != 0 {
        // The checksum's own bytes and the magic bytes are not counted.
        let found = checksum(file, start, length - 8 - 4)?;
        if found != footer.summary_crc {
            let expected = footer.summary_crc;
            return Ok(Err(format!("its checksum is {found:#010x}, the footer says {expected:#010x}")));
        }
    }
    parse(file, start, footer_start)
}

fn footer(tail: &[u8]) -> Option<Footer> {
    let body = tail.strip_suffix(mcap::MAGIC)?;
    let (opcode, size) = record_header(body)?;
    if opcode != op::FOOTER || size != FOOTER - RECORD_HEADER {
        return None;
    }
    match mcap::parse_record(opcode, body.get(RECORD_HEADER as usize..)?) {
        Ok(Record::Footer(footer)) => Some(footer),
        _ => None,
    }
}

fn checksum(file: &File, start: u64, end: u64) -> io::Result<u32> {
    let mut hasher = crc32fast::Hasher::new();
    let mut position = start;
    while position < end {
        let piece = read_at(file, position, (end - position).min(PIECE) as usize)?;
        if piece.is_empty() {
            break;
        }
        hasher.update(&piece);
        position += piece.len() as u64;
    }
    Ok(hasher.finalize())
}

fn parse(file: &File, start: u64, end: u64) -> io::Result<Result<Option<Summary>, String>> {
    let mut summary = Summary { channels: Channels::default(), counts: None };
    let mut window = Window::new(file);
    let mut position = start;
    while position < end {
        let Some((opcode, size)) = record_header(window.get(position, RECORD_HEADER as usize)?) else {
            break;
        };
        let next = position.checked_add(RECORD_HEADER).and_then(|data| data.checked_add(size));
        let Some(next) = next.filter(|&next| next <= end) else {
            return Ok(Err(format!(
                "the record at byte {position} has {size} bytes, beyond the summary's end"
            )));
        };
        if matches!(opcode, op::SCHEMA | op::CHANNEL | op::STATISTICS) {
            if size > RECORD_BYTES {
                return Ok(Err(format!(
                    "the record at byte {position} has {size} bytes, at most {RECORD_BYTES} are read"
                )));
            }
            let body = read_at(file, position + RECORD_HEADER, size as usize)?;
            if opcode == op::STATISTICS {
                if let Ok(Record::Statistics(statistics)) = mcap::parse_record(opcode, &body) {
                    summary.counts = Some(statistics.channel_message_counts);
                }
            } else if let Err(problem) = summary.channels.declare(opcode, &body) {
                return Ok(Err(problem));
            }
        }
        position = next;
    }
    Ok(Ok(Some(summary)))
}
