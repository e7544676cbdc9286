//! What an engine is built with.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::engine::Precision;

use super::calibrator::Int8Calibration;
use super::error::TensorRtError;
use super::tensor::{IoTensor, names};

/// The shapes that one input may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShapeRange {
    pub min: Vec<i64>,
    /// The shape that the engine is made fast for.
    pub opt: Vec<i64>,
    pub max: Vec<i64>,
}

impl ShapeRange {
    /// One shape only.
    pub fn fixed(shape: impl Into<Vec<i64>>) -> Self {
        let shape = shape.into();
        Self { min: shape.clone(), opt: shape.clone(), max: shape }
    }
}

/// The shapes of the inputs that an engine is built for; inputs whose shape is fixed in the graph need none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile(pub BTreeMap<String, ShapeRange>);

impl Profile {
    /// Adds an input.
    #[must_use]
    pub fn with(mut self, input: impl Into<String>, range: ShapeRange) -> Self {
        self.0.insert(input.into(), range);
        self
    }

    /// Compares the profile with the inputs of a network, so that a mistake is named before TensorRT rejects the whole.
    pub(super) fn check(&self, inputs: &[IoTensor]) -> Result<(), TensorRtError> {
        for (name, range) in &self.0 {
            let Some(input) = inputs.iter().find(|input| &input.name == name) else {
                return Err(TensorRtError::NoSuchTensor {
                    kind: "input",
                    name: name.clone(),
                    known: names(inputs),
                });
            };
            let found = || format!("min {:?}, opt {:?}, max {:?}", range.min, range.opt, range.max);
            let ranked =
                [&range.min, &range.opt, &range.max].iter().all(|shape| shape.len() == input.shape.len());
            let fits = ranked
                && input.shape.iter().enumerate().all(|(i, &extent)| {
                    let (min, opt, max) = (range.min[i], range.opt[i], range.max[i]);
                    let ordered = 0 <= min && min <= opt && opt <= max;
                    ordered && (extent < 0 || (min == extent && max == extent))
                });
            if !fits {
                return Err(TensorRtError::Shape {
                    tensor: format!("profile of input {name:?}"),
                    expected: format!(
                        "min <= opt <= max that fit the graph's shape {:?} (-1: free)",
                        input.shape
                    ),
                    found: found(),
                });
            }
        }
        match inputs.iter().find(|input| input.is_dynamic() && !self.0.contains_key(&input.name)) {
            Some(input) => Err(TensorRtError::Shape {
                tensor: format!("input {:?}", input.name),
                expected: "a range in every profile, since its shape is not fixed".to_owned(),
                found: format!("none for {:?}", input.shape),
            }),
            None => Ok(()),
        }
    }
}

/// Layers that stay in f32 in an engine of lower precision. For versions before 11: a strongly typed graph says itself what
/// is computed in which type.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct F32Layers {
    /// Layer norms: TensorRT's normalisation layers, and the reductions that older parsers make of them.
    pub normalisation: bool,
    pub softmax: bool,
    /// Layers whose name contains one of these.
    pub name_contains: Vec<String>,
    /// Fail rather than build an engine in which one of them could not be kept in f32.
    pub obey: bool,
}

impl F32Layers {
    pub(super) fn is_empty(&self) -> bool {
        !self.normalisation && !self.softmax && self.name_contains.is_empty()
    }

    pub(super) fn wants(&self, layer: &Layer) -> bool {
        (self.normalisation && matches!(layer.kind.as_str(), "normalisation" | "reduce"))
            || (self.softmax && layer.kind == "softmax")
            || self.name_contains.iter().any(|part| layer.name.contains(part.as_str()))
    }
}

/// A layer of a parsed network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    pub name: String,
    /// `matrix_multiply`, `softmax`, `normalisation`, `quantise`, ...; `other` for the rest.
    pub kind: String,
}

/// How far a build is. Versions before 10 report nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BuildProgress {
    /// A phase of so many steps began, inside another or (empty name) on its own.
    Started {
        phase: String,
        parent: String,
        steps: usize,
    },
    /// A step of a phase is done.
    Step {
        phase: String,
        step: usize,
    },
    Finished {
        phase: String,
    },
}

/// Told of a build's progress, from threads of TensorRT; false ends the build.
pub type ProgressFn = Arc<dyn Fn(&BuildProgress) -> bool + Send + Sync>;

/// What an engine is built with.
pub struct BuildOptions {
    pub precision: Precision,
    /// Memory that one layer may use while it runs, in bytes. None: all of the GPU's.
    pub workspace: Option<usize>,
    /// 0 (builds quickly) to 5 (looks longest for the fastest kernels). None: TensorRT's default, 3.
    pub optimisation_level: Option<u8>,
    /// File with the timings of kernels: read if it is there, written after the build. Makes the next build faster.
    pub timing_cache: Option<PathBuf>,
    /// One at least where inputs have dimensions that are not fixed.
    pub profiles: Vec<Profile>,
    pub f32_layers: F32Layers,
    /// Lets other versions of TensorRT of the same major run the engine, with slower kernels.
    pub version_compatible: bool,
    /// f32 matrix products in the 19 bits of TF32. TensorRT's default is on; here it is off: an f32 engine is the one that
    /// others are measured against.
    pub tf32: bool,
    /// Keeps each layer's details for the engine inspector.
    pub detailed_profiling: bool,
    pub progress: Option<ProgressFn>,
    /// INT8 without Q/DQ nodes in the graph: where the ranges come from. Before version 11.
    pub calibration: Option<Int8Calibration>,
}

impl BuildOptions {
    /// TensorRT's defaults, in this precision.
    pub fn new(precision: Precision) -> Self {
        Self {
            precision,
            workspace: None,
            optimisation_level: None,
            timing_cache: None,
            profiles: Vec::new(),
            f32_layers: F32Layers::default(),
            version_compatible: false,
            tf32: false,
            detailed_profiling: false,
            progress: None,
            calibration: None,
        }
    }
}

impl fmt::Debug for BuildOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BuildOptions")
            .field("precision", &self.precision)
            .field("workspace", &self.workspace)
            .field("optimisation_level", &self.optimisation_level)
            .field("timing_cache", &self.timing_cache)
            .field("profiles", &self.profiles)
            .field("f32_layers", &self.f32_layers)
            .field("version_compatible", &self.version_compatible)
            .field("tf32", &self.tf32)
            .field("detailed_profiling", &self.detailed_profiling)
            .field("progress", &self.progress.is_some())
            .field("calibration", &self.calibration)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensorrt::DataType;

    fn input(name: &str, shape: &[i64]) -> IoTensor {
        IoTensor {
            name: name.to_owned(),
            is_input: true,
            data_type: DataType::F32,
            shape: shape.to_vec(),
            on_host: false,
        }
    }

    fn range(min: &[i64], opt: &[i64], max: &[i64]) -> ShapeRange {
        ShapeRange { min: min.to_vec(), opt: opt.to_vec(), max: max.to_vec() }
    }

    #[test]
    fn a_profile_that_covers_every_free_dimension_is_accepted() {
        let inputs = [input("context", &[1, -1, 2048]), input("actions", &[1, 50, 128])];
        let profile =
            Profile::default().with("context", range(&[1, 64, 2048], &[1, 250, 2048], &[1, 400, 2048]));
        profile.check(&inputs).expect("fits");
    }

    #[test]
    fn a_profile_is_refused_for_the_input_that_it_forgets_misnames_or_misshapes() {
        let inputs = [input("context", &[1, -1, 2048])];
        let cases = [
            (Profile::default(), "context"),
            (Profile::default().with("contxt", ShapeRange::fixed([1, 2, 2048])), "contxt"),
            (Profile::default().with("context", ShapeRange::fixed([1, 2])), "context"),
            (Profile::default().with("context", ShapeRange::fixed([1, 2, 1024])), "2048"),
            (
                Profile::default().with("context", range(&[1, 9, 2048], &[1, 5, 2048], &[1, 10, 2048])),
                "opt [1, 5, 2048]",
            ),
            (Profile::default().with("context", ShapeRange::fixed([1, -1, 2048])), "-1"),
        ];
        for (profile, named) in cases {
            let error = profile.check(&inputs).expect_err("refused").to_string();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn norms_softmax_and_named_layers_are_kept_in_f32_on_request() {
        let wanted = F32Layers {
            normalisation: true,
            softmax: false,
            name_contains: vec!["velocity".to_owned()],
            obey: false,
        };
        let layer = |name: &str, kind: &str| Layer { name: name.to_owned(), kind: kind.to_owned() };
        assert!(wanted.wants(&layer("block0.norm1", "normalisation")));
        assert!(!wanted.wants(&layer("block0.softmax", "softmax")));
        assert!(wanted.wants(&layer("velocity.out", "matrix_multiply")));
        assert!(!wanted.wants(&layer("block0.ff", "matrix_multiply")));
    }
}
