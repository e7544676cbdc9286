//! One chunk, or a run of messages outside of chunks: read, unpacked, checked, taken apart.

use std::{fs::File, io::Cursor, sync::Arc};

use mcap::records::{MessageHeader, op};

use super::{
    super::{
        BagReport, Fault,
        limits::RECORD_BYTES,
        message::{Channel, Payload},
        unpack::{UnpackError, read_bounded},
    },
    channels::Channels,
    index::{Block, ChunkStart, MESSAGE_HEADER, RECORD_HEADER, message_header, record_header},
    window::read_at,
};

/// What a block is read from.
pub(super) struct Source<'a> {
    pub file: &'a File,
    pub name: &'a str,
}

/// Gives every message of a block with its channel, in the order of the file. What is wrong goes into the report: a chunk
/// that is not what its checksum says gives nothing, a broken record ends its block.
pub(super) fn read(
    source: &Source,
    block: &Block,
    channels: &mut Channels,
    report: &mut BagReport,
    mut give: impl FnMut(u16, &Arc<Channel>, MessageHeader, Payload),
) {
    let at = block.offset;
    let kind = if block.chunk { "chunk" } else { "messages" };
    match records(source, block) {
        Ok(records) => {
            let records = Arc::new(records);
            if let Err((fault, problem)) = take_apart(&records, source, channels, report, &mut give) {
                report.file(source.name, fault, format!("the {kind} at byte {at}: {problem}"));
            }
        }
        Err((fault, problem)) => {
            report.file(source.name, fault, format!("the {kind} at byte {at}: {problem}"))
        }
    }
}

type Problem = (Fault, String);

/// The block's records, unpacked and checked.
fn records(source: &Source, block: &Block) -> Result<Vec<u8>, Problem> {
    let storage = |error: std::io::Error| (Fault::Storage, error.to_string());
    // Bounded by the walk that found the block.
    let bytes = read_at(source.file, block.offset, block.length as usize).map_err(storage)?;
    if (bytes.len() as u64) < block.length {
        return Err((Fault::Truncated, "the file has become shorter".to_owned()));
    }
    if !block.chunk {
        return Ok(bytes);
    }
    let broken = || (Fault::Structure, "broken header".to_owned());
    let body = bytes.get(RECORD_HEADER as usize..).ok_or_else(broken)?;
    let chunk = ChunkStart::parse(body, body.len() as u64).ok_or_else(broken)?;
    let end = chunk.data + chunk.header.compressed_size;
    let packed = body.get(chunk.data as usize..end as usize).ok_or_else(broken)?;
    let expected = chunk.header.uncompressed_size;
    let records = match chunk.header.compression.as_str() {
        "" => packed.to_vec(),
        "zstd" => zstd::Decoder::with_buffer(packed)
            .map_err(UnpackError::Broken)
            .and_then(|decoder| read_bounded(decoder, expected))
            .map_err(|error| (Fault::Compression, format!("zstd: {error}")))?,
        "lz4" => read_bounded(lz4_flex::frame::FrameDecoder::new(Cursor::new(packed)), expected)
            .map_err(|error| (Fault::Compression, format!("lz4: {error}")))?,
        other => {
            let text = format!("expected the compression zstd, lz4 or none, found {other:?}");
            return Err((Fault::Compression, text));
        }
    };
    if records.len() as u64 != expected {
        return Err((
            Fault::Structure,
            format!("expected {expected} bytes unpacked, found {}", records.len()),
        ));
    }
    let crc = chunk.header.uncompressed_crc;
    // Zero says that there is none.
    if crc != 0 {
        let found = crc32fast::hash(&records);
        if found != crc {
            return Err((Fault::Checksum, format!("expected the checksum {crc:#010x}, found {found:#010x}")));
        }
    }
    Ok(records)
}

fn take_apart(
    records: &Arc<Vec<u8>>,
    source: &Source,
    channels: &mut Channels,
    report: &mut BagReport,
    give: &mut impl FnMut(u16, &Arc<Channel>, MessageHeader, Payload),
) -> Result<(), Problem> {
    let mut position = 0_usize;
    while position < records.len() {
        let rest = records.get(position..).unwrap_or_default();
        let Some((opcode, size)) = record_header(rest) else {
            return Err((
                Fault::Structure,
                format!("ends inside a record's header, {} bytes before its end", rest.len()),
            ));
        };
        let left = rest.len() as u64 - RECORD_HEADER;
        if size > left {
            let text = format!("record {opcode:#04x} claims {size} bytes, {left} are left");
            return Err((Fault::Structure, text));
        }
        // Both at most the records' length.
        let start = position + RECORD_HEADER as usize;
        let end = start + size as usize;
        let body = records.get(start..end).unwrap_or_default();
        match opcode {
            op::SCHEMA | op::CHANNEL if size > RECORD_BYTES => {
                let text = format!("a declaration of {size} bytes, at most {RECORD_BYTES} are read");
                report.file(source.name, Fault::TooLarge, text);
            }
            op::SCHEMA | op::CHANNEL => {
                if let Err(problem) = channels.declare(opcode, body) {
                    report.file(source.name, Fault::Structure, problem);
                }
            }
            op::MESSAGE => match message_header(body) {
                None => report.file(
                    source.name,
                    Fault::Structure,
                    format!("a message of {size} bytes, fewer than its header"),
                ),
                Some(header) => match channels.get(header.channel_id) {
                    None => {
                        let text = format!(
                            "channel {} of message {} is not declared",
                            header.channel_id, header.sequence
                        );
                        report.file(source.name, Fault::UnknownChannel, text);
                    }
                    Some(channel) => {
                        let id = header.channel_id;
                        if let Some(data) = Payload::part(records, start + MESSAGE_HEADER as usize..end) {
                            give(id, channel, header, data);
                        }
                    }
                },
            },
            _ => {}
        }
        position = end;
    }
    Ok(())
}
