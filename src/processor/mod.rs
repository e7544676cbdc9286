//! From what the robot saw to what the network reads, and from what it wrote to physical actions.
//!
//! | file | part |
//! |---|---|
//! | [`image`] | frames to the network's size, bit-exact with OpenCV and Pillow |
//! | [`text`] | instruction to prompt to token ids |
//! | [`state`] | joint values to the normalised state vector |
//! | [`action`] | normalised actions to physical ones and back |
//! | [`guidance`] | planned actions as the target of guided denoising |

pub mod action;
pub mod guidance;
pub mod image;
mod normalisation;
pub mod rotation;
pub mod setup;
mod sincos;
pub mod state;
pub mod text;

use std::{collections::BTreeMap, path::Path};

use ::image::RgbImage;
use ndarray::{Array2, Array3, Array4, ArrayView2, Axis, concatenate};
use rayon::prelude::*;
use thiserror::Error;

use self::{
    action::{ActionError, ActionProcessor},
    image::{ImageError, ImageTransform, image_tokens},
    setup::SetupError,
    state::{StateError, StateProcessor},
    text::{PromptTokenizer, TextError, left_pad},
};
use crate::{
    checkpoint::{
        Checkpoint, processor_config::ProcessorConfig, side_file::SideFileError, statistics::Statistics,
    },
    observation::Observation,
};

/// Physical actions per action key, in the order of the checkpoint's modality keys, each (steps, dimension).
pub type NamedActions = Vec<(String, Array2<f32>)>;

/// Why an observation cannot be processed or actions cannot be decoded.
#[derive(Debug, Error)]
pub enum ProcessorError {
    /// The side files of the checkpoint.
    #[error(transparent)]
    SideFile(#[from] SideFileError),
    /// Settings and statistics that do not fit each other.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// The tokenizer or the instruction.
    #[error(transparent)]
    Text(#[from] TextError),
    /// A frame.
    #[error("camera {camera:?}: {error}")]
    Image {
        /// Camera key.
        camera: String,
        /// What is wrong with the frame.
        error: ImageError,
    },
    /// The image settings of the checkpoint.
    #[error("processor_config.json: {0}")]
    ImageSettings(ImageError),
    /// The state.
    #[error(transparent)]
    State(#[from] StateError),
    /// The actions.
    #[error(transparent)]
    Action(#[from] ActionError),
    /// A camera that the checkpoint needs is absent or has the wrong number of frames.
    #[error(
        "camera {camera:?}: expected {expected} frame(s), found {found}; the observation has {present:?}"
    )]
    Frames {
        /// Camera key.
        camera: String,
        /// Number of video delta indices.
        expected: usize,
        /// Frames in the observation.
        found: usize,
        /// Camera keys of the observation.
        present: Vec<String>,
    },
    /// Cameras that differ in size after resizing, which the reference refuses too.
    #[error(
        "all cameras of an observation must have one size after resizing, but {first:?} becomes {first_size:?} and \
         {second:?} becomes {second_size:?} (width, height); use frames of one aspect ratio"
    )]
    UnequalSizes {
        /// The first camera.
        first: String,
        /// Its size.
        first_size: (u32, u32),
        /// A camera that differs.
        second: String,
        /// Its size.
        second_size: (u32, u32),
    },
    /// Nothing to process.
    #[error("expected at least one observation, found none")]
    Empty,
}

impl ProcessorError {
    fn image(camera: &str, error: ImageError) -> Self {
        Self::Image { camera: camera.to_owned(), error }
    }
}

/// What the network reads: B samples.
#[derive(Debug, Clone)]
pub struct ModelInputs {
    /// (images, height, width, 3): sample by sample, within it time by time, within it camera by camera.
    pub images: Array4<u8>,
    /// Token ids (B, S), padded on the left.
    pub input_ids: Array2<i64>,
    /// True where a token is real, (B, S).
    pub attention_mask: Array2<bool>,
    /// Normalised state (B, state delta indices, max state dim).
    pub state: Array3<f32>,
}

/// What the network reads, but for the pixels.
#[derive(Debug, Clone)]
pub struct RawInputs<'a> {
    /// The frames that become the images, in the images' order.
    pub frames: Vec<&'a RgbImage>,
    /// The rest. Its images have their height and width, and no channels.
    pub inputs: ModelInputs,
}

/// The processing of one embodiment.
pub struct Processor {
    embodiment: String,
    embodiment_index: usize,
    cameras: Vec<String>,
    video_deltas: Vec<i64>,
    state_deltas: Vec<i64>,
    image: ImageTransform,
    prompt: PromptTokenizer,
    formalize: bool,
    state: StateProcessor,
    action: ActionProcessor,
}

impl Processor {
    /// Reads what the processing of `embodiment` needs; `tokenizer` None looks in the checkpoint's own folder.
    ///
    /// # Errors
    /// What is missing or does not fit in the side files or the tokenizer.
    pub fn load(
        checkpoint: &Checkpoint,
        tokenizer: Option<&Path>,
        embodiment: &str,
    ) -> Result<Self, ProcessorError> {
        let index = checkpoint.embodiments.index(embodiment, checkpoint.config.max_num_embodiments)?;
        let own = checkpoint.dir.join("tokenizer");
        let tokenizer = match tokenizer {
            Some(folder) => folder.to_owned(),
            None if own.is_dir() => own,
            None => checkpoint.dir.clone(),
        };
        let prompt = PromptTokenizer::load(&tokenizer)?;
        Self::assemble(&checkpoint.processor, &checkpoint.statistics, embodiment, index, prompt)
    }

    /// From its parts; `index` is the embodiment's slice of the weights.
    ///
    /// # Errors
    /// What does not fit between settings and statistics.
    pub fn assemble(
        config: &ProcessorConfig,
        statistics: &Statistics,
        embodiment: &str,
        index: usize,
        prompt: PromptTokenizer,
    ) -> Result<Self, ProcessorError> {
        let modalities = config.embodiment(embodiment)?;
        Ok(Self {
            embodiment: embodiment.to_owned(),
            embodiment_index: index,
            cameras: modalities.video.modality_keys.clone(),
            video_deltas: modalities.video.delta_indices.clone(),
            state_deltas: modalities.state.delta_indices.clone(),
            image: ImageTransform::new(config.shortest_image_edge, config.crop_fraction)
                .map_err(ProcessorError::ImageSettings)?,
            prompt,
            formalize: config.formalize_language,
            state: StateProcessor::new(config, statistics, embodiment)?,
            action: ActionProcessor::new(config, statistics, embodiment)?,
        })
    }

    /// Tag of the embodiment.
    pub fn embodiment(&self) -> &str {
        &self.embodiment
    }

    /// Which slice of the embodiment-specific weights is used.
    pub fn embodiment_index(&self) -> usize {
        self.embodiment_index
    }

    /// Camera keys, in the order in which the network sees them.
    pub fn cameras(&self) -> &[String] {
        &self.cameras
    }

    /// When the frames of one observation were taken, in steps from the present, oldest first.
    pub fn video_deltas(&self) -> &[i64] {
        &self.video_deltas
    }

    /// When the state samples of one observation were taken, in steps from the present, oldest first.
    pub fn state_deltas(&self) -> &[i64] {
        &self.state_deltas
    }

    /// An observation of black 640x480 frames and zero state, for warming up.
    pub fn blank_observation(&self) -> Observation {
        let frames = vec![RgbImage::new(640, 480); self.video_deltas.len()];
        Observation {
            video: self.cameras.iter().map(|camera| (camera.clone(), frames.clone())).collect(),
            state: self
                .state
                .keys()
                .map(|(key, dim)| (key.to_owned(), Array2::zeros((self.state.time_steps(), dim))))
                .collect(),
            instruction: String::new(),
        }
    }

    /// The state's processing.
    pub fn state(&self) -> &StateProcessor {
        &self.state
    }

    /// The actions' processing.
    pub fn action(&self) -> &ActionProcessor {
        &self.action
    }

    /// One observation to model inputs of one sample.
    ///
    /// # Errors
    /// What is missing in the observation or does not fit the checkpoint.
    pub fn prepare(&self, observation: &Observation) -> Result<ModelInputs, ProcessorError> {
        self.prepare_batch(std::slice::from_ref(observation))
    }

    /// Several observations to one batch; shorter prompts are padded on the left.
    ///
    /// # Errors
    /// See [`prepare`](Self::prepare).
    pub fn prepare_batch(&self, observations: &[Observation]) -> Result<ModelInputs, ProcessorError> {
        let frames = self.all_frames(observations)?;
        let images = self.images(&frames)?;
        let (count, height, width, _) = images.dim();
        let (order, inputs) = self.without_images(observations, count, (width as u32, height as u32))?;
        // An instruction with placeholders of its own changes which image stands where; any other leaves the order.
        let images = if order.iter().copied().eq(0..count) { images } else { images.select(Axis(0), &order) };
        Ok(ModelInputs { images, ..inputs })
    }

    /// [`prepare_batch`](Self::prepare_batch) without the images' pixels, which a device is to make of the frames.
    ///
    /// # Errors
    /// See [`prepare`](Self::prepare).
    pub fn prepare_raw<'a>(
        &'a self,
        observations: &'a [Observation],
    ) -> Result<RawInputs<'a>, ProcessorError> {
        let frames = self.all_frames(observations)?;
        let size = self.output_size(&frames)?;
        let (order, inputs) = self.without_images(observations, frames.len(), size)?;
        // The order names frames that there are.
        let frames = order.into_iter().map(|place| frames[place].1).collect();
        Ok(RawInputs { frames, inputs })
    }

    fn all_frames<'a>(
        &'a self,
        observations: &'a [Observation],
    ) -> Result<Vec<(&'a str, &'a RgbImage)>, ProcessorError> {
        let mut frames = Vec::new();
        for observation in observations {
            frames.extend(self.frames(observation)?);
        }
        Ok(frames)
    }

    /// Which of `count` images of this size (width, height) stands where in the prompts, and the inputs without them.
    fn without_images(
        &self,
        observations: &[Observation],
        count: usize,
        (width, height): (u32, u32),
    ) -> Result<(Vec<usize>, ModelInputs), ProcessorError> {
        let per_sample = count / observations.len().max(1);
        let tokens = vec![image_tokens(width, height); per_sample];
        let mut prompts = Vec::with_capacity(observations.len());
        let mut order = Vec::with_capacity(count);
        let mut states = Vec::with_capacity(observations.len());
        for (sample, observation) in observations.iter().enumerate() {
            let prompt = self.prompt.encode(&observation.instruction, self.formalize, &tokens)?;
            order.extend(prompt.images.iter().map(|image| sample * per_sample + image));
            prompts.push(prompt);
            states.push(self.state.process(&observation.state)?.insert_axis(Axis(0)));
        }
        let ids: Vec<&[i64]> = prompts.iter().map(|prompt| prompt.ids.as_slice()).collect();
        let padded = left_pad(&ids);
        let states: Vec<_> = states.iter().map(|state| state.view()).collect();
        // All states have the one shape that the processor gives, and there is at least one: no frames were refused.
        let state = concatenate(Axis(0), &states).map_err(|_| ProcessorError::Empty)?;
        let attention_mask = padded.attention_mask.mapv(|v| v == 1);
        let images = Array4::zeros((order.len(), height as usize, width as usize, 0));
        Ok((order, ModelInputs { images, input_ids: padded.input_ids, attention_mask, state }))
    }

    /// What turns frames into images.
    pub fn image_transform(&self) -> &ImageTransform {
        &self.image
    }

    /// The frames of one observation in the order of the network, with their cameras: time by time, within it camera by camera.
    ///
    /// # Errors
    /// A camera is absent or has the wrong number of frames.
    pub fn frames<'a>(
        &'a self,
        observation: &'a Observation,
    ) -> Result<Vec<(&'a str, &'a RgbImage)>, ProcessorError> {
        let mut cameras = Vec::with_capacity(self.cameras.len());
        for camera in &self.cameras {
            let frames = observation.video.get(camera).map(Vec::as_slice).unwrap_or_default();
            if frames.len() != self.video_deltas.len() {
                return Err(ProcessorError::Frames {
                    camera: camera.clone(),
                    expected: self.video_deltas.len(),
                    found: frames.len(),
                    present: observation.video.keys().cloned().collect(),
                });
            }
            cameras.push((camera.as_str(), frames));
        }
        Ok((0..self.video_deltas.len())
            .flat_map(|time| cameras.iter().map(move |(camera, frames)| (*camera, &frames[time])))
            .collect())
    }

    /// Frames with their cameras to images (frames, height, width, 3).
    ///
    /// # Errors
    /// A frame that cannot be resized, frames that differ in size afterwards, or none.
    pub fn images(&self, frames: &[(&str, &RgbImage)]) -> Result<Array4<u8>, ProcessorError> {
        let (width, height) = self.output_size(frames)?;
        let resized: Vec<RgbImage> = frames
            .par_iter()
            .map(|(camera, frame)| {
                self.image.apply(frame).map_err(|error| ProcessorError::image(camera, error))
            })
            .collect::<Result<_, _>>()?;
        let mut bytes = Vec::with_capacity(resized.iter().map(|frame| frame.as_raw().len()).sum());
        resized.iter().for_each(|frame| bytes.extend_from_slice(frame.as_raw()));
        let shape = (frames.len(), height as usize, width as usize, 3);
        // Equal sizes after resizing make equal sizes after the last step, so the bytes fill the shape.
        Array4::from_shape_vec(shape, bytes).map_err(|_| ProcessorError::Empty)
    }

    /// (width, height) of the images of these frames, which must agree.
    fn output_size(&self, frames: &[(&str, &RgbImage)]) -> Result<(u32, u32), ProcessorError> {
        let Some((first, first_frame)) = frames.first() else { return Err(ProcessorError::Empty) };
        let size_of = |camera: &str, frame: &RgbImage| {
            self.image
                .resized_size(frame.width(), frame.height())
                .map_err(|error| ProcessorError::image(camera, error))
        };
        let first_size = size_of(first, first_frame)?;
        for (second, frame) in frames {
            let second_size = size_of(second, frame)?;
            if second_size != first_size {
                let (first, second) = ((*first).to_owned(), (*second).to_owned());
                return Err(ProcessorError::UnequalSizes { first, first_size, second, second_size });
            }
        }
        self.image
            .output_size(first_frame.width(), first_frame.height())
            .map_err(|error| ProcessorError::image(first, error))
    }

    /// One sample's normalised actions (action horizon, max action dim) to physical ones; `state` is the raw state
    /// that relative actions refer to.
    ///
    /// # Errors
    /// Non-finite values, or a state that does not fit.
    pub fn decode(
        &self,
        normalised: ArrayView2<f32>,
        state: &BTreeMap<String, Array2<f32>>,
    ) -> Result<NamedActions, ProcessorError> {
        Ok(self.action.decode(normalised, state)?)
    }
}
