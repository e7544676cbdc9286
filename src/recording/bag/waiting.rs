//! Messages that were read before they are due, in a heap.

use std::cmp::Ordering;

use super::message::RawMessage;

/// A message, ordered by its key alone.
pub(super) struct Waiting<K> {
    pub key: K,
    pub message: RawMessage,
}

impl<K: PartialEq> PartialEq for Waiting<K> {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl<K: Eq> Eq for Waiting<K> {}

impl<K: Ord> PartialOrd for Waiting<K> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<K: Ord> Ord for Waiting<K> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key.cmp(&other.key)
    }
}
