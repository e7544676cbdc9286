//! What a service call looks like on DDS, in each of the mappings that ROS 2 middlewares use:
//!
//! | mapping | before the request | before the response | call's identity |
//! |---|---|---|---|
//! | Enhanced | nothing | nothing | inline QoS "related sample identity", else the request sample's own |
//! | Cyclone | client (8 bytes), sequence number (8) | the same, unchanged | that header |
//! | Basic | sample identity (24), instance name | sample identity (24), exception code | that header |
//!
//! The crate gives raw bytes away without their byte order. They are taken for little-endian, which all machines are that
//! ROS 2 runs on.

use ros2_client::{Gid, RmwRequestId};
use rustdds::{
    RepresentationIdentifier,
    serialization::{Error as CdrError, deserialize_from_cdr_with_rep_id, to_writer_with_rep_id},
};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, DeserializeOwned, SeqAccess, Visitor},
    ser::SerializeTuple,
};

use crate::ros::transport::ServiceMapping;

/// Longest request that is taken, in bytes. Setting every parameter of a node at once stays far below.
const MAX_REQUEST: usize = 256 << 10;

const CDR: RepresentationIdentifier = RepresentationIdentifier::CDR_LE;

/// The mapping that a client's middleware speaks. Its vendor stands at the head of its identifier.
pub(super) fn mapping_of_vendor(client: Gid) -> ServiceMapping {
    const ECLIPSE_CYCLONE: [u8; 2] = [0x01, 0x10];
    if client.to_bytes16().starts_with(&ECLIPSE_CYCLONE) {
        ServiceMapping::Cyclone
    } else {
        ServiceMapping::Enhanced
    }
}

/// Who asked, and what must stand before the answer.
pub(super) struct Caller {
    pub(super) id: RmwRequestId,
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
    pub(super) fn read<R: DeserializeOwned>(
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
    pub(super) fn write<R: Serialize>(&self, response: &R) -> Result<Vec<u8>, CdrError> {
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
pub(super) struct Raw(pub(super) Vec<u8>);

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
