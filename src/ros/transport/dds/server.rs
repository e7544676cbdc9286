//! Services on DDS: one server that speaks every mapping.
//!
//! The crate's servers are bound to one mapping each. Ours takes requests as raw bytes, finds out who asks, and reads and
//! answers as that client's middleware does; see [`super::call`].

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Duration,
};

use ros2_client::{Gid, Name, RmwRequestId, ServiceTypeName, qos as crate_qos, qos::QosProfile};
use rustdds::GUID;
use serde::Serialize;
use tokio::{sync::watch, task::AbortHandle, time::timeout};

use super::{
    super::service::Counts,
    Node,
    call::{Caller, Raw, mapping_of_vendor},
    middleware,
};
use crate::ros::{
    srv::Service,
    transport::{RosError, ServiceMapping},
};

/// How long a client's first answer waits for the client's reader to be discovered. The request can be faster than that.
const DISCOVERY: Duration = Duration::from_secs(1);
const DISCOVERY_POLL: Duration = Duration::from_millis(5);

/// How long RustDDS may take to connect its writer to a reader that it has discovered. It connects at once, but in another
/// thread, and does not tell us when.
const CONNECTION: Duration = Duration::from_millis(50);

/// How long an answer waits for room in the send window.
const SEND_WAIT: Duration = Duration::from_millis(500);

/// Calls that wait, as in the services profile of ROS 2.
const DEPTH: usize = 10;

/// The task that answers; it ends with this handle.
pub(in crate::ros::transport) struct Server(AbortHandle);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.abort();
    }
}

type RawServer = ros2_client::Server<Raw, Raw>;

impl Node {
    pub(in crate::ros::transport) fn serve<S, H, F>(
        self: &Arc<Self>,
        name: &str,
        mapping: ServiceMapping,
        counts: Arc<Counts>,
        handler: H,
    ) -> Result<Server, RosError>
    where
        S: Service,
        H: FnMut(S::Request) -> F + Send + 'static,
        F: Future<Output = S::Response> + Send + 'static,
    {
        let action = || format!("serve {name}");
        let crate_name = Name::parse(name).map_err(|e| middleware(action(), e))?;
        let kind = ServiceTypeName::new(S::PACKAGE, S::NAME);
        let mut live = self.lock();
        let live = live.as_mut().ok_or(RosError::ShutDown)?;
        let server: RawServer = live
            .node
            // Of the three, this is the mapping that leaves the data as it is.
            .create_server(ros2_client::ServiceMapping::Enhanced, &crate_name, &kind, profile(), profile())
            .map_err(|e| middleware(action(), e))?;
        let answering = Answering {
            node: Arc::downgrade(self),
            name: name.to_owned(),
            reply_topic: format!("rr{name}Reply"),
            mapping,
            counts,
            server,
        };
        let task = self.runtime.spawn(answering.run::<S, H, F>(handler, self.stop.subscribe()));
        let abort = task.abort_handle();
        live.readers.retain(|reader| !reader.is_finished());
        live.readers.push(task);
        Ok(Server(abort))
    }

    /// The readers of a topic that have been discovered, of the participant with this GUID prefix.
    fn readers_of(&self, dds_topic: &str, participant: &[u8]) -> Vec<GUID> {
        let Some(domain) = self.lock().as_ref().map(|live| live.context.domain_participant()) else {
            return Vec::new();
        };
        domain
            .discovered_readers()
            .into_iter()
            .filter(|reader| reader.subscription_topic_data.topic_name() == dds_topic)
            .map(|reader| reader.reader_proxy.remote_reader_guid)
            .filter(|reader| reader.to_bytes().starts_with(participant))
            .collect()
    }
}

fn profile() -> QosProfile {
    QosProfile::publisher_default()
        .reliability_reliable(crate_qos::WhenFull::DEFAULT)
        .history(crate_qos::History::KeepLast { depth: DEPTH })
}

/// A service's task.
struct Answering {
    node: Weak<Node>,
    name: String,
    reply_topic: String,
    mapping: ServiceMapping,
    counts: Arc<Counts>,
    server: RawServer,
}

impl Answering {
    async fn run<S, H, F>(self, mut handler: H, mut stop: watch::Receiver<bool>)
    where
        S: Service,
        H: FnMut(S::Request) -> F + Send + 'static,
        F: Future<Output = S::Response> + Send + 'static,
    {
        let mut clients = Clients::default();
        loop {
            let received = tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => break,
                received = self.server.async_receive_request() => received,
            };
            match received {
                Ok((id, raw)) => match Caller::read::<S::Request>(self.mapping_of(id), id, &raw.0) {
                    Ok((caller, request)) => {
                        let response = handler(request).await;
                        self.answer(&mut clients, &caller, &response).await;
                    }
                    Err(error) => self.damaged(&error),
                },
                Err(error) => self.damaged(&error),
            }
            // A flood of calls must not keep this thread from the other tasks.
            tokio::task::yield_now().await;
        }
    }

    fn mapping_of(&self, id: RmwRequestId) -> ServiceMapping {
        match self.mapping {
            ServiceMapping::Auto => mapping_of_vendor(id.writer_gid),
            configured => configured,
        }
    }

    fn damaged(&self, error: &dyn std::fmt::Display) {
        let count = self.counts.count_damaged();
        // The 1st, 2nd, 4th, 8th, ...: whoever sends rubbish must not fill the log as well.
        if count.is_power_of_two() {
            tracing::warn!("{count} requests of {} so far are not for this service: {error}", self.name);
        }
    }

    async fn answer<R: Serialize>(&self, clients: &mut Clients, caller: &Caller, response: &R) {
        let sent = async {
            let raw = caller.write(response).map_err(|e| e.to_string())?;
            self.connected(clients, caller.id.writer_gid).await;
            timeout(SEND_WAIT, self.server.async_send_response(caller.id, Raw(raw)))
                .await
                .map_err(|_| "the send window is full".to_owned())?
                .map_err(|e| e.to_string())
        };
        match sent.await {
            Ok(()) => self.counts.count_answered(),
            Err(error) => {
                self.counts.count_unsent();
                tracing::warn!("a call of {} could not be answered: {error}", self.name);
            }
        }
    }

    /// Before the first answer to a client: waits until its reader is connected, without which the answer would go
    /// nowhere. Not for ever, since a client may have left.
    async fn connected(&self, clients: &mut Clients, client: Gid) {
        if clients.0.contains_key(&client) {
            return;
        }
        let bytes = client.to_bytes16();
        let reader = async {
            loop {
                let node = self.node.upgrade()?;
                if let Some(reader) =
                    clients.reader_for(client, &node.readers_of(&self.reply_topic, &bytes[..12]))
                {
                    return Some(reader);
                }
                drop(node);
                tokio::time::sleep(DISCOVERY_POLL).await;
            }
        };
        let reader = timeout(DISCOVERY, reader).await.ok().flatten();
        match reader {
            Some(_) => tokio::time::sleep(CONNECTION).await,
            None => tracing::debug!("nobody is known to listen for the answer of {}", self.name),
        }
        clients.insert(client, reader);
    }
}

/// The clients that have called, each with the reader that hears its answers. Nothing on the wire says which reader that
/// is: Fast DDS calls clients by it, for others it is the one that no other client of the same participant has.
#[derive(Default)]
struct Clients(HashMap<Gid, Option<GUID>>);

impl Clients {
    /// Clients remembered. Each `ros2 service call` is a new one.
    const MAX: usize = 256;

    fn reader_for(&self, client: Gid, discovered: &[GUID]) -> Option<GUID> {
        let own = discovered.iter().find(|reader| Gid::from(**reader) == client);
        let free =
            || discovered.iter().find(|reader| !self.0.values().flatten().any(|taken| taken == *reader));
        own.or_else(free).copied()
    }

    fn insert(&mut self, client: Gid, reader: Option<GUID>) {
        if self.0.len() >= Self::MAX {
            self.0.clear();
        }
        self.0.insert(client, reader);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_hears_for_one_client_is_not_taken_for_anothers() {
        let guid = |last: u8| GUID::from_bytes(std::array::from_fn(|i| if i == 15 { last } else { 7 }));
        let gid = |last: u8| Gid::from(guid(last));
        let mut clients = Clients::default();
        assert_eq!(clients.reader_for(gid(1), &[]), None);
        assert_eq!(clients.reader_for(gid(1), &[guid(2)]), Some(guid(2)));
        clients.insert(gid(1), Some(guid(2)));
        assert_eq!(clients.reader_for(gid(3), &[guid(2)]), None, "that of the first client");
        assert_eq!(clients.reader_for(gid(3), &[guid(2), guid(4)]), Some(guid(4)));
        assert_eq!(clients.reader_for(gid(4), &[guid(5), guid(4)]), Some(guid(4)), "named by its reader");
        (0..=255).for_each(|i| clients.insert(Gid::from([i; 16]), None));
        assert!(clients.0.len() <= Clients::MAX);
    }
}
