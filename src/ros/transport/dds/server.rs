//! Services on DDS: one server that speaks every mapping.
//!
//! The crate's servers are bound to one mapping each. Ours takes requests as raw bytes, finds out who asks, and reads and
//! answers as that client's middleware does:
//!
//! | mapping | before the request | before the response | call's identity |
//! |---|---|---|---|
//! | Enhanced | nothing | nothing | inline QoS "related sample identity", else the request sample's own |
//! | Cyclone | client (8 bytes), sequence number (8) | the same, unchanged | that header |
//! | Basic | sample identity (24), instance name | sample identity (24), exception code | that header |
//!
//! The crate gives raw bytes away without their byte order. They are taken for little-endian, which all machines are that
//! ROS 2 runs on.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Duration,
};

use ros2_client::{Gid, Name, RmwRequestId, ServiceTypeName, qos as crate_qos, qos::QosProfile};
use rustdds::{
    GUID, RepresentationIdentifier,
    serialization::{Error as CdrError, deserialize_from_cdr_with_rep_id, to_writer_with_rep_id},
};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, DeserializeOwned, SeqAccess, Visitor},
    ser::SerializeTuple,
};
use tokio::{sync::watch, task::AbortHandle, time::timeout};

use super::{super::service::Counts, Node, middleware};
use crate::ros::{
    srv::Service,
    transport::{RosError, ServiceMapping},
};

/// Longest request that is taken, in bytes. Setting every parameter of a node at once stays far below.
const MAX_REQUEST: usize = 256 << 10;

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

const CDR: RepresentationIdentifier = RepresentationIdentifier::CDR_LE;

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

/// The mapping that a client's middleware speaks. Its vendor stands at the head of its identifier.
fn mapping_of_vendor(client: Gid) -> ServiceMapping {
    const ECLIPSE_CYCLONE: [u8; 2] = [0x01, 0x10];
    if client.to_bytes16().starts_with(&ECLIPSE_CYCLONE) {
        ServiceMapping::Cyclone
    } else {
        ServiceMapping::Enhanced
    }
}

/// Who asked, and what must stand before the answer.
struct Caller {
    id: RmwRequestId,
    header: ReplyHeader,
}

enum ReplyHeader {
    None,
    Cyclone(CycloneHeader),
    Basic(SampleIdentity),
}

/// Names a call for `rmw_cyclonedds`. It goes back as it came; what is in it is the client's business.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct CycloneHeader {
    client: u64,
    sequence: i64,
}

/// Names a call for the OMG's "basic" mapping.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct SampleIdentity {
    writer: [u8; 16],
    sequence_high: i32,
    sequence_low: u32,
}

impl Caller {
    /// Splits a request into the caller and what is asked. Header and data are read as one structure, so that the data is
    /// aligned as the client wrote it.
    fn read<R: DeserializeOwned>(
        mapping: ServiceMapping,
        id: RmwRequestId,
        bytes: &[u8],
    ) -> Result<(Self, R), CdrError> {
        fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CdrError> {
            deserialize_from_cdr_with_rep_id::<T>(bytes, CDR).map(|(value, _)| value)
        }
        Ok(match mapping {
            ServiceMapping::Auto | ServiceMapping::Enhanced => {
                (Self { id, header: ReplyHeader::None }, decode(bytes)?)
            }
            ServiceMapping::Cyclone => {
                let (header, request) = decode(bytes)?;
                (Self { id, header: ReplyHeader::Cyclone(header) }, request)
            }
            ServiceMapping::Basic => {
                // The second field names one of several instances of a service; ROS 2 has but one.
                let (identity, _instance, request) = decode::<(SampleIdentity, String, R)>(bytes)?;
                (Self { id, header: ReplyHeader::Basic(identity) }, request)
            }
        })
    }

    /// The response as it goes on the wire.
    fn write<R: Serialize>(&self, response: &R) -> Result<Vec<u8>, CdrError> {
        const NO_EXCEPTION: u32 = 0;
        let mut bytes = Vec::new();
        match &self.header {
            ReplyHeader::None => to_writer_with_rep_id(&mut bytes, response, CDR),
            ReplyHeader::Cyclone(header) => to_writer_with_rep_id(&mut bytes, &(header, response), CDR),
            ReplyHeader::Basic(identity) => {
                to_writer_with_rep_id(&mut bytes, &(identity, NO_EXCEPTION, response), CDR)
            }
        }?;
        Ok(bytes)
    }
}

/// The bytes of a message as they are on the wire, whatever they mean.
#[derive(Debug, Clone, PartialEq)]
struct Raw(Vec<u8>);

impl ros2_client::Message for Raw {}

impl Serialize for Raw {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // Unlike a sequence, a tuple has no length in CDR.
        let mut tuple = serializer.serialize_tuple(self.0.len())?;
        self.0.iter().try_for_each(|byte| tuple.serialize_element(byte))?;
        tuple.end()
    }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ToTheEnd;
        impl<'de> Visitor<'de> for ToTheEnd {
            type Value = Raw;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "at most {MAX_REQUEST} bytes")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Raw, A::Error> {
                let mut bytes = Vec::new();
                // A byte fits everywhere, so the one thing that can go wrong is the end.
                while let Ok(Some(byte)) = sequence.next_element() {
                    bytes.push(byte);
                }
                if bytes.len() > MAX_REQUEST {
                    return Err(de::Error::invalid_length(bytes.len(), &self));
                }
                Ok(Raw(bytes))
            }
        }
        deserializer.deserialize_tuple(MAX_REQUEST + 1, ToTheEnd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ros::srv::{Empty, Names, Parameter, SetParametersRequest, TriggerResponse};

    fn id(vendor: [u8; 2]) -> RmwRequestId {
        let mut gid = [7; 16];
        gid[..2].copy_from_slice(&vendor);
        RmwRequestId { writer_gid: Gid::from(gid), sequence_number: 42 }
    }

    fn cdr<T: Serialize>(value: &T) -> Vec<u8> {
        let mut bytes = Vec::new();
        to_writer_with_rep_id(&mut bytes, value, CDR).unwrap();
        bytes
    }

    #[test]
    fn the_vendor_of_a_client_decides_the_mapping() {
        for (vendor, mapping) in [
            ([0x01, 0x10], ServiceMapping::Cyclone),  // Eclipse Cyclone DDS
            ([0x01, 0x0f], ServiceMapping::Enhanced), // eProsima Fast DDS
            ([0x01, 0x12], ServiceMapping::Enhanced), // RustDDS
            ([0x01, 0x01], ServiceMapping::Enhanced), // RTI Connext
        ] {
            assert_eq!(mapping_of_vendor(id(vendor).writer_gid), mapping, "{vendor:?}");
        }
    }

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

    #[test]
    fn bytes_pass_through_as_they_are() {
        for bytes in [vec![], vec![1], (0..=255).collect::<Vec<u8>>()] {
            assert_eq!(cdr(&Raw(bytes.clone())), bytes);
            let (raw, read) = deserialize_from_cdr_with_rep_id::<Raw>(&bytes, CDR).unwrap();
            assert_eq!((raw, read), (Raw(bytes.clone()), bytes.len()));
        }
    }

    #[test]
    fn a_request_beyond_the_limit_is_refused() {
        let fits = vec![0; MAX_REQUEST];
        assert!(deserialize_from_cdr_with_rep_id::<Raw>(&fits, CDR).is_ok());
        let exceeds = vec![0; MAX_REQUEST + 1];
        assert!(deserialize_from_cdr_with_rep_id::<Raw>(&exceeds, CDR).is_err());
    }

    #[test]
    fn cyclones_header_goes_back_as_it_came_and_the_data_follows_it() {
        let mut request: Vec<u8> = (1..=16).collect();
        request.extend([1, 0, 0, 0, 5, 0, 0, 0, b'r', b'a', b't', b'e', 0]);
        let (caller, names) =
            Caller::read::<Names>(ServiceMapping::Cyclone, id([1, 0x10]), &request).unwrap();
        assert_eq!(names.names, ["rate"]);
        let answer = caller.write(&TriggerResponse { success: true, message: "x".to_owned() }).unwrap();
        assert_eq!(answer[..16], request[..16]);
        assert_eq!(answer[16..], [1, 0, 0, 0, 2, 0, 0, 0, b'x', 0]);
    }

    #[test]
    fn the_basic_mapping_names_the_call_before_the_data() {
        let identity = SampleIdentity { writer: [9; 16], sequence_high: 0, sequence_low: 3 };
        let names = Names { names: vec!["rate".to_owned()] };
        let request = cdr(&(identity, "instance", &names));
        let (caller, read) = Caller::read::<Names>(ServiceMapping::Basic, id([1, 1]), &request).unwrap();
        assert_eq!(read, names);
        let answer = caller.write(&Empty).unwrap();
        assert_eq!(answer, [cdr(&identity), vec![0, 0, 0, 0, 0]].concat());
    }

    #[test]
    fn the_enhanced_mapping_carries_the_data_alone() {
        let names = Names { names: vec!["rate".to_owned(), String::new()] };
        let (caller, read) =
            Caller::read::<Names>(ServiceMapping::Enhanced, id([1, 0xf]), &cdr(&names)).unwrap();
        assert_eq!(read, names);
        assert_eq!(caller.write(&Empty).unwrap(), [0]);
    }

    #[test]
    fn an_empty_request_may_come_with_or_without_its_byte() {
        for bytes in [&[][..], &[0], &[0, 0, 0, 0]] {
            assert!(Caller::read::<Empty>(ServiceMapping::Enhanced, id([1, 0xf]), bytes).is_ok());
        }
        assert!(Caller::read::<Empty>(ServiceMapping::Cyclone, id([1, 0x10]), &[0; 15]).is_err());
    }

    #[test]
    fn lengths_that_lie_are_errors() {
        let whole = cdr(&SetParametersRequest { parameters: vec![Parameter::default()] });
        for length in 0..whole.len() {
            let cut = &whole[..length];
            assert!(
                Caller::read::<SetParametersRequest>(ServiceMapping::Enhanced, id([1, 0xf]), cut).is_err(),
                "{length}"
            );
        }
        let hostile = [0xff; 64];
        assert!(Caller::read::<Names>(ServiceMapping::Cyclone, id([1, 0x10]), &hostile).is_err());
    }
}
