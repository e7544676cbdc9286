//! What may run the network, by name.

use std::{fmt, path::Path, str::FromStr};

use tch::Kind;

use crate::{
    engine::{EngineChoice, Precision},
    evaluation::ModeIdentity,
    execution::{ExecutionMode, UnknownMode, mode_by_name},
    model::policy::PolicyOptions,
};

/// A way to run the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// libtorch in the device's own type (bf16 on CUDA, f32 on the CPU), in the fastest way that is verified there: what
    /// policy_node does by default.
    Auto,
    /// libtorch in the device's own type, operation by operation.
    Torch,
    /// The same, captured as CUDA graphs.
    TorchGraph,
    /// The same with fused kernels.
    TorchGraphFused,
    /// libtorch in f32.
    TorchF32,
    /// libtorch in bf16.
    TorchBf16,
    /// The backbone on libtorch in the device's own type, the denoising steps on a TensorRT engine of this precision.
    TensorRtFp32,
    TensorRtFp16,
    TensorRtBf16,
    TensorRtInt8,
}

impl Mode {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Auto,
        Self::Torch,
        Self::TorchGraph,
        Self::TorchGraphFused,
        Self::TorchF32,
        Self::TorchBf16,
        Self::TensorRtFp32,
        Self::TensorRtFp16,
        Self::TensorRtBf16,
        Self::TensorRtInt8,
    ];

    /// Name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Torch => "torch",
            Self::TorchGraph => "torch-graph",
            Self::TorchGraphFused => "torch-graph-fused",
            Self::TorchF32 => "torch-f32",
            Self::TorchBf16 => "torch-bf16",
            Self::TensorRtFp32 => "tensorrt-fp32",
            Self::TensorRtFp16 => "tensorrt-fp16",
            Self::TensorRtBf16 => "tensorrt-bf16",
            Self::TensorRtInt8 => "tensorrt-int8",
        }
    }

    /// What its engine computes in; None where libtorch runs everything.
    pub fn precision(self) -> Option<Precision> {
        match self {
            Self::Auto
            | Self::Torch
            | Self::TorchGraph
            | Self::TorchGraphFused
            | Self::TorchF32
            | Self::TorchBf16 => None,
            Self::TensorRtFp32 => Some(Precision::Fp32),
            Self::TensorRtFp16 => Some(Precision::Fp16),
            Self::TensorRtBf16 => Some(Precision::Bf16),
            Self::TensorRtInt8 => Some(Precision::Int8),
        }
    }

    /// How the network is executed: with an engine as the node does it, by libtorch as the name says.
    pub fn execution(self) -> ExecutionMode {
        match self {
            Self::Torch | Self::TorchF32 | Self::TorchBf16 => ExecutionMode::Eager,
            Self::TorchGraph => ExecutionMode::Graph,
            Self::TorchGraphFused => ExecutionMode::GraphFused,
            Self::Auto
            | Self::TensorRtFp32
            | Self::TensorRtFp16
            | Self::TensorRtBf16
            | Self::TensorRtInt8 => ExecutionMode::Auto,
        }
    }

    /// The options of a policy in this mode, with engines from `engines`, built there where `auto_build` says so. Engine and
    /// execution of the base are not taken over: the mode says what runs, and how.
    pub fn options(self, base: &PolicyOptions, engines: &Path, auto_build: bool) -> PolicyOptions {
        let kind = match self {
            Self::TorchF32 => Some(Kind::Float),
            Self::TorchBf16 => Some(Kind::BFloat16),
            _ => base.kind,
        };
        let engine = self.precision().map(|precision| EngineChoice {
            folder: engines.to_owned(),
            precision,
            auto_build,
        });
        PolicyOptions { kind, engine, mode: self.execution(), ..base.clone() }
    }

    /// How the mode is called before a policy of it is loaded.
    pub fn identity(self) -> ModeIdentity {
        ModeIdentity { name: self.name().to_owned(), ..ModeIdentity::default() }
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
    fn every_mode_is_known_by_its_name_and_says_what_runs_and_others_are_refused_with_the_list() {
        for mode in Mode::ALL {
            assert_eq!(mode.name().parse(), Ok(mode));
        }
        let base = PolicyOptions { kind: Some(Kind::BFloat16), ..PolicyOptions::default() };
        let hybrid = Mode::TensorRtInt8.options(&base, Path::new("engines"), true);
        let engine = EngineChoice { folder: "engines".into(), precision: Precision::Int8, auto_build: true };
        assert_eq!((hybrid.kind, hybrid.engine.as_ref()), (base.kind, Some(&engine)));
        assert_eq!(Mode::Torch.options(&hybrid, Path::new("engines"), true).engine, None);
        assert_eq!(Mode::TorchGraph.options(&hybrid, Path::new("engines"), true).mode, ExecutionMode::Graph);
        assert_eq!(Mode::Torch.options(&base, Path::new("engines"), true).mode, ExecutionMode::Eager);
        assert_eq!(hybrid.mode, ExecutionMode::Auto);
        let error = "tensorflow".parse::<Mode>().unwrap_err().to_string();
        assert!(error.contains("torch-bf16") && error.contains("\"tensorflow\""), "{error}");
    }
}
