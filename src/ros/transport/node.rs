//! A node: where topics are subscribed to and published.

use std::sync::Arc;

use super::{
    backend,
    clock::NodeClock,
    error::RosError,
    name::NodeName,
    options::{NodeOptions, ServiceMapping, kernel_receive_buffer_limit, receive_buffer_warning},
    qos::Qos,
    service::{Counts, ServiceServer},
    subscription::{Inbox, Subscription},
};
use crate::ros::{
    msg::{Clock, Message, Time},
    srv::Service,
};

/// A node on the network. Clones are handles of the same node.
#[derive(Clone)]
pub struct RosNode {
    name: NodeName,
    clock: NodeClock,
    service_mapping: ServiceMapping,
    backend: Arc<backend::Node>,
}

impl RosNode {
    /// Joins the network; takes some tens of milliseconds. Needs a tokio runtime, where the node's tasks will run.
    ///
    /// # Errors
    /// A bad name or environment variable, no runtime, or no free port.
    pub fn new(options: &NodeOptions) -> Result<Self, RosError> {
        let runtime = tokio::runtime::Handle::try_current().map_err(|_| RosError::NoRuntime)?;
        let name = NodeName::new(&options.namespace, &options.name)?.with_remaps(&options.remaps)?;
        let lookup = |name: &str| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
        let network = options.network(lookup)?;
        if !cfg!(feature = "r2r") && lookup("ROS_STATIC_PEERS").is_some_and(|peers| !peers.is_empty()) {
            tracing::warn!("ROS_STATIC_PEERS is set, but this transport finds its peers by itself only");
        }
        if let Some(warning) = kernel_receive_buffer_limit().and_then(receive_buffer_warning) {
            tracing::warn!("{warning}");
        }
        let backend =
            Arc::new(backend::Node::open(&name, network, options.socket_receive_buffer, runtime.clone())?);
        tracing::info!(
            "node {} is up: {}, domain {}, {}",
            name.qualified(),
            backend::description(),
            network.domain_id,
            if network.localhost_only { "this machine only" } else { "all networks" }
        );
        let clock = if options.use_sim_time { NodeClock::simulated() } else { NodeClock::system() };
        let node = Self { name, clock, service_mapping: options.service_mapping, backend };
        if options.use_sim_time {
            let times = node.subscribe::<Clock>("/clock", Qos::clock(), 1)?;
            tracing::info!("the node's clock follows {}", times.topic());
            let clock = node.clock.clone();
            // Ends with the node, which ends its subscriptions.
            runtime.spawn(async move {
                while let Some(received) = times.recv().await {
                    clock.set(&received.message.clock);
                }
            });
        }
        Ok(node)
    }

    /// What carries the messages.
    pub fn transport(&self) -> String {
        backend::description()
    }

    /// The node's name.
    pub fn name(&self) -> &NodeName {
        &self.name
    }

    /// Subscribes to a topic, keeping the newest `keep` unread messages (at least one).
    ///
    /// # Errors
    /// A bad topic name, a node that has been shut down, or a refusal of the middleware.
    pub fn subscribe<M: Message>(
        &self,
        topic: &str,
        qos: Qos,
        keep: usize,
    ) -> Result<Subscription<M>, RosError> {
        let topic = self.name.resolve(topic)?;
        let inbox = Arc::new(Inbox::new(keep, self.clock.clone()));
        let reader = self.backend.subscribe(&topic, qos, Arc::clone(&inbox))?;
        Ok(Subscription::new(topic, inbox, reader))
    }

    /// Announces a publisher of a topic.
    ///
    /// # Errors
    /// As [`RosNode::subscribe`].
    pub fn publisher<M: Message>(&self, topic: &str, qos: Qos) -> Result<Publisher<M>, RosError> {
        let topic = self.name.resolve(topic)?;
        let writer = self.backend.advertise(&topic, qos)?;
        Ok(Publisher { topic, writer })
    }

    /// Offers a service: `handler` is called for one request after the other, in a task of its own, and may take its
    /// time; a handler that needs none returns [`std::future::ready`]. A request that is not one is counted, not answered.
    ///
    /// # Errors
    /// As [`RosNode::subscribe`].
    pub fn serve<S, F>(
        &self,
        service: &str,
        handler: impl FnMut(S::Request) -> F + Send + 'static,
    ) -> Result<ServiceServer, RosError>
    where
        S: Service,
        F: Future<Output = S::Response> + Send + 'static,
    {
        let name = self.name.resolve(service)?;
        let counts = Arc::<Counts>::default();
        let end = self.backend.serve::<S, _, F>(&name, self.service_mapping, Arc::clone(&counts), handler)?;
        Ok(ServiceServer::new(name, counts, end))
    }

    /// The node's clock: the system's, or with `use_sim_time` what `/clock` told last. Zero while it has told nothing
    /// yet; where that makes a difference, ask [`RosNode::clock`].
    pub fn now(&self) -> Time {
        self.clock.now().unwrap_or_default()
    }

    /// The node's clock; `None` while `use_sim_time` waits for the first `/clock`.
    pub fn clock(&self) -> Option<Time> {
        self.clock.now()
    }

    /// Leaves the network so that peers notice, which takes some tenths of a second. Subscriptions end, publishers
    /// refuse.
    pub async fn shutdown(self) {
        self.backend.close().await;
    }
}

/// A publisher of one topic. Dropping it withdraws the announcement.
pub struct Publisher<M: Message> {
    topic: String,
    writer: backend::Writer<M>,
}

impl<M: Message> Publisher<M> {
    /// The topic's fully qualified name.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// Sends a message to whoever is subscribed. It is taken by value since an image would else be copied once more.
    /// Does not wait, but for at most 100 ms while a reliable subscriber is thousands of messages behind.
    ///
    /// # Errors
    /// [`RosError::Congested`] where a reliable subscriber has stopped acknowledging, [`RosError::ShutDown`] after
    /// [`RosNode::shutdown`].
    pub fn publish(&self, message: M) -> Result<(), RosError> {
        self.writer.write(message)
    }

    /// How many subscribers are connected.
    pub fn subscriber_count(&self) -> usize {
        self.writer.subscriber_count()
    }
}
