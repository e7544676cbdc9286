//! Random observations and the node's own chain over them.

use std::{collections::BTreeMap, path::Path};

use image::RgbImage;
use ndarray::{Array2, Array3, Axis};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use super::{
    cases::{CROP_FRACTION, Case, SHORTEST_EDGE, Shape},
    layout::random_prompt,
};
use crate::{
    checkpoint::{ModelConfig, processor_config::ProcessorConfig, statistics::Statistics},
    model::policy::seeded_noise,
    observation::Observation,
    processor::{ModelInputs, Processor, ProcessorError, text::PromptTokenizer},
};

/// Embodiment tag, and the instruction whose prompt is drawn.
const NAME: &str = "benchmark";
/// State and action keys with their widths: two arms, relative to the state, and two grippers.
const KEYS: [(&str, usize); 2] = [("arms", 14), ("grippers", 2)];
/// The values of all keys lie in ± this.
const RANGE: f32 = 3.0;
/// Side of the coloured squares of a random frame, in pixels, and the largest deviation of a pixel from its square.
const SQUARE: u32 = 32;
const GRAIN: i16 = 24;

/// One set of inputs: a batch of observations and the noise that each is denoised from.
struct Set {
    observations: Vec<Observation>,
    /// (batch, horizon, max action dim).
    noise: Array3<f32>,
}

/// The pre-processing and decoding of a case, with observations to run it on.
///
/// Frames are coloured squares with grain, states uniform over their range, the instruction random words. The instruction is
/// the same in all sets, as it is from tick to tick on a robot; everything else differs.
pub struct Chain {
    processor: Processor,
    sets: Vec<Set>,
}

impl Chain {
    /// `count` sets for a model of these sizes; equal seeds give equal sets on every machine.
    ///
    /// # Errors
    /// The model's vectors are too narrow for two arms.
    pub fn new(
        model: &ModelConfig,
        case: &Case,
        shape: &Shape,
        count: usize,
        seed: u64,
    ) -> Result<Self, ProcessorError> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let images = vec![shape.image_tokens; case.cameras];
        let prompt = random_prompt(&mut random, shape.instruction_tokens, &images);
        let prompt = PromptTokenizer::of_one_prompt(NAME, true, &images, prompt);
        // The paths are for messages only: both documents are made here.
        let bytes = |document: Value| document.to_string().into_bytes();
        let config =
            ProcessorConfig::parse(Path::new("processor_config.json"), &bytes(settings(model, case)))?;
        let statistics = Statistics::parse(Path::new("statistics.json"), &bytes(statistics(case)))?;
        let processor = Processor::assemble(&config, &statistics, NAME, 0, prompt)?;
        let noise_shape = (case.horizon, model.max_action_dim);
        let sets = (0..count).map(|_| {
            let observations = (0..case.batch).map(|_| observation(&mut random, case)).collect();
            let noise: Vec<Array2<f32>> =
                (0..case.batch).map(|_| seeded_noise(random.random(), noise_shape)).collect();
            let noise: Vec<_> = noise.iter().map(|noise| noise.view()).collect();
            // All are of one shape.
            let noise = ndarray::stack(Axis(0), &noise).map_err(|_| ProcessorError::Empty)?;
            Ok(Set { observations, noise })
        });
        Ok(Self { processor, sets: sets.collect::<Result<_, ProcessorError>>()? })
    }

    /// Number of sets.
    pub fn len(&self) -> usize {
        self.sets.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.sets.is_empty()
    }

    /// What the node does before the network, on set `set` (counted round).
    ///
    /// # Errors
    /// There are no sets.
    pub fn prepare(&self, set: usize) -> Result<ModelInputs, ProcessorError> {
        self.processor.prepare_batch(&self.set(set)?.observations)
    }

    /// The processor of the case.
    pub fn processor(&self) -> &Processor {
        &self.processor
    }

    /// The observations of set `set`: one batch.
    ///
    /// # Errors
    /// There are no sets.
    pub fn observations(&self, set: usize) -> Result<&[Observation], ProcessorError> {
        Ok(&self.set(set)?.observations)
    }

    /// The raw frames of set `set`, with their cameras, in the order of the network.
    ///
    /// # Errors
    /// There are no sets.
    pub fn frames(&self, set: usize) -> Result<Vec<(&str, &RgbImage)>, ProcessorError> {
        let mut frames = Vec::new();
        for observation in &self.set(set)?.observations {
            frames.extend(self.processor.frames(observation)?);
        }
        Ok(frames)
    }

    /// The noise of set `set`, (batch, horizon, max action dim).
    ///
    /// # Errors
    /// There are no sets.
    pub fn noise(&self, set: usize) -> Result<&Array3<f32>, ProcessorError> {
        Ok(&self.set(set)?.noise)
    }

    /// What the node does after the network. Returns the number of physical values.
    ///
    /// # Errors
    /// Values that are not finite.
    pub fn decode(&self, set: usize, normalised: &Array3<f32>) -> Result<usize, ProcessorError> {
        let mut values = 0;
        for (actions, observation) in normalised.outer_iter().zip(&self.set(set)?.observations) {
            let decoded = self.processor.decode(actions, &observation.state)?;
            values += decoded.iter().map(|(_, rows)| rows.len()).sum::<usize>();
        }
        Ok(values)
    }

    fn set(&self, set: usize) -> Result<&Set, ProcessorError> {
        self.sets.get(set % self.sets.len().max(1)).ok_or(ProcessorError::Empty)
    }
}

fn camera(index: usize) -> String {
    format!("camera_{}", index + 1)
}

/// A `processor_config.json` of two arms and the case's cameras.
fn settings(model: &ModelConfig, case: &Case) -> Value {
    let now = [0];
    let keys = KEYS.map(|(key, _)| key);
    let action = |rep| json!({"rep": rep, "type": "NON_EEF", "format": "DEFAULT", "state_key": null});
    let modalities = json!({
        "video": {
            "delta_indices": now,
            "modality_keys": (0..case.cameras).map(camera).collect::<Vec<_>>(),
        },
        "state": {"delta_indices": now, "modality_keys": keys},
        "action": {
            "delta_indices": (0..case.horizon).collect::<Vec<_>>(),
            "modality_keys": keys,
            "action_configs": [action("RELATIVE"), action("ABSOLUTE")],
        },
        "language": {"delta_indices": now, "modality_keys": ["instruction"]},
    });
    json!({"processor_kwargs": {
        "modality_configs": {NAME: modalities},
        "shortest_image_edge": SHORTEST_EDGE,
        "crop_fraction": CROP_FRACTION,
        "use_albumentations": true,
        "formalize_language": true,
        "use_relative_action": true,
        "max_state_dim": model.max_state_dim,
        "max_action_dim": model.max_action_dim,
        "max_action_horizon": case.horizon,
    }})
}

/// A `statistics.json` in which every value lies in ± [`RANGE`].
fn statistics(case: &Case) -> Value {
    let row = |dim: usize, value: f32| vec![value; dim];
    let of = |dim| json!({"mean": row(dim, 0.0), "std": row(dim, 1.0), "min": row(dim, -RANGE), "max": row(dim, RANGE)});
    let all: BTreeMap<&str, Value> = KEYS.iter().map(|&(key, dim)| (key, of(dim))).collect();
    let (relative, dim) = KEYS[0];
    let rows = |value: f32| vec![row(dim, value); case.horizon];
    let relative = BTreeMap::from([(
        relative,
        json!({"mean": rows(0.0), "std": rows(1.0), "min": rows(-RANGE), "max": rows(RANGE)}),
    )]);
    json!({NAME: {"state": all, "action": all, "relative_action": relative}})
}

fn observation(random: &mut ChaCha8Rng, case: &Case) -> Observation {
    let video = (0..case.cameras).map(|index| (camera(index), vec![frame(random, case.frame)])).collect();
    let state = KEYS.map(|(key, dim)| {
        (key.to_owned(), Array2::from_shape_simple_fn((1, dim), || random.random_range(-RANGE..RANGE)))
    });
    Observation { video, state: state.into(), instruction: NAME.to_owned() }
}

fn frame(random: &mut ChaCha8Rng, (width, height): (u32, u32)) -> RgbImage {
    let (columns, rows) = (width.div_ceil(SQUARE), height.div_ceil(SQUARE));
    let colours: Vec<[u8; 3]> = (0..columns * rows).map(|_| random.random()).collect();
    RgbImage::from_fn(width, height, |x, y| {
        let colour = colours[(y / SQUARE * columns + x / SQUARE) as usize];
        let grain = random.random_range(-GRAIN..=GRAIN);
        image::Rgb(colour.map(|value| (i16::from(value) + grain).clamp(0, 255) as u8))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::processor::RawInputs;
    use crate::{benchmark::model_sizes::KnownModel, processor::text::IMAGE_TOKEN_ID};

    fn chain(case: &Case, seed: u64) -> Chain {
        Chain::new(&KnownModel::Tiny.sizes().model, case, &case.shape().unwrap(), 2, seed).unwrap()
    }

    #[test]
    fn the_inputs_have_the_sizes_that_the_case_announces() {
        for case in Case::standard() {
            let case = Case { batch: 2, ..case };
            let shape = case.shape().unwrap();
            let chain = chain(&case, 3);
            let inputs = chain.prepare(1).unwrap();
            let (width, height) = shape.image;
            let images = 2 * case.cameras;
            assert_eq!(inputs.images.dim(), (images, height as usize, width as usize, 3));
            assert_eq!(inputs.input_ids.dim(), (2, case.prompt_tokens));
            assert!(inputs.attention_mask.iter().all(|&real| real));
            let image_tokens = inputs.input_ids.iter().filter(|&&id| id == IMAGE_TOKEN_ID).count();
            assert_eq!(image_tokens, images * shape.image_tokens);
            assert_eq!(chain.noise(1).unwrap().dim(), (2, case.horizon, 20));
            let decoded = chain.decode(1, chain.noise(1).unwrap()).unwrap();
            assert_eq!(decoded, 2 * case.horizon * 16);
        }
    }

    #[test]
    fn sets_differ_and_equal_seeds_give_equal_sets() {
        let [case, ..] = Case::standard();
        let (one, same, other) = (chain(&case, 1), chain(&case, 1), chain(&case, 2));
        let inputs = |chain: &Chain, set| chain.prepare(set).unwrap();
        assert_eq!(inputs(&one, 0).images, inputs(&same, 0).images);
        assert_eq!(one.noise(0).unwrap(), same.noise(0).unwrap());
        assert_eq!(inputs(&one, 0).input_ids, inputs(&one, 1).input_ids);
        for (a, b) in [((&one, 0), (&one, 1)), ((&one, 0), (&other, 0))] {
            assert_ne!(inputs(a.0, a.1).images, inputs(b.0, b.1).images);
            assert_ne!(inputs(a.0, a.1).state, inputs(b.0, b.1).state);
            assert_ne!(a.0.noise(a.1).unwrap(), b.0.noise(b.1).unwrap());
        }
        // Sets are counted round.
        assert_eq!(inputs(&one, 2).images, inputs(&one, 0).images);
    }

    #[test]
    fn raw_inputs_are_the_prepared_ones_whose_pixels_are_still_to_be_made() {
        for case in Case::standard() {
            let chain = chain(&Case { batch: 2, ..case }, 5);
            let prepared = chain.prepare(0).unwrap();
            let RawInputs { frames, inputs } =
                chain.processor.prepare_raw(&chain.set(0).unwrap().observations).unwrap();
            assert_eq!(inputs.input_ids, prepared.input_ids);
            assert_eq!(inputs.attention_mask, prepared.attention_mask);
            assert_eq!(inputs.state, prepared.state);
            let (images, height, width, _) = prepared.images.dim();
            assert_eq!(inputs.images.dim(), (images, height, width, 0));
            let made: Vec<u8> = frames
                .iter()
                .flat_map(|frame| chain.processor.image_transform().apply(frame).unwrap().into_raw())
                .collect();
            assert!(prepared.images.iter().eq(&made));
        }
    }

    #[test]
    fn frames_are_no_single_colour() {
        let frame = frame(&mut ChaCha8Rng::seed_from_u64(1), (100, 70));
        let mean = frame.as_raw().iter().map(|&v| f64::from(v)).sum::<f64>() / frame.as_raw().len() as f64;
        let variance = frame.as_raw().iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>();
        assert!(variance / frame.as_raw().len() as f64 > 400.0);
    }
}
