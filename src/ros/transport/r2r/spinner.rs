//! The thread that owns the node: spins it, empties its streams, does jobs for the others.

use std::{
    sync::{Arc, atomic::Ordering, mpsc},
    time::{Duration, Instant},
};

use futures_util::{FutureExt as _, Stream, StreamExt as _};
use r2r::{PublisherUntyped, QosProfile};
use tokio::sync::watch;

use super::{super::subscription::Inbox, TapState};
use crate::ros::{cdr, msg::Message};

/// Longest wait for a message, after which jobs get their turn.
const SPIN: Duration = Duration::from_millis(5);

/// How often the publishers of each topic are counted.
const GRAPH_PERIOD: Duration = Duration::from_millis(100);

/// Something to do with the node.
pub(super) type Job = Box<dyn FnOnce(&mut Spinner) + Send>;

/// The node and what is connected to it.
pub(super) struct Spinner {
    // Dropped before the node.
    taps: Vec<Box<dyn Drain>>,
    /// Without anything to wait for, `rcl` does not wait at all.
    heartbeat: r2r::Timer,
    node: r2r::Node,
}

impl Spinner {
    pub(super) fn open(name: &str, namespace: &str) -> r2r::Result<Self> {
        let mut node = r2r::Node::create(r2r::Context::create()?, name, namespace)?;
        let heartbeat = node.create_wall_timer(Duration::from_secs(1))?;
        Ok(Self { taps: Vec::new(), heartbeat, node })
    }

    /// Spins until it is told to stop or nobody can send jobs any more.
    pub(super) fn run(mut self, jobs: &mpsc::Receiver<Job>, stop: &watch::Receiver<bool>) {
        let mut counted = Instant::now();
        while !*stop.borrow() {
            loop {
                match jobs.try_recv() {
                    Ok(job) => job(&mut self),
                    Err(mpsc::TryRecvError::Empty) => break,
                    Err(mpsc::TryRecvError::Disconnected) => return,
                }
            }
            self.node.spin_once(SPIN);
            self.taps.retain_mut(|tap| tap.drain());
            if counted.elapsed() >= GRAPH_PERIOD {
                counted = Instant::now();
                self.taps.iter().for_each(|tap| tap.count_publishers(&self.node));
                // Its stream must not fill up.
                while self.heartbeat.tick().now_or_never().is_some() {}
            }
        }
    }

    pub(super) fn subscribe<M: Message>(
        &mut self,
        name: &str,
        type_name: &str,
        profile: QosProfile,
        tap: Tap<M>,
    ) -> r2r::Result<()> {
        let stream = self.node.subscribe_raw(name, type_name, profile)?;
        self.taps.push(Box::new(Tapped { tap, stream }));
        Ok(())
    }

    pub(super) fn advertise(
        &mut self,
        name: &str,
        type_name: &str,
        profile: QosProfile,
    ) -> r2r::Result<PublisherUntyped> {
        self.node.create_publisher_untyped(name, type_name, profile)
    }

    pub(super) fn withdraw(&mut self, publisher: PublisherUntyped) {
        self.node.destroy_publisher_untyped(publisher);
    }

    pub(super) fn node(&mut self) -> &mut r2r::Node {
        &mut self.node
    }
}

/// A topic's stream and where its messages go.
trait Drain {
    /// Moves on what has come. `false` once nobody wants it any more.
    fn drain(&mut self) -> bool;

    fn count_publishers(&self, node: &r2r::Node);
}

/// Where a topic's messages go. Its end, with the node's or by a panic, is the end of the subscription.
pub(super) struct Tap<M> {
    topic: String,
    type_name: String,
    inbox: Arc<Inbox<M>>,
    state: Arc<TapState>,
}

impl<M: Message> Tap<M> {
    pub(super) fn new(topic: String, type_name: String, inbox: Arc<Inbox<M>>, state: Arc<TapState>) -> Self {
        Self { topic, type_name, inbox, state }
    }

    fn take(&self, payload: &[u8]) {
        let came = Instant::now();
        match cdr::decode(payload) {
            Ok(message) => self.inbox.push(message, came),
            Err(error) => {
                let count = self.inbox.count_undecodable();
                // The 1st, 2nd, 4th, 8th, ...: a publisher of rubbish must not fill the log as well.
                if count.is_power_of_two() {
                    let (topic, kind) = (&self.topic, &self.type_name);
                    tracing::warn!("{count} messages on {topic} so far are not {kind}: {error}");
                }
            }
        }
    }
}

impl<M> Drop for Tap<M> {
    fn drop(&mut self) {
        self.inbox.close();
    }
}

struct Tapped<M, S> {
    tap: Tap<M>,
    stream: S,
}

impl<M: Message, S: Stream<Item = Vec<u8>> + Unpin> Drain for Tapped<M, S> {
    fn drain(&mut self) -> bool {
        while let Some(next) = self.stream.next().now_or_never() {
            match next {
                Some(payload) => self.tap.take(&payload),
                None => return false,
            }
        }
        !self.tap.state.dropped.load(Ordering::Relaxed)
    }

    fn count_publishers(&self, node: &r2r::Node) {
        // Without an answer the last count stands.
        if let Ok(publishers) = node.get_publishers_info_by_topic(&self.tap.topic, false) {
            self.tap.state.publishers.store(publishers.len(), Ordering::Relaxed);
        }
    }
}
