//! What may run the network, by name.

use std::{fmt, str::FromStr};

use crate::{
    engine::Precision,
    execution::{UnknownMode, mode_by_name},
};

/// A way to run the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// libtorch in f32, operator by operator: what the others are held against.
    F32,
    /// libtorch in bf16, operator by operator.
    Eager,
    /// The whole tick captured as CUDA graphs, bf16.
    Graph,
    /// The same with fused kernels.
    GraphFused,
    /// The backbone on libtorch in bf16, the denoising steps on a TensorRT engine.
    TensorRt(Precision),
}

impl Mode {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::F32,
        Self::Eager,
        Self::Graph,
        Self::GraphFused,
        Self::TensorRt(Precision::Fp32),
        Self::TensorRt(Precision::Fp16),
        Self::TensorRt(Precision::Bf16),
        Self::TensorRt(Precision::Int8),
        Self::TensorRt(Precision::StronglyTyped),
    ];

    /// Name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Eager => "eager",
            Self::Graph => "graph",
            Self::GraphFused => "graph-fused",
            Self::TensorRt(Precision::Fp32) => "tensorrt-fp32",
            Self::TensorRt(Precision::Fp16) => "tensorrt-fp16",
            Self::TensorRt(Precision::Bf16) => "tensorrt-bf16",
            Self::TensorRt(Precision::Int8) => "tensorrt-int8",
            Self::TensorRt(Precision::StronglyTyped) => "tensorrt-strongly-typed",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Mode {
    type Err = UnknownMode;

    fn from_str(name: &str) -> Result<Self, UnknownMode> {
        mode_by_name(&Self::ALL, Self::name, name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mode_is_known_by_its_name_and_others_are_refused_with_the_list() {
        for mode in Mode::ALL {
            assert_eq!(mode.name().parse(), Ok(mode));
        }
        let error = "turbo".parse::<Mode>().unwrap_err().to_string();
        assert!(error.contains("graph-fused") && error.contains("\"turbo\""), "{error}");
    }
}
