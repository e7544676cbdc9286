//! What a subscriber holds: the newest unread messages, and counters of what became of the others.
//!
//! A task of its own drains each topic as messages come, so that a consumer busy for a second finds the newest data
//! and not a second's backlog. With room for one message the inbox is a latest-value slot, as cameras want it; with
//! room for more it is a queue that drops its oldest, as joint states want it.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use tokio::sync::Notify;

use super::{backend, clock::NodeClock};
use crate::ros::msg::{Message, Time};

/// A message, and when it reached us.
#[derive(Debug, Clone, PartialEq)]
pub struct Received<M> {
    /// The message.
    pub message: M,
    /// When it had come off the network, on the monotonic clock: for ages.
    pub at: Instant,
    /// The same instant on the node's clock: to compare with stamps. Zero where that clock waits for its first time.
    pub time: Time,
}

/// What became of the messages on a topic since it was subscribed to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Messages that were read from the network whole.
    pub received: u64,
    /// Messages that were sent and never came, by the gaps in their publishers' numbering. Undecodable ones leave a
    /// gap as well. Always zero with `r2r`, which keeps the numbering to itself.
    pub lost: u64,
    /// Received messages that newer ones pushed out before anybody read them.
    pub overwritten: u64,
    /// Payloads that are not the message that the topic should carry.
    pub undecodable: u64,
    /// Messages from publishers that announce another message type, not delivered. Always zero with `r2r`: the
    /// middlewares of ROS 2 do not connect such publishers.
    pub wrong_type: u64,
}

/// A subscription to one topic. Dropping it unsubscribes.
pub struct Subscription<M> {
    topic: String,
    inbox: Arc<Inbox<M>>,
    reader: backend::Reader<M>,
}

impl<M: Message> Subscription<M> {
    pub(super) fn new(topic: String, inbox: Arc<Inbox<M>>, reader: backend::Reader<M>) -> Self {
        Self { topic, inbox, reader }
    }

    /// The topic's fully qualified name.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// The oldest unread message, waiting for one if there is none; `None` once the node has been shut down.
    ///
    /// Cancel safe. Meant for one consumer; several share the messages.
    pub async fn recv(&self) -> Option<Received<M>> {
        self.inbox.recv().await
    }

    /// The oldest unread message, if there is one.
    pub fn try_recv(&self) -> Option<Received<M>> {
        self.inbox.take()
    }

    /// What became of the messages so far.
    pub fn counters(&self) -> Counters {
        self.inbox.counters()
    }

    /// How many publishers are connected, those that announce another message type included.
    pub fn publisher_count(&self) -> usize {
        self.reader.publisher_count()
    }
}

/// The newest unread messages of one topic: filled by the transport's task, emptied by the consumer.
pub(super) struct Inbox<M> {
    unread: Mutex<VecDeque<Received<M>>>,
    capacity: usize,
    clock: NodeClock,
    arrived: Notify,
    closed: AtomicBool,
    received: AtomicU64,
    lost: AtomicU64,
    overwritten: AtomicU64,
    undecodable: AtomicU64,
    wrong_type: AtomicU64,
}

impl<M> Inbox<M> {
    /// An inbox that keeps the newest `capacity` unread messages, at least one, and times them by `clock`.
    pub(super) fn new(capacity: usize, clock: NodeClock) -> Self {
        Self {
            unread: Mutex::default(),
            capacity: capacity.max(1),
            clock,
            arrived: Notify::new(),
            closed: AtomicBool::new(false),
            received: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            overwritten: AtomicU64::new(0),
            undecodable: AtomicU64::new(0),
            wrong_type: AtomicU64::new(0),
        }
    }

    /// Takes a message that came off the network at `at`.
    pub(super) fn push(&self, message: M, at: Instant) {
        let received = Received { message, at, time: self.clock.now().unwrap_or_default() };
        let pushed_out = {
            let mut unread = self.lock();
            let pushed_out = if unread.len() >= self.capacity { unread.pop_front() } else { None };
            unread.push_back(received);
            // Counted under the lock, so that nobody sees a message that was not yet counted.
            self.received.fetch_add(1, Ordering::Relaxed);
            self.overwritten.fetch_add(u64::from(pushed_out.is_some()), Ordering::Relaxed);
            pushed_out
        };
        self.arrived.notify_one();
        drop(pushed_out); // an image, freed outside the lock
    }

    /// Counts a payload that could not be decoded and returns how many there have been.
    pub(super) fn count_undecodable(&self) -> u64 {
        self.undecodable.fetch_add(1, Ordering::Relaxed) + 1
    }

    #[cfg(not(feature = "r2r"))] // it cannot tell
    pub(super) fn count_lost(&self, messages: u64) {
        self.lost.fetch_add(messages, Ordering::Relaxed);
    }

    #[cfg(not(feature = "r2r"))] // it cannot tell
    pub(super) fn count_wrong_type(&self) {
        self.wrong_type.fetch_add(1, Ordering::Relaxed);
    }

    /// No message will come any more.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.arrived.notify_one();
    }

    fn take(&self) -> Option<Received<M>> {
        self.lock().pop_front()
    }

    async fn recv(&self) -> Option<Received<M>> {
        loop {
            // Read before the queue: whoever closes has pushed its last message by then.
            let closed = self.closed.load(Ordering::Acquire);
            if let Some(received) = self.take() {
                return Some(received);
            }
            if closed {
                self.arrived.notify_one(); // another call that waits must wake, too
                return None;
            }
            self.arrived.notified().await;
        }
    }

    fn counters(&self) -> Counters {
        let _unread = self.lock();
        Counters {
            received: self.received.load(Ordering::Relaxed),
            lost: self.lost.load(Ordering::Relaxed),
            overwritten: self.overwritten.load(Ordering::Relaxed),
            undecodable: self.undecodable.load(Ordering::Relaxed),
            wrong_type: self.wrong_type.load(Ordering::Relaxed),
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Received<M>>> {
        // The queue is whole after every statement, so a panic elsewhere under the lock has left it usable.
        self.unread.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(inbox: &Inbox<u32>) -> Vec<u32> {
        std::iter::from_fn(|| inbox.take().map(|received| received.message)).collect()
    }

    #[test]
    fn an_inbox_for_one_holds_the_newest_message_and_counts_the_others() {
        let inbox = Inbox::new(1, NodeClock::system());
        (0..10).for_each(|i| inbox.push(i, Instant::now()));
        assert_eq!(drain(&inbox), [9]);
        assert_eq!(inbox.counters(), Counters { received: 10, overwritten: 9, ..Counters::default() });
    }

    #[test]
    fn an_inbox_for_three_holds_the_newest_three_in_order() {
        let inbox = Inbox::new(3, NodeClock::system());
        (0..10).for_each(|i| inbox.push(i, Instant::now()));
        assert_eq!(drain(&inbox), [7, 8, 9]);
        (10..12).for_each(|i| inbox.push(i, Instant::now()));
        assert_eq!(drain(&inbox), [10, 11]);
        assert_eq!(inbox.counters(), Counters { received: 12, overwritten: 7, ..Counters::default() });
    }

    #[tokio::test]
    async fn a_waiting_reader_gets_what_comes_and_then_hears_of_the_end() {
        let inbox = Arc::new(Inbox::new(1, NodeClock::system()));
        let reader = tokio::spawn({
            let inbox = Arc::clone(&inbox);
            async move { (inbox.recv().await.map(|r| r.message), inbox.recv().await.map(|r| r.message)) }
        });
        tokio::task::yield_now().await;
        inbox.push(1, Instant::now());
        tokio::task::yield_now().await;
        inbox.close();
        assert_eq!(reader.await.unwrap(), (Some(1), None));
    }

    #[tokio::test]
    async fn what_was_unread_at_the_end_is_still_delivered() {
        let inbox = Inbox::new(4, NodeClock::system());
        inbox.push(1, Instant::now());
        inbox.push(2, Instant::now());
        inbox.close();
        assert_eq!(inbox.recv().await.map(|r| r.message), Some(1));
        assert_eq!(inbox.recv().await.map(|r| r.message), Some(2));
        assert_eq!(inbox.recv().await, None);
        assert_eq!(inbox.recv().await, None);
    }
}
