//! The embedded transport: `ros2-client` on RustDDS, in this process, with no ROS installation.
//!
//! Where it departs from how the crate is commonly used:
//!
//! - Topics are made through the DDS participant, since the crate's own profile cannot limit the reader's cache.
//! - Its parameter services stay off: they speak only one of the two service mappings that ROS 2 middlewares use.
//! - RustDDS connects publishers and subscribers by topic name alone, so the type that a publisher announces is checked
//!   here before its messages are delivered.

mod call;
mod senders;
mod server;

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use ros2_client::{Context, Gid, MessageInfo, MessageTypeName, WriteError};
use rustdds::{
    DomainParticipantBuilder, QosPolicies, QosPolicyBuilder, Topic, TopicKind,
    policy::{Durability, History, Reliability, ResourceLimits},
};
use tokio::{
    runtime::Handle,
    sync::watch,
    task::{AbortHandle, JoinHandle},
    time::timeout,
};

use super::{error::RosError, name::NodeName, options::Network, qos::Qos, subscription::Inbox};
use crate::ros::msg::{Message, Time};
use senders::Senders;
pub(super) use server::Server;

/// How long the parts of a shutdown may take; what is not done by then is left to the end of the process.
const TASKS_END: Duration = Duration::from_millis(200);
const PARTICIPANT_END: Duration = Duration::from_millis(500);

/// Longest time that a message is believed to have waited for us.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// How long a reliable publisher waits for room in its send window (8192 messages).
const SEND_WINDOW_WAIT: rustdds::Duration = rustdds::Duration::from_millis(100);

/// What this transport is, for the log.
pub(super) fn description() -> String {
    format!("embedded DDS, node graph of ROS 2 {}", ros2_client::COMPILED_ROS_DISTRO)
}

/// The node and what runs for it, until it is closed.
pub(super) struct Node {
    live: Mutex<Option<Live>>,
    stop: watch::Sender<bool>,
    runtime: Handle,
}

struct Live {
    node: ros2_client::Node,
    context: Context,
    spinner: JoinHandle<()>,
    readers: Vec<JoinHandle<()>>,
}

impl Node {
    pub(super) fn open(
        name: &NodeName,
        network: Network,
        socket_receive_buffer: usize,
        runtime: Handle,
    ) -> Result<Self, RosError> {
        let mut participant = DomainParticipantBuilder::new(network.domain_id)
            .socket_receive_buffer_size(socket_receive_buffer);
        if network.localhost_only {
            participant = participant.with_only_networks([IpAddr::V4(Ipv4Addr::LOCALHOST)]);
        }
        let context = participant
            .build()
            .map_err(|e| middleware(format!("join DDS domain {}", network.domain_id), e))
            .and_then(|participant| {
                Context::from_domain_participant(participant)
                    .map_err(|e| middleware("start DDS".to_owned(), e))
            })?;

        let action = || format!("create node {}", name.qualified());
        // Cannot fail: our own rules are stricter. Still an error and no panic.
        let crate_name =
            ros2_client::NodeName::new(name.namespace(), name.base()).map_err(|e| middleware(action(), e))?;
        let options = ros2_client::NodeOptions::new().enable_rosout(false).start_parameter_services(false);
        let mut node = context.new_node(crate_name, options).map_err(|e| middleware(action(), e))?;
        let spinner = node.spinner().map_err(|e| middleware(action(), e))?;
        let spinner = runtime.spawn(async move {
            if let Err(error) = spinner.spin().await {
                tracing::error!("the node graph is no longer kept up to date: {error}");
            }
        });

        let live = Live { node, context, spinner, readers: Vec::new() };
        Ok(Self { live: Mutex::new(Some(live)), stop: watch::Sender::new(false), runtime })
    }

    pub(super) fn subscribe<M: Message>(
        self: &Arc<Self>,
        topic: &str,
        qos: Qos,
        inbox: Arc<Inbox<M>>,
    ) -> Result<Reader<M>, RosError> {
        let action = || format!("subscribe to {topic}");
        let mut live = self.lock();
        let live = live.as_mut().ok_or(RosError::ShutDown)?;
        let dds_topic = create_topic::<M>(&live.context, topic, &reader_policies(qos))
            .map_err(|e| middleware(action(), e))?;
        // Without a profile of its own the reader takes the topic's, limits included.
        let reader =
            live.node.create_subscription::<M>(&dds_topic, None).map_err(|e| middleware(action(), e))?;
        let reader = Arc::new(reader);
        let senders = Senders::new(Arc::downgrade(self), dds_topic_name(topic), dds_type_name::<M>());
        let weak_reader = Arc::downgrade(&reader);
        let task = self.runtime.spawn(drain(reader, senders, inbox, self.stop.subscribe()));
        let abort = task.abort_handle();
        live.readers.retain(|reader| !reader.is_finished());
        live.readers.push(task);
        Ok(Reader { node: Arc::downgrade(self), reader: weak_reader, task: abort })
    }

    pub(super) fn advertise<M: Message>(
        self: &Arc<Self>,
        topic: &str,
        qos: Qos,
    ) -> Result<Writer<M>, RosError> {
        let action = || format!("publish {topic}");
        let mut live = self.lock();
        let live = live.as_mut().ok_or(RosError::ShutDown)?;
        let dds_topic = create_topic::<M>(&live.context, topic, &writer_policies(qos))
            .map_err(|e| middleware(action(), e))?;
        let writer =
            live.node.create_publisher::<M>(&dds_topic, None).map_err(|e| middleware(action(), e))?;
        Ok(Writer { node: Arc::downgrade(self), topic: topic.to_owned(), writer })
    }

    /// Leaves the network. The order matters: readers go first, then the node tells the graph, then its spinner ends,
    /// and only then the last owner of the participant lets go, which makes DDS tell the peers.
    pub(super) async fn close(&self) {
        let Some(Live { node, context, mut spinner, readers }) = self.lock().take() else { return };
        self.stop.send_replace(true);
        let readers_end = async {
            for reader in readers {
                // An error is the task of a dropped subscription, cancelled and gone.
                let _ = reader.await;
            }
        };
        if timeout(TASKS_END, readers_end).await.is_err() {
            tracing::debug!("a subscription still runs at shutdown");
        }
        drop(node); // stops the spinner
        if timeout(TASKS_END, &mut spinner).await.is_err() {
            spinner.abort();
        }
        let participant_end = tokio::task::spawn_blocking(move || drop(context));
        if timeout(PARTICIPANT_END, participant_end).await.is_err() {
            tracing::debug!("DDS still says good-bye at shutdown");
        }
    }

    /// The publishers of a topic on the network, with the message types they announce.
    fn announced_publishers(&self, dds_topic: &str) -> Vec<(Gid, String)> {
        let Some(participant) = self.lock().as_ref().map(|live| live.context.domain_participant()) else {
            return Vec::new();
        };
        participant
            .discovered_writers()
            .into_iter()
            .map(|writer| writer.publication_topic_data)
            .filter(|publication| publication.topic_name == dds_topic)
            .map(|publication| (Gid::from(publication.key), publication.type_name))
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Live>> {
        // Nothing of ours is half done under the lock, so a panic there has left the node usable.
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

/// The sending end of a topic.
pub(super) struct Writer<M: Message> {
    node: Weak<Node>,
    topic: String,
    writer: ros2_client::Publisher<M>,
}

impl<M: Message> Writer<M> {
    pub(super) fn write(&self, message: M) -> Result<(), RosError> {
        // The crate would accept the message and keep it for ever.
        if self.node.upgrade().is_none_or(|node| *node.stop.borrow()) {
            return Err(RosError::ShutDown);
        }
        self.writer.publish(message).map_err(|error| match error {
            WriteError::WouldBlock { .. } => RosError::Congested { topic: self.topic.clone() },
            other => middleware(format!("publish on {}", self.topic), other.forget_data()),
        })
    }

    pub(super) fn subscriber_count(&self) -> usize {
        let Some(node) = self.node.upgrade() else { return 0 };
        let live = node.lock();
        live.as_ref().map_or(0, |live| self.writer.get_subscription_count(&live.node))
    }
}

/// The receiving end of a topic: the task that drains it ends with this handle.
pub(super) struct Reader<M> {
    node: Weak<Node>,
    reader: Weak<ros2_client::Subscription<M>>,
    task: AbortHandle,
}

impl<M: Message> Reader<M> {
    pub(super) fn publisher_count(&self) -> usize {
        let (Some(node), Some(reader)) = (self.node.upgrade(), self.reader.upgrade()) else { return 0 };
        let live = node.lock();
        live.as_ref().map_or(0, |live| reader.get_publisher_count(&live.node))
    }
}

impl<M> Drop for Reader<M> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn drain<M: Message>(
    reader: Arc<ros2_client::Subscription<M>>,
    mut senders: Senders,
    inbox: Arc<Inbox<M>>,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        let taken = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => break,
            taken = reader.async_take() => taken,
        };
        match taken {
            Ok((message, info)) => {
                let heard = senders.hear(&info);
                inbox.count_lost(heard.lost);
                if heard.type_agrees {
                    inbox.push(message, came_at(&info));
                } else {
                    inbox.count_wrong_type();
                }
            }
            Err(error) => {
                let count = inbox.count_undecodable();
                // The 1st, 2nd, 4th, 8th, ...: a publisher of rubbish must not fill the log as well.
                if count.is_power_of_two() {
                    senders.warn_undecodable(count, &error);
                }
            }
        }
        // A flood of messages must not keep this thread from the other tasks.
        tokio::task::yield_now().await;
    }
    inbox.close();
}

/// When the middleware had all of a message, which is before it was decoded here.
fn came_at(info: &MessageInfo) -> Instant {
    let now = Instant::now();
    let waited = info
        .received_timestamp()
        .and_then(|at| u64::try_from(Time::now().nanoseconds().saturating_sub(at.to_nanos())).ok())
        .map_or(Duration::ZERO, Duration::from_nanos);
    // More than a wait is a system clock that was set.
    if waited < LONGEST_WAIT { now.checked_sub(waited).unwrap_or(now) } else { now }
}

fn create_topic<M: Message>(
    context: &Context,
    topic: &str,
    policies: &QosPolicies,
) -> Result<Topic, rustdds::dds::CreateError> {
    let (name, kind) = (dds_topic_name(topic), dds_type_name::<M>());
    context.domain_participant().create_topic(name, kind, policies, TopicKind::NoKey)
}

/// `/joint_states` is `rt/joint_states` in DDS.
fn dds_topic_name(topic: &str) -> String {
    format!("rt{topic}")
}

/// `sensor_msgs/msg/Image` is `sensor_msgs::msg::dds_::Image_` in DDS.
fn dds_type_name<M: Message>() -> String {
    MessageTypeName::new(M::PACKAGE, M::NAME).dds_msg_type()
}

fn writer_policies(qos: Qos) -> QosPolicies {
    policies(qos, qos.depth).build()
}

fn reader_policies(qos: Qos) -> QosPolicies {
    let Some(max_samples) = qos.max_samples else { return policies(qos, qos.depth).build() };
    // RustDDS would raise the limit to the depth.
    let limit = depth_of(max_samples);
    policies(qos, qos.depth.min(max_samples))
        .resource_limits(ResourceLimits {
            max_samples: limit,
            max_instances: 1,
            max_samples_per_instance: limit,
        })
        .build()
}

fn policies(qos: Qos, depth: usize) -> QosPolicyBuilder {
    QosPolicyBuilder::new()
        .reliability(if qos.reliable {
            Reliability::Reliable { max_blocking_time: SEND_WINDOW_WAIT }
        } else {
            Reliability::BestEffort
        })
        .durability(if qos.latched { Durability::TransientLocal } else { Durability::Volatile })
        .history(History::KeepLast { depth: depth_of(depth) })
}

/// DDS counts samples from 1, in 32 bits.
fn depth_of(samples: usize) -> i32 {
    i32::try_from(samples).unwrap_or(i32::MAX).max(1)
}

fn middleware(action: String, source: impl std::error::Error + Send + Sync + 'static) -> RosError {
    RosError::Middleware { action, source: Box::new(source) }
}
