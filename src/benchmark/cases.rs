//! What a tick consists of: cameras, prompt, horizon.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::layout::{FRAME_TOKENS, IMAGE_FRAME_TOKENS};
use crate::processor::{
    image::{ImageError, ImageTransform, image_tokens},
    text::MAX_PROMPT_TOKENS,
};

/// The shortest image edge of the released checkpoints' pre-processing, in pixels.
pub const SHORTEST_EDGE: u32 = 256;
/// The fraction of each side that their centre crop keeps.
pub const CROP_FRACTION: f64 = 0.95;

/// Most cameras: the tag of a tenth image would be longer than those before it.
const MAX_CAMERAS: usize = 9;
/// Most action rows: those that the checkpoints have position embeddings for.
const MAX_HORIZON: usize = 1024;
/// Most observations in one batch, far beyond any robot.
const MAX_BATCH: usize = 256;

/// One shape of tick.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Case {
    /// Name on the command line.
    pub name: String,
    /// Cameras, each with one frame.
    pub cameras: usize,
    /// Width and height of a frame in pixels.
    pub frame: (u32, u32),
    /// Tokens of the whole prompt: template, instruction and images.
    pub prompt_tokens: usize,
    /// Action rows that the network denoises at once.
    pub horizon: usize,
    /// Denoising steps; None is the checkpoint's.
    pub steps: Option<usize>,
    /// Observations that are run together.
    pub batch: usize,
}

/// What is to be otherwise in a case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// Cameras.
    pub cameras: Option<usize>,
    /// Width and height of a frame.
    pub frame: Option<(u32, u32)>,
    /// Tokens of the whole prompt; None leaves the instruction as long as it is.
    pub prompt_tokens: Option<usize>,
    /// Action rows.
    pub horizon: Option<usize>,
    /// Denoising steps.
    pub steps: Option<usize>,
    /// Observations in one batch.
    pub batch: Option<usize>,
}

/// A case that cannot be.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CaseError {
    /// No such standard case.
    #[error("expected one of the cases {known}, found {found:?}")]
    Unknown {
        /// Their names.
        known: String,
        /// What was asked for.
        found: String,
    },
    /// A number out of bounds.
    #[error("case {case}, {what}: expected {expected}, found {found}")]
    Bounds {
        /// Name of the case.
        case: String,
        /// Which number.
        what: &'static str,
        /// What is allowed.
        expected: String,
        /// What was asked for.
        found: usize,
    },
    /// Frames that the pre-processing refuses.
    #[error("case {case}: {error}")]
    Frame {
        /// Name of the case.
        case: String,
        /// Why.
        error: ImageError,
    },
}

/// A case in tokens and pixels: what its frames and its prompt become.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// Width and height of an image as the vision tower reads it.
    pub image: (u32, u32),
    /// Image tokens of one camera.
    pub image_tokens: usize,
    /// Tokens of the instruction.
    pub instruction_tokens: usize,
    /// Tokens of the whole prompt.
    pub prompt_tokens: usize,
}

impl Case {
    /// The cases that are run where none is named.
    ///
    /// | name | cameras | frame | prompt | horizon | after |
    /// |---|---|---|---|---|---|
    /// | `nvidia-1cam` | 1 | 256x256 | 122 | 50 | NVIDIA's own table: one view, horizon of the base checkpoint |
    /// | `2cam` | 2 | 640x480 | 250 | 50 | two USB cameras |
    /// | `alfie-4cam` | 4 | 320x280 | 420 | 16 | a two-armed mobile robot with four cameras |
    pub fn standard() -> [Self; 3] {
        let case = |name: &str, cameras, frame, prompt_tokens, horizon| Self {
            name: name.to_owned(),
            cameras,
            frame,
            prompt_tokens,
            horizon,
            steps: None,
            batch: 1,
        };
        [
            case("nvidia-1cam", 1, (256, 256), 122, 50),
            case("2cam", 2, (640, 480), 250, 50),
            case("alfie-4cam", 4, (320, 280), 420, 16),
        ]
    }

    /// The standard case of this name.
    ///
    /// # Errors
    /// [`CaseError::Unknown`].
    pub fn by_name(name: &str) -> Result<Self, CaseError> {
        let known = Self::standard();
        known.iter().find(|case| case.name == name).cloned().ok_or_else(|| CaseError::Unknown {
            known: known.map(|case| case.name).join(", "),
            found: name.to_owned(),
        })
    }

    /// The case with something otherwise.
    ///
    /// # Errors
    /// As [`shape`](Self::shape), of the case as it is and as it is to be.
    pub fn with(self, overrides: &Overrides) -> Result<Self, CaseError> {
        let instruction = self.shape()?.instruction_tokens;
        let mut case = Self {
            cameras: overrides.cameras.unwrap_or(self.cameras),
            frame: overrides.frame.unwrap_or(self.frame),
            horizon: overrides.horizon.unwrap_or(self.horizon),
            steps: overrides.steps.or(self.steps),
            batch: overrides.batch.unwrap_or(self.batch),
            // For the moment one that fits any images; the next lines give it its own.
            prompt_tokens: MAX_PROMPT_TOKENS,
            ..self
        };
        let widest = case.shape()?;
        let without = MAX_PROMPT_TOKENS - widest.instruction_tokens;
        case.prompt_tokens = overrides.prompt_tokens.unwrap_or(without + instruction);
        case.shape()?;
        Ok(case)
    }

    /// What its frames and its prompt become.
    ///
    /// # Errors
    /// A number out of bounds, frames that the pre-processing refuses, or a prompt too short for its images.
    pub fn shape(&self) -> Result<Shape, CaseError> {
        let bounds = |what, expected: String, found| CaseError::Bounds {
            case: self.name.clone(),
            what,
            expected,
            found,
        };
        for (what, found, most) in [
            ("cameras", self.cameras, MAX_CAMERAS),
            ("batch", self.batch, MAX_BATCH),
            ("horizon", self.horizon, MAX_HORIZON),
        ] {
            if !(1..=most).contains(&found) {
                return Err(bounds(what, format!("1 to {most}"), found));
            }
        }
        let (width, height) = self.frame;
        let image = ImageTransform::new(SHORTEST_EDGE, CROP_FRACTION)
            .and_then(|transform| transform.output_size(width, height))
            .map_err(|error| CaseError::Frame { case: self.name.clone(), error })?;
        let image_tokens = image_tokens(image.0, image.1);
        let least = FRAME_TOKENS + self.cameras * (image_tokens + IMAGE_FRAME_TOKENS);
        let most = MAX_PROMPT_TOKENS;
        if !(least..=most).contains(&self.prompt_tokens) {
            let expected = format!("{least} (template and images) to {most}");
            return Err(bounds("prompt tokens", expected, self.prompt_tokens));
        }
        let instruction_tokens = self.prompt_tokens - least;
        Ok(Shape { image, image_tokens, instruction_tokens, prompt_tokens: self.prompt_tokens })
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (width, height) = self.frame;
        let cameras = if self.cameras == 1 { "camera" } else { "cameras" };
        write!(
            f,
            "{}: {} {cameras} of {width}x{height}, {} prompt tokens, horizon {}",
            self.name, self.cameras, self.prompt_tokens, self.horizon
        )?;
        if let Some(steps) = self.steps {
            write!(f, ", {steps} denoising steps")?;
        }
        if self.batch > 1 {
            write!(f, ", batch {}", self.batch)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_standard_cases_become_the_images_and_prompts_that_their_sizes_imply() {
        let shapes = Case::standard().map(|case| case.shape().unwrap());
        let of = |shape: &Shape| (shape.image, shape.image_tokens, shape.instruction_tokens);
        assert_eq!(of(&shapes[0]), ((252, 252), 81, 18));
        assert_eq!(of(&shapes[1]), ((336, 252), 108, 4));
        assert_eq!(of(&shapes[2]), ((280, 252), 90, 16));
    }

    #[test]
    fn with_other_cameras_the_instruction_keeps_its_length_unless_the_prompts_is_given() {
        let [one, ..] = Case::standard();
        let three = Overrides { cameras: Some(3), frame: Some((640, 480)), ..Overrides::default() };
        let case = one.clone().with(&three).unwrap();
        assert_eq!(case.prompt_tokens, 16 + 18 + 3 * (108 + 7));
        assert_eq!(case.shape().unwrap().instruction_tokens, 18);
        let given = Overrides { prompt_tokens: Some(500), ..three };
        assert_eq!(one.clone().with(&given).unwrap().prompt_tokens, 500);
        assert_eq!(one.clone().with(&Overrides::default()).unwrap(), one);
        let long = Overrides { horizon: Some(1025), ..Overrides::default() };
        assert!(one.with(&long).unwrap_err().to_string().contains("horizon: expected 1 to 1024"));
    }

    #[test]
    fn what_cannot_be_is_refused_with_what_can() {
        let error = Case::by_name("5cam").unwrap_err().to_string();
        assert!(error.contains("nvidia-1cam, 2cam, alfie-4cam") && error.contains("5cam"), "{error}");
        let [one, ..] = Case::standard();
        let refused = |case: Case| case.shape().unwrap_err().to_string();
        let text = refused(Case { prompt_tokens: 103, ..one.clone() });
        assert!(text.contains("expected 104 (template and images)") && text.ends_with("found 103"), "{text}");
        assert!(refused(Case { cameras: 0, ..one.clone() }).contains("cameras: expected 1 to 9, found 0"));
        assert!(refused(Case { batch: 257, ..one.clone() }).contains("batch: expected 1 to 256"));
        assert!(refused(Case { frame: (0, 9), ..one }).contains("0x9"));
    }
}
