//! Who sends on a topic: do they send what we take them for, and does all of it arrive?
//!
//! RustDDS connects a publisher to a subscriber of the same topic whatever their message types, and the bytes of one
//! type can happen to make sense as another.

use std::{collections::HashMap, sync::Weak};

use ros2_client::{Gid, MessageInfo, ReadError};

use super::Node;

/// The publishers heard on one topic.
pub(super) struct Senders {
    node: Weak<Node>,
    dds_topic: String,
    dds_type: String,
    known: HashMap<Gid, Sender>,
}

struct Sender {
    /// `None` until the publisher has been discovered.
    type_agrees: Option<bool>,
    last_sequence: i64,
}

/// What one message tells of its sender.
pub(super) struct Heard {
    /// Whether the sender announces our message type. One not (or no longer) discovered gets the benefit of the doubt.
    pub(super) type_agrees: bool,
    /// Messages missing since the sender's last one.
    pub(super) lost: u64,
}

impl Senders {
    /// Senders remembered: publishers that come and go for weeks must not fill the memory.
    const MAX_KNOWN: usize = 1024;

    pub(super) fn new(node: Weak<Node>, dds_topic: String, dds_type: String) -> Self {
        Self { node, dds_topic, dds_type, known: HashMap::new() }
    }

    /// Takes note of a message.
    pub(super) fn hear(&mut self, message: &MessageInfo) -> Heard {
        let (publisher, sequence) = (message.publisher_gid(), message.sequence_number());
        let type_agrees = match self.known.get(&publisher).and_then(|sender| sender.type_agrees) {
            Some(known) => Some(known),
            None => self.compare_type(publisher),
        };
        if self.known.len() >= Self::MAX_KNOWN && !self.known.contains_key(&publisher) {
            self.known.clear();
        }
        let sender = self
            .known
            .entry(publisher)
            .or_insert(Sender { type_agrees, last_sequence: sequence.saturating_sub(1) });
        sender.type_agrees = type_agrees;
        // What comes late was counted as lost when its successor came.
        let lost = sequence.saturating_sub(sender.last_sequence).saturating_sub(1).max(0);
        sender.last_sequence = sender.last_sequence.max(sequence);
        Heard { type_agrees: type_agrees.unwrap_or(true), lost: lost.unsigned_abs() }
    }

    /// Says why messages could not be decoded.
    pub(super) fn warn_undecodable(&self, count: u64, error: &ReadError) {
        let others: Vec<String> = self
            .announced()
            .into_iter()
            .map(|(_, name)| name)
            .filter(|name| *name != self.dds_type)
            .collect();
        let hint = if others.is_empty() {
            "is the publisher's message definition the same as ours?".to_owned()
        } else {
            format!("there are publishers of {} on this topic", others.join(", "))
        };
        let (topic, kind) = (&self.dds_topic, &self.dds_type);
        tracing::warn!("{count} messages on {topic} so far are not {kind}: {error}; {hint}");
    }

    /// Compares the type that a publisher announces with ours.
    fn compare_type(&self, publisher: Gid) -> Option<bool> {
        let (_, announced) = self.announced().into_iter().find(|(gid, _)| *gid == publisher)?;
        let agrees = announced == self.dds_type;
        if !agrees {
            let (topic, kind) = (&self.dds_topic, &self.dds_type);
            tracing::warn!(
                "a publisher on {topic} sends {announced}, expected {kind}: its messages are dropped"
            );
        }
        Some(agrees)
    }

    fn announced(&self) -> Vec<(Gid, String)> {
        self.node.upgrade().map_or_else(Vec::new, |node| node.announced_publishers(&self.dds_topic))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_in_a_senders_numbering_are_lost_messages() {
        let mut senders = Senders::new(Weak::new(), "rt/a".to_owned(), "T_".to_owned());
        let mut lost = |publisher: u8, sequence: i64| {
            let message = MessageInfo::new(None, None, sequence, Gid::from([publisher; 16]), None);
            senders.hear(&message).lost
        };
        // Joining late loses nothing, and every publisher counts for itself.
        assert_eq!([lost(1, 5), lost(2, 900), lost(1, 6), lost(1, 9), lost(2, 901)], [0, 0, 0, 2, 0]);
        // A late one and a hostile one.
        assert_eq!([lost(1, 8), lost(1, 10), lost(1, i64::MIN), lost(1, 11)], [0, 0, 0, 0]);
    }
}
