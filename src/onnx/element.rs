//! Element types of a graph, and the conversion of weights to them.

use half::{bf16, f16};

use super::error::OnnxError;
use super::proto::data_type;
use crate::checkpoint::{TensorView, WeightKind};

/// Element type of a value in a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ElementType {
    F32,
    F16,
    Bf16,
    I8,
    I64,
    Bool,
}

impl ElementType {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::I8 | Self::Bool => 1,
            Self::I64 => 8,
        }
    }

    /// Its number in the file format.
    pub fn number(self) -> i32 {
        match self {
            Self::F32 => data_type::FLOAT,
            Self::F16 => data_type::FLOAT16,
            Self::Bf16 => data_type::BFLOAT16,
            Self::I8 => data_type::INT8,
            Self::I64 => data_type::INT64,
            Self::Bool => data_type::BOOL,
        }
    }

    /// Its name, as used on command lines and in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::I8 => "i8",
            Self::I64 => "i64",
            Self::Bool => "bool",
        }
    }

    /// Whether it is one of the floating-point types.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::Bf16)
    }

    /// The largest finite value of a floating-point type.
    pub fn largest(self) -> f32 {
        match self {
            Self::F16 => f16::MAX.to_f32(),
            Self::Bf16 => bf16::MAX.to_f32(),
            _ => f32::MAX,
        }
    }
}

/// Appends the values to `out` as little-endian elements of a floating-point `kind`, each rounded to nearest even.
///
/// # Errors
/// A value is not finite, or too large for `kind`; `tensor` and `first`, the index of the first value, are for the
/// message.
pub fn encode(
    values: &[f32],
    kind: ElementType,
    tensor: &str,
    first: usize,
    out: &mut Vec<u8>,
) -> Result<(), OnnxError> {
    let largest = kind.largest();
    if let Some(at) = values.iter().position(|value| !fits(*value, kind)) {
        let value = values[at];
        return Err(OnnxError::Range {
            tensor: tensor.to_owned(),
            index: first + at,
            value,
            kind: kind.name(),
            largest,
            advice: if value.is_finite() {
                "export with bf16 or f32 weights"
            } else {
                "the checkpoint is damaged or its training diverged"
            },
        });
    }
    match kind {
        ElementType::F16 => out.extend(values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes())),
        ElementType::Bf16 => out.extend(values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes())),
        _ => out.extend(values.iter().flat_map(|v| v.to_le_bytes())),
    }
    Ok(())
}

/// Whether a value stays finite when rounded to `kind`.
fn fits(value: f32, kind: ElementType) -> bool {
    match kind {
        ElementType::F16 => f16::from_f32(value).is_finite(),
        ElementType::Bf16 => bf16::from_f32(value).is_finite(),
        _ => value.is_finite(),
    }
}

/// The values of a stored tensor, exactly.
pub fn decode(view: &TensorView) -> Vec<f32> {
    decode_bytes(view.bytes, view.kind)
}

/// Little-endian elements as f32, exactly.
pub fn decode_bytes(bytes: &[u8], kind: WeightKind) -> Vec<f32> {
    match kind {
        WeightKind::F32 => bytes.as_chunks::<4>().0.iter().map(|chunk| f32::from_le_bytes(*chunk)).collect(),
        WeightKind::F16 => {
            bytes.as_chunks::<2>().0.iter().map(|chunk| f16::from_le_bytes(*chunk).to_f32()).collect()
        }
        WeightKind::Bf16 => {
            bytes.as_chunks::<2>().0.iter().map(|chunk| bf16::from_le_bytes(*chunk).to_f32()).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_rounded_to_nearest_even_in_each_type() {
        let values = [0.0, -1.5, 1.0 + 1.0 / 512.0, 65504.0, 1e-7];
        for (kind, width) in [(ElementType::F32, 4), (ElementType::F16, 2), (ElementType::Bf16, 2)] {
            let mut bytes = Vec::new();
            encode(&values, kind, "w", 0, &mut bytes).unwrap();
            assert_eq!(bytes.len(), values.len() * width);
            let stored = match kind {
                ElementType::F32 => WeightKind::F32,
                ElementType::F16 => WeightKind::F16,
                _ => WeightKind::Bf16,
            };
            let back = decode_bytes(&bytes, stored);
            let step: f32 = match kind {
                ElementType::F32 => f32::EPSILON,
                ElementType::F16 => 1.0 / 1024.0,
                _ => 1.0 / 128.0,
            };
            for (value, back) in values.iter().zip(&back) {
                // Half a unit in the last place, or of the smallest subnormal of f16.
                assert!((value - back).abs() <= value.abs() * step / 2.0 + 3e-8, "{value} {back}");
            }
        }
    }

    #[test]
    fn a_value_beyond_the_range_of_f16_is_refused_with_its_place() {
        let mut bytes = Vec::new();
        let error = encode(&[1.0, -65520.0], ElementType::F16, "block.weight", 10, &mut bytes).unwrap_err();
        let text = error.to_string();
        for part in ["block.weight", "-65520", "index 11", "f16", "65504", "bf16 or f32"] {
            assert!(text.contains(part), "{part} not in {text}");
        }
        assert!(bytes.is_empty());
        encode(&[1.0, -65520.0], ElementType::Bf16, "block.weight", 10, &mut bytes).unwrap();
    }

    #[test]
    fn a_value_that_is_no_number_is_refused_in_every_type() {
        for value in [f32::NAN, f32::INFINITY] {
            let error = encode(&[value], ElementType::F32, "w", 0, &mut Vec::new()).unwrap_err().to_string();
            assert!(error.contains("damaged or its training diverged"), "{error}");
        }
    }
}
