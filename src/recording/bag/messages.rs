//! The messages of all files of a bag, in the order of log time.

use std::collections::VecDeque;

use super::{
    BagError, BagReport, Fault, Limits,
    message::RawMessage,
    part::{Part, PartStream, Wanted},
    unpack::{UnpackError, ZSTD_MAGIC, unpack_bytes},
};
use crate::ros::Stamp;

/// The messages of a bag. An error ends one file, not the iteration.
pub struct Messages {
    /// Files that are not open yet, by their first message; those whose times are not known come first.
    closed: VecDeque<Part>,
    open: Vec<Open>,
    wanted: Wanted,
    limits: Limits,
    report: BagReport,
}

struct Open {
    stream: PartStream,
    /// The next message of the file.
    head: RawMessage,
}

impl Messages {
    pub(super) fn new(parts: &[Part], wanted: Wanted, limits: Limits, report: BagReport) -> Self {
        let mut parts = parts.to_vec();
        // Stable: files of equal or unknown times stay in the order of the bag.
        parts.sort_by_key(|part| part.span.map(|(start, _)| start));
        Self { closed: parts.into(), open: Vec::new(), wanted, limits, report }
    }

    /// What was wrong with the bag so far, and what was read.
    pub fn report(&self) -> &BagReport {
        &self.report
    }

    /// Opens every file that may hold the next message.
    fn open_due(&mut self) -> Result<(), BagError> {
        while let Some(part) = self.closed.front() {
            let first = self.open.iter().map(|open| open.head.log_time).min();
            let due = match (part.span, first) {
                (Some((start, _)), Some(first)) => start <= first,
                _ => true,
            };
            if !due {
                break;
            }
            let Some(part) = self.closed.pop_front() else { break };
            let mut stream = part.stream(&self.wanted, &self.limits, &mut self.report)?;
            if let Some(head) = stream.next(&mut self.report) {
                self.open.push(Open { stream, head });
            }
        }
        Ok(())
    }

    fn next_packed(&mut self) -> Result<Option<RawMessage>, BagError> {
        self.open_due()?;
        let first = self.open.iter().enumerate().min_by_key(|(_, open)| open.head.log_time);
        let Some((index, _)) = first else { return Ok(None) };
        // `index` is that of an open file.
        let open = &mut self.open[index];
        Ok(Some(match open.stream.next(&mut self.report) {
            Some(next) => std::mem::replace(&mut open.head, next),
            // Dropping the file deletes what was unpacked of it.
            None => self.open.remove(index).head,
        }))
    }

    /// Unpacks a message that is compressed by itself.
    fn unpack(&mut self, mut message: RawMessage) -> Option<RawMessage> {
        let limit = self.limits.message;
        if message.data.starts_with(&ZSTD_MAGIC) {
            match unpack_bytes(&message.data, limit) {
                Ok(data) => message.data = data.into(),
                Err(error) => {
                    let fault = match error {
                        UnpackError::Broken(_) => Fault::Compression,
                        UnpackError::TooLarge(_) => Fault::TooLarge,
                    };
                    self.report.topic(message.topic(), fault, at(&message, error));
                    return None;
                }
            }
        }
        if message.data.len() as u64 > limit {
            let text = format!("{} bytes, at most {limit} are read", message.data.len());
            self.report.topic(message.topic(), Fault::TooLarge, at(&message, text));
            return None;
        }
        Some(message)
    }

    pub(super) fn report_mut(&mut self) -> &mut BagReport {
        &mut self.report
    }
}

fn at(message: &RawMessage, problem: impl std::fmt::Display) -> String {
    let Stamp(time) = message.log_time;
    format!("recorded at {time} ns: {problem}")
}

impl Iterator for Messages {
    type Item = Result<RawMessage, BagError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let message = match self.next_packed() {
                Ok(message) => message?,
                Err(error) => return Some(Err(error)),
            };
            if let Some(message) = self.unpack(message) {
                self.report.read(message.topic());
                return Some(Ok(message));
            }
        }
    }
}
