//! A message as it stands in a bag.

use std::{fmt, ops::Deref, ops::Range, sync::Arc};

use thiserror::Error;

use crate::ros::{
    Stamp,
    cdr::{self, CdrError},
    msg::Message,
};

/// A topic of a bag: what every message of it shares.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Channel {
    /// Name of the topic, e.g. `/joint_states`.
    pub topic: String,
    /// Type, e.g. `sensor_msgs/msg/JointState`.
    pub kind: String,
    /// How messages are serialised: `cdr` in every bag of ROS 2.
    pub encoding: String,
}

/// A message, not yet decoded.
#[derive(Clone)]
pub struct RawMessage {
    /// Topic and type.
    pub channel: Arc<Channel>,
    /// When it was recorded, by the recorder's clock.
    pub log_time: Stamp,
    /// When it was published, where the bag knows; else the log time.
    pub publish_time: Stamp,
    /// The message with its encapsulation header.
    pub data: Payload,
}

impl RawMessage {
    /// Name of the topic.
    pub fn topic(&self) -> &str {
        &self.channel.topic
    }

    /// The message.
    ///
    /// # Errors
    /// Another type or serialisation, data that is not of the type.
    pub fn decode<M: Message>(&self) -> Result<M, DecodeError> {
        if !is_type::<M>(&self.channel.kind) {
            let expected = format!("{}/msg/{}", M::PACKAGE, M::NAME);
            return Err(DecodeError::Type { expected, found: self.channel.kind.clone() });
        }
        if self.channel.encoding != "cdr" {
            return Err(DecodeError::Encoding(self.channel.encoding.clone()));
        }
        cdr::decode(&self.data).map_err(|error| DecodeError::Cdr { length: self.data.len(), error })
    }
}

impl fmt::Debug for RawMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { channel, log_time, publish_time, data } = self;
        f.debug_struct("RawMessage")
            .field("topic", &channel.topic)
            .field("kind", &channel.kind)
            .field("log_time", log_time)
            .field("publish_time", publish_time)
            .field("bytes", &data.len())
            .finish()
    }
}

/// Why a message of a bag is not the message that was wanted.
#[derive(Debug, Error)]
pub enum DecodeError {
    /// The topic has another type.
    #[error("expected the type {expected}, found {found:?}")]
    Type {
        /// The wanted type.
        expected: String,
        /// The topic's type.
        found: String,
    },
    /// The topic is not serialised as ROS 2 does it.
    #[error("expected messages serialised as \"cdr\", found {0:?}")]
    Encoding(String),
    /// The bytes are not such a message.
    #[error("{length} bytes: {error}")]
    Cdr {
        /// Bytes of the message.
        length: usize,
        /// What is wrong.
        #[source]
        error: CdrError,
    },
}

/// Whether a type's name in a bag is that of `M`: `sensor_msgs/msg/Image`, or without the middle part as some tools write.
pub fn is_type<M: Message>(kind: &str) -> bool {
    let rest = kind.strip_prefix(M::PACKAGE).and_then(|rest| rest.strip_prefix('/'));
    rest.is_some_and(|rest| rest.strip_prefix("msg/").unwrap_or(rest) == M::NAME)
}

/// Bytes of a message; those of one chunk share its memory.
#[derive(Clone)]
pub struct Payload {
    buffer: Arc<Vec<u8>>,
    /// Within `buffer`, checked when it is made.
    range: Range<usize>,
}

impl Payload {
    /// A part of a chunk; `None` where it reaches beyond the chunk.
    pub(super) fn part(buffer: &Arc<Vec<u8>>, range: Range<usize>) -> Option<Self> {
        buffer.get(range.clone())?;
        Some(Self { buffer: buffer.clone(), range })
    }

    /// Bytes of the memory that the message keeps alive.
    pub(super) fn held(&self) -> usize {
        self.buffer.len()
    }

    /// The same bytes in memory of their own, so that they no longer keep a whole chunk alive.
    pub(super) fn detached(&self) -> Self {
        self.to_vec().into()
    }
}

impl From<Vec<u8>> for Payload {
    fn from(bytes: Vec<u8>) -> Self {
        Self { range: 0..bytes.len(), buffer: Arc::new(bytes) }
    }
}

impl Deref for Payload {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.buffer.get(self.range.clone()).unwrap_or_default()
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({} bytes)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ros::msg::{self, Image};

    fn message(kind: &str, encoding: &str, data: Vec<u8>) -> RawMessage {
        let channel = Channel { topic: "/t".into(), kind: kind.into(), encoding: encoding.into() };
        RawMessage {
            channel: Arc::new(channel),
            log_time: Stamp(1),
            publish_time: Stamp(1),
            data: data.into(),
        }
    }

    #[test]
    fn types_are_known_by_either_name() {
        assert!(is_type::<Image>("sensor_msgs/msg/Image") && is_type::<Image>("sensor_msgs/Image"));
        for other in
            ["sensor_msgs/msg/Image2", "sensor_msgs/srv/Image", "sensor_msgsmsg/Image", "", "x/msg/Image"]
        {
            assert!(!is_type::<Image>(other), "{other}");
        }
    }

    #[test]
    fn what_is_not_the_wanted_message_is_named() {
        let text = cdr::encode(&msg::String { data: "hi".into() }).unwrap();
        let decoded = message("std_msgs/msg/String", "cdr", text.clone()).decode::<msg::String>().unwrap();
        assert_eq!(decoded.data, "hi");
        let error = |message: RawMessage| message.decode::<msg::String>().unwrap_err().to_string();
        let wrong = error(message("x/msg/Y", "cdr", text.clone()));
        assert!(wrong.contains("expected the type std_msgs/msg/String, found \"x/msg/Y\""), "{wrong}");
        let wrong = error(message("std_msgs/msg/String", "ros1", text.clone()));
        assert!(wrong.contains("found \"ros1\""), "{wrong}");
        let wrong = error(message("std_msgs/msg/String", "cdr", text[..7].to_vec()));
        assert!(wrong.starts_with("7 bytes: "), "{wrong}");
    }

    #[test]
    fn a_part_reaches_at_most_to_the_end_of_its_chunk() {
        let chunk = Arc::new(vec![1, 2, 3]);
        assert_eq!(&*Payload::part(&chunk, 1..3).unwrap(), [2, 3]);
        assert_eq!(&*Payload::part(&chunk, 1..3).unwrap().detached(), [2, 3]);
        assert!(Payload::part(&chunk, 1..4).is_none());
    }
}
