//! Inputs and outputs of networks and engines: name, element type, shape.

use std::fmt;

use super::ffi;

/// Element types of TensorRT's tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DataType {
    F32,
    F16,
    I8,
    I32,
    Bool,
    U8,
    F8,
    Bf16,
    I64,
    I4,
    /// A type this program does not know, by TensorRT's number.
    Other(i32),
}

impl DataType {
    pub(super) fn from_number(number: i32) -> Self {
        match number {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::I8,
            3 => Self::I32,
            4 => Self::Bool,
            5 => Self::U8,
            6 => Self::F8,
            7 => Self::Bf16,
            8 => Self::I64,
            9 => Self::I4,
            other => Self::Other(other),
        }
    }

    /// Bits of one element, if the type is known.
    pub fn bits(self) -> Option<usize> {
        match self {
            Self::F32 | Self::I32 => Some(32),
            Self::F16 | Self::Bf16 => Some(16),
            Self::I8 | Self::Bool | Self::U8 | Self::F8 => Some(8),
            Self::I64 => Some(64),
            Self::I4 => Some(4),
            Self::Other(_) => None,
        }
    }

    /// Bytes of a tensor of this type with no padding. None for an unknown type, a dimension that is not known (-1), and
    /// more bytes than can be counted.
    pub fn bytes(self, shape: &[i64]) -> Option<usize> {
        let elements = shape
            .iter()
            .try_fold(1_usize, |product, &extent| product.checked_mul(usize::try_from(extent).ok()?))?;
        Some(elements.checked_mul(self.bits()?)?.div_ceil(8))
    }
}

impl fmt::Display for DataType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::F32 => f.write_str("f32"),
            Self::F16 => f.write_str("f16"),
            Self::I8 => f.write_str("i8"),
            Self::I32 => f.write_str("i32"),
            Self::Bool => f.write_str("bool"),
            Self::U8 => f.write_str("u8"),
            Self::F8 => f.write_str("f8"),
            Self::Bf16 => f.write_str("bf16"),
            Self::I64 => f.write_str("i64"),
            Self::I4 => f.write_str("i4"),
            Self::Other(number) => write!(f, "type {number}"),
        }
    }
}

/// One input or output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IoTensor {
    pub name: String,
    pub is_input: bool,
    pub data_type: DataType,
    /// Dimensions; -1 stands for one that is set before a run.
    pub shape: Vec<i64>,
    /// Its values lie in host memory, since shapes depend on them.
    pub on_host: bool,
}

impl IoTensor {
    pub(super) fn from_raw(raw: &ffi::Tensor) -> Self {
        Self {
            // SAFETY: the shim fills in a C string that lives as long as the network or engine, or leaves null.
            name: unsafe { ffi::text_at(raw.name) },
            is_input: raw.is_input != 0,
            data_type: DataType::from_number(raw.data_type),
            shape: dims(&raw.dims, raw.rank),
            on_host: raw.on_host != 0,
        }
    }

    /// Whether a dimension is set before a run rather than fixed.
    pub fn is_dynamic(&self) -> bool {
        self.shape.iter().any(|&extent| extent < 0)
    }
}

/// The dimensions that count of the eight that the shim has room for.
pub(super) fn dims(all: &[i64; ffi::MAX_DIMS], rank: i32) -> Vec<i64> {
    all.iter().take(usize::try_from(rank).unwrap_or(0)).copied().collect()
}

/// The names of `tensors`, for messages.
pub(super) fn names<'a>(tensors: impl IntoIterator<Item = &'a IoTensor>) -> String {
    let names: Vec<&str> = tensors.into_iter().map(|tensor| tensor.name.as_str()).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_a_tensor_follow_from_its_type_and_shape() {
        assert_eq!(DataType::F32.bytes(&[1, 51, 1536]), Some(51 * 1536 * 4));
        assert_eq!(DataType::F16.bytes(&[3, 5]), Some(30));
        assert_eq!(DataType::I4.bytes(&[3]), Some(2));
        assert_eq!(DataType::Bool.bytes(&[]), Some(1));
    }

    #[test]
    fn unknown_dimensions_and_impossible_sizes_have_no_bytes() {
        assert_eq!(DataType::F32.bytes(&[-1, 4]), None);
        assert_eq!(DataType::F32.bytes(&[i64::MAX, i64::MAX]), None);
        assert_eq!(DataType::Other(99).bytes(&[1]), None);
    }
}
