//! Messages as bytes: CDR behind its four-byte encapsulation header, as ROS 2 hands serialised messages around.
//!
//! The header's second byte names the representation; read are both byte orders of plain CDR, written is little-endian.

use byteorder::{BigEndian, LittleEndian};
use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;

/// Plain CDR, by the header's first two bytes.
const BIG_ENDIAN: [u8; 2] = [0, 0];
const LITTLE_ENDIAN: [u8; 2] = [0, 1];

/// Why bytes are no message, or a message cannot be bytes.
#[derive(Debug, Error)]
pub enum CdrError {
    /// Not even a header.
    #[error("expected an encapsulation header of 4 bytes, found {0} bytes in all")]
    NoHeader(usize),
    /// Another representation than plain CDR.
    #[error(
        "expected plain CDR, representation 0x0000 or 0x0001, found 0x{:02x}{:02x}, {}; let the publisher write the first \
         version of XCDR",
        .0[0], .0[1], representation(*.0)
    )]
    Representation([u8; 2]),
    /// The data behind the header is not that of the message.
    #[error("the data does not fit the message: {0}")]
    Data(#[from] cdr_encoding::Error),
}

/// What a representation is called.
fn representation(kind: [u8; 2]) -> &'static str {
    match kind {
        [0, 2 | 3] => "a parameter list",
        [0, 6 | 7] => "plain CDR of XCDR2",
        [0, 8 | 9] => "delimited CDR of XCDR2",
        [0, 10 | 11] => "a parameter list of XCDR2",
        [0, 4] => "XML",
        _ => "which is none that is known",
    }
}

/// The bytes of a message.
///
/// # Errors
/// [`CdrError::Data`] for what CDR cannot express; no ROS 2 message is such.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, CdrError> {
    let [first, second] = LITTLE_ENDIAN;
    let mut bytes = vec![first, second, 0, 0];
    // Alignment counts from behind the header, which the writer does not know of.
    cdr_encoding::to_writer::<T, LittleEndian, _>(&mut bytes, message)?;
    Ok(bytes)
}

/// The message that `payload` holds. Every length in it is compared with what is left of it before anything is allocated; bytes
/// behind the message are padding.
///
/// # Errors
/// A payload that is not this message.
pub fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, CdrError> {
    let Some((&[first, second, _, _], data)) = payload.split_first_chunk() else {
        return Err(CdrError::NoHeader(payload.len()));
    };
    let (message, _) = match [first, second] {
        LITTLE_ENDIAN => cdr_encoding::from_bytes::<T, LittleEndian>(data)?,
        BIG_ENDIAN => cdr_encoding::from_bytes::<T, BigEndian>(data)?,
        other => return Err(CdrError::Representation(other)),
    };
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ros::{
        msg::{ActionChunk, ActionGroup, ByteBuf, Header, Image, JointState, Time},
        srv::{Empty, Parameter, ParameterEvent},
    };

    fn joints() -> JointState {
        JointState {
            header: Header { stamp: Time { sec: 1, nanosec: 2 }, frame_id: "ab".to_owned() },
            name: vec!["elbow".to_owned()],
            position: vec![0.5],
            ..JointState::default()
        }
    }

    #[test]
    fn a_message_is_laid_out_as_ros_2_lays_it_out() {
        let expected: &[&[u8]] = &[
            &[0, 1, 0, 0],                            // little-endian CDR
            &[1, 0, 0, 0, 2, 0, 0, 0],                // stamp
            &[3, 0, 0, 0, b'a', b'b', 0, 0],          // frame, and a byte of padding
            &[1, 0, 0, 0, 6, 0, 0, 0],                // one name, of six bytes
            &[b'e', b'l', b'b', b'o', b'w', 0, 0, 0], // and padding
            &[1, 0, 0, 0, 0, 0, 0, 0],                // one position, and padding: a double is aligned by 8
            &[0, 0, 0, 0, 0, 0, 0xe0, 0x3f],
            &[0, 0, 0, 0, 0, 0, 0, 0], // no velocities, no efforts
        ];
        // The header is not counted: the first position stands at 40 of the data.
        assert_eq!(encode(&joints()).unwrap(), expected.concat());
    }

    #[test]
    fn messages_survive_the_way_through_bytes() {
        let image = Image { width: 2, height: 1, data: ByteBuf::from(vec![1, 2, 3]), ..Image::default() };
        assert_eq!(decode::<Image>(&encode(&image).unwrap()).unwrap(), image);
        let group =
            ActionGroup { key: "arm".to_owned(), dimension: 1, data: vec![1.5], ..ActionGroup::default() };
        let chunk = ActionChunk { sequence: u64::MAX, groups: vec![group], ..ActionChunk::default() };
        assert_eq!(decode::<ActionChunk>(&encode(&chunk).unwrap()).unwrap(), chunk);
        assert_eq!(decode::<Empty>(&encode(&Empty).unwrap()).unwrap(), Empty);
    }

    #[test]
    fn the_other_byte_order_is_read_and_trailing_bytes_are_padding() {
        let time = [0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 7];
        assert_eq!(decode::<Time>(&time).unwrap(), Time { sec: 256, nanosec: 7 });
        let padded = [encode(&joints()).unwrap(), vec![0; 3]].concat();
        assert_eq!(decode::<JointState>(&padded).unwrap(), joints());
    }

    #[test]
    fn a_foreign_representation_is_named() {
        for (kind, name) in [
            ([0, 3], "0x0003, a parameter list;"),
            ([0, 7], "0x0007, plain CDR of XCDR2;"),
            ([0, 9], "0x0009, delimited CDR of XCDR2;"),
            ([0, 11], "0x000b, a parameter list of XCDR2;"),
            ([7, 1], "0x0701, which is none that is known;"),
        ] {
            let error = decode::<Time>(&[kind[0], kind[1], 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
    }

    #[test]
    fn the_options_of_the_header_say_only_how_much_padding_follows() {
        for padding in 0..4_u8 {
            let mut bytes = vec![0, 1, 0, padding, 1, 0, 0, 0, 2, 0, 0, 0];
            bytes.extend(vec![0; padding.into()]);
            assert_eq!(decode::<Time>(&bytes).unwrap(), Time { sec: 1, nanosec: 2 });
        }
    }

    #[test]
    fn what_is_cut_short_or_lies_about_lengths_is_an_error() {
        let whole = encode(&joints()).unwrap();
        for length in 0..whole.len() {
            assert!(decode::<JointState>(&whole[..length]).is_err(), "{length} bytes");
        }
        let hostile = [&[0, 1, 0, 0][..], &[0xff; 64]].concat();
        assert!(decode::<Image>(&hostile).is_err());
        assert!(decode::<JointState>(&hostile).is_err());
        assert!(decode::<ActionChunk>(&hostile).is_err());
        assert!(decode::<Parameter>(&hostile).is_err());
        assert!(decode::<ParameterEvent>(&hostile).is_err());
    }
}
