//! What the policy sees at one instant, before any processing.

use std::collections::BTreeMap;

use image::RgbImage;
use ndarray::Array2;

/// Camera frames, robot state and instruction of one tick, keyed as the checkpoint's `processor_config.json` keys them.
///
/// Shapes follow the policy API of the public reference (Isaac-GR00T N1.6, `Gr00tPolicy.get_action`) without its batch
/// axis.
#[derive(Debug, Clone, Default)]
pub struct Observation {
    /// Frames per camera key, one per video delta index, oldest first. 8-bit RGB, any size; after resizing to the
    /// model's shortest edge all cameras must agree in size.
    pub video: BTreeMap<String, Vec<RgbImage>>,
    /// Raw state per state key, shape (state delta indices, dimension), SI units.
    pub state: BTreeMap<String, Array2<f32>>,
    /// What the robot is asked to do. May be empty.
    pub instruction: String,
}
