//! Precisions of engines, and which of them a GPU, a TensorRT and a graph are refused.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::error::EngineError;
use super::graph::GraphKind;

/// What an engine computes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    Fp32,
    /// f16 where TensorRT finds it faster, f32 elsewhere.
    Fp16,
    Bf16,
    /// 8-bit integers where there are ranges, f16 elsewhere.
    Int8,
    /// As the graph's own types say.
    StronglyTyped,
}

impl Precision {
    /// All precisions.
    pub const ALL: [Self; 5] = [Self::Fp32, Self::Fp16, Self::Bf16, Self::Int8, Self::StronglyTyped];

    /// The name in files and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Fp16 => "fp16",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
            Self::StronglyTyped => "strongly_typed",
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Precision {
    type Err = EngineError;

    fn from_str(text: &str) -> Result<Self, EngineError> {
        Self::ALL.into_iter().find(|precision| precision.as_str() == text).ok_or_else(|| {
            EngineError::Invalid {
                what: "precision".to_owned(),
                expected: Self::ALL.map(Self::as_str).join(", "),
                found: format!("{text:?}"),
            }
        })
    }
}

/// The generation of an NVIDIA GPU, such as 8.7 (Orin) or 9.0 (Hopper).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ComputeCapability {
    pub major: u32,
    pub minor: u32,
}

impl fmt::Display for ComputeCapability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Refuses a precision that cannot work, or that is known to give wrong results.
///
/// `tensorrt` is (major, minor) of the version that builds. `forced` lifts what is known to be wrong, never what the
/// GPU or the library does not have.
///
/// # Errors
/// [`EngineError::Refused`] with the reason and what to use instead.
pub fn check_precision(
    precision: Precision,
    graph: GraphKind,
    gpu: ComputeCapability,
    tensorrt: (u32, u32),
    forced: bool,
) -> Result<(), EngineError> {
    let refuse =
        |reason: String, advice: &'static str| Err(EngineError::Refused { precision, graph, reason, advice });
    let ComputeCapability { major, minor } = gpu;
    let lacks = match precision {
        Precision::Fp32 | Precision::StronglyTyped => None,
        Precision::Fp16 => ((major, minor) < (5, 3)).then_some("arithmetic in f16 came with 5.3"),
        Precision::Bf16 => (major < 8).then_some("arithmetic in bf16 came with 8.0 (Ampere)"),
        // The four-way integer dot product is in 6.1 and from 7.0 on; 6.0 and 6.2 (Jetson TX2) have none.
        Precision::Int8 => ((major, minor) != (6, 1) && major < 7)
            .then_some("integer dot products are in 6.1 and from 7.0 on"),
    };
    if let Some(lacks) = lacks {
        return refuse(format!("the GPU's compute capability is {gpu}, and {lacks}"), "use fp32");
    }
    match precision {
        Precision::Bf16 | Precision::StronglyTyped if tensorrt.0 < 10 => refuse(
            format!("TensorRT {}.{} does not have it; it came with 10", tensorrt.0, tensorrt.1),
            "use fp16 or fp32, or TensorRT 10",
        ),
        // Fp16 and bf16 are written into the graph there, and Q/DQ nodes into the fused one: see `engine_builder::graph::Typing`.
        Precision::Int8 if tensorrt.0 >= 11 && graph != GraphKind::DitFused => refuse(
            format!(
                "TensorRT {}.{} computes in the types that the graph has, and only {} is written with 8 bits",
                tensorrt.0,
                tensorrt.1,
                GraphKind::DitFused
            ),
            "use fp16 or bf16",
        ),
        _ => check_known(precision, graph, forced),
    }
}

/// The part of [`check_precision`] that needs no GPU: what is known to give wrong results, unless that is `forced`.
///
/// # Errors
/// [`EngineError::Refused`] with the measurements.
pub fn check_known(precision: Precision, graph: GraphKind, forced: bool) -> Result<(), EngineError> {
    if forced || !graph.is_backbone() || !matches!(precision, Precision::Fp16 | Precision::Int8) {
        return Ok(());
    }
    Err(EngineError::Refused {
        precision,
        graph,
        reason: "the backbone's activations, those of SigLIP2 first of all, go beyond what f16 holds well: published \
                 measurements on an Orin gave a cosine of 0.302 (0.931 in fp32) against the reference, with values of [-342, \
                 352] squeezed to [-101, 76]"
            .to_owned(),
        advice: "keep the backbone in bf16 on libtorch, or build it in bf16 or fp32; or force it, to measure",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORIN: ComputeCapability = ComputeCapability { major: 8, minor: 7 };

    fn gpu(major: u32, minor: u32) -> ComputeCapability {
        ComputeCapability { major, minor }
    }

    fn allowed(precision: Precision, graph: GraphKind, gpu: ComputeCapability, tensorrt: (u32, u32)) -> bool {
        check_precision(precision, graph, gpu, tensorrt, false).is_ok()
    }

    #[test]
    fn every_name_of_a_precision_reads_back_as_itself() {
        for precision in Precision::ALL {
            assert_eq!(precision.as_str().parse::<Precision>().expect("known"), precision);
            assert_eq!(serde_json::to_value(precision).expect("json"), precision.as_str());
        }
        let error = "fp61".parse::<Precision>().expect_err("unknown").to_string();
        assert!(error.contains("fp61") && error.contains("fp16"), "{error}");
    }

    #[test]
    fn an_fp16_backbone_is_refused_with_the_measurements_unless_forced() {
        let error = check_precision(Precision::Fp16, GraphKind::BackboneVision, ORIN, (10, 3), false)
            .expect_err("refused");
        assert!(error.to_string().contains("0.302"), "{error}");
        check_precision(Precision::Fp16, GraphKind::BackboneVision, ORIN, (10, 3), true).expect("forced");
        check_precision(Precision::Bf16, GraphKind::BackboneVision, ORIN, (10, 3), false)
            .expect("bf16 is right");
        check_precision(Precision::Fp16, GraphKind::DitFused, ORIN, (10, 3), false)
            .expect("the DiT is right in f16");
    }

    #[test]
    fn an_int8_backbone_is_refused_too_since_its_rest_runs_in_f16() {
        assert!(!allowed(Precision::Int8, GraphKind::BackboneVision, ORIN, (10, 3)));
    }

    #[test]
    fn a_precision_is_refused_to_a_gpu_that_cannot_compute_in_it_even_if_forced() {
        for (precision, capability, fits) in [
            (Precision::Bf16, gpu(7, 5), false),
            (Precision::Bf16, gpu(8, 0), true),
            (Precision::Bf16, gpu(9, 0), true),
            (Precision::Fp16, gpu(5, 2), false),
            (Precision::Fp16, gpu(5, 3), true),
            (Precision::Int8, gpu(6, 0), false),
            (Precision::Int8, gpu(6, 1), true),
            (Precision::Int8, gpu(6, 2), false),
            (Precision::Int8, gpu(7, 0), true),
            (Precision::Fp32, gpu(5, 0), true),
        ] {
            let found = check_precision(precision, GraphKind::DitFused, capability, (10, 3), true);
            assert_eq!(found.is_ok(), fits, "{precision} on {capability}");
            if let Err(error) = found {
                assert!(error.to_string().contains(&capability.to_string()), "{error}");
            }
        }
    }

    #[test]
    fn a_precision_is_refused_to_a_tensorrt_that_does_not_have_it() {
        let (fused, other) = (GraphKind::DitFused, GraphKind::DitReference);
        for (precision, graph, tensorrt, fits) in [
            (Precision::Bf16, fused, (8, 6), false),
            (Precision::StronglyTyped, fused, (8, 6), false),
            (Precision::Bf16, fused, (10, 3), true),
            (Precision::Fp16, other, (11, 4), true),
            (Precision::Bf16, other, (11, 4), true),
            (Precision::Int8, other, (10, 3), true),
            (Precision::Int8, other, (11, 4), false),
            (Precision::Int8, fused, (11, 4), true),
            (Precision::StronglyTyped, other, (11, 4), true),
            (Precision::Fp32, other, (11, 4), true),
        ] {
            assert_eq!(
                allowed(precision, graph, ORIN, tensorrt),
                fits,
                "{precision} of {graph} in {tensorrt:?}"
            );
        }
    }
}
