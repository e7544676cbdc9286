//! Engines of the backbone's parts against libtorch.

use std::time::Instant;

use anyhow::{Result, bail};
use ndarray::{Array2, Array4};
use tch::{Device, Kind, Tensor};

use super::graph::GraphPart;
use super::synthetic;
use crate::{
    checkpoint::{Checkpoint, EagleConfig},
    engine::{AccuracyRecord, LatencyRecord},
    evaluation::{DenoisingErrors, LatencySamples},
    model::{
        ModelError,
        device::to_host,
        language::LanguageModel,
        layers::Loader,
        probe::Probe,
        tensorrt::SingleRun,
        tokens::TokenLayout,
        vision::{VisionTower, normalize_pixels},
    },
    onnx::ElementType,
    tensorrt::Engine,
};

/// Runs before the first timed one.
const WARM_UP: usize = 3;
/// Timed runs.
const ITERATIONS: usize = 20;

/// What libtorch makes of inputs of a part.
pub struct Reference {
    /// The graph's input and its values.
    pub input: (&'static str, Tensor),
    /// The graph's output and its values.
    pub output: (&'static str, Tensor),
}

/// Frames (N, H, W, 3) as a tensor.
///
/// # Errors
/// libtorch has no memory.
pub fn frames_tensor(frames: &Array4<u8>) -> Result<Tensor, ModelError> {
    let shape: Vec<i64> = frames.shape().iter().map(|&n| n as i64).collect();
    let flat: Vec<u8> = frames.iter().copied().collect();
    Ok(Tensor::f_from_slice(&flat)?.f_reshape(shape)?)
}

/// The vision tower in f32 on frames (N, H, W, 3); `probe` sees every layer.
///
/// # Errors
/// The checkpoint lacks something, or the frames do not fit.
pub fn vision_reference(
    checkpoint: &Checkpoint,
    frames: &Array4<u8>,
    device: Device,
    probe: &mut Probe,
) -> Result<Reference, ModelError> {
    let at = Loader::new(&checkpoint.weights, device, Kind::Float).at("backbone.model");
    let mut tower = VisionTower::load(&at, &checkpoint.eagle)?;
    let frames = frames_tensor(frames)?.f_to_device(device)?;
    let embeds = tower.forward(&frames, probe)?;
    let pixels = normalize_pixels(&frames, Kind::Float)?.f_permute([0, 3, 1, 2])?.f_contiguous()?;
    Ok(Reference { input: ("pixel_values", pixels), output: ("image_embeds", embeds) })
}

/// The language model in f32 on token ids (1, S), its rotary frequencies rounded to `frequencies`. `images`: embeddings of
/// the image tokens; where there are none, normal values as large as those of the text.
///
/// # Errors
/// The checkpoint lacks something, or the ids do not fit.
pub fn language_reference(
    checkpoint: &Checkpoint,
    ids: &Array2<i64>,
    images: Option<&Tensor>,
    frequencies: Kind,
    device: Device,
    probe: &mut Probe,
) -> Result<Reference, ModelError> {
    let at = Loader::new(&checkpoint.weights, device, Kind::Float).at("backbone.model.language_model");
    let mut language = LanguageModel::load(&at, &checkpoint.eagle, checkpoint.config.select_layer)?;
    language.round_frequencies(&checkpoint.eagle, frequencies)?;
    let valid = Array2::from_elem(ids.dim(), true);
    let layout = TokenLayout::new(ids.view(), valid.view(), image_token(&checkpoint.eagle), device)?;
    let embeddings = match images {
        Some(images) => language.embed(&layout, images)?,
        None => {
            let shape = [layout.image.len(), checkpoint.eagle.text.hidden_size as i64];
            let nothing = Tensor::f_zeros(shape, (Kind::Float, device))?;
            let text = layout.text.gather(&language.embed(&layout, &nothing)?)?;
            let size = text.f_square()?.f_mean(Kind::Float)?.f_sqrt()?.f_double_value(&[])?;
            // Rows that training never touched may be zero, and zeros would show nothing.
            let size = if size > 0.0 { size } else { 1.0 };
            language.embed(&layout, &normal(shape)?.f_to_device(device)?.f_mul_scalar(size)?)?
        }
    };
    let context = language.context(&layout)?;
    let features = language.forward(&embeddings, &context, probe)?;
    Ok(Reference { input: ("inputs_embeds", embeddings), output: ("hidden_states", features) })
}

/// The id of image tokens.
pub fn image_token(eagle: &EagleConfig) -> i64 {
    i64::from(eagle.image_token_index)
}

/// Normal values, the same on every machine.
fn normal(shape: [i64; 2]) -> Result<Tensor, ModelError> {
    let [rows, columns] = shape.map(|n| n.max(0) as usize);
    let values: Vec<f32> = crate::model::policy::seeded_noise(0, (rows, columns)).into_iter().collect();
    Ok(Tensor::f_from_slice(&values)?.f_reshape(shape)?)
}

/// Runs an engine of a part of the backbone on synthetic inputs of the usual sizes and holds it against libtorch in f32.
///
/// # Errors
/// Another graph, or what libtorch and TensorRT refuse.
pub fn compare(
    engine: &Engine,
    part: &GraphPart,
    checkpoint: &Checkpoint,
    seed: u64,
    device: Device,
) -> Result<(AccuracyRecord, LatencyRecord)> {
    let Reference { input: (input, values), output: (output, expected) } = match *part {
        GraphPart::Vision { images, size } => {
            let frames = synthetic::frames(seed, images.usual(), size);
            vision_reference(checkpoint, &frames, device, &mut Probe::off())?
        }
        GraphPart::Language { tokens, frequencies } => {
            // Rounded frequencies are what such a model was trained for, and no error of the engine.
            let frequencies = match frequencies {
                ElementType::Bf16 => Kind::BFloat16,
                _ => Kind::Float,
            };
            let (image, eagle) = (tokens.usual() / 2, &checkpoint.eagle);
            let text = tokens.usual() - image;
            let ids = synthetic::token_ids(seed, text, image, image_token(eagle), eagle.text.vocab_size);
            language_reference(checkpoint, &ids, None, frequencies, device, &mut Probe::off())?
        }
        _ => bail!("expected a part of the backbone, found {part:?}"),
    };
    let mut run = SingleRun::new(engine, &[(input, values)], (output, &expected.size()), device)?;
    run.run()?;
    let mut errors = DenoisingErrors::default();
    errors.push(0, &to_host(&expected)?, &to_host(&run.output()?)?)?;
    let mut latency = LatencySamples::default();
    for iteration in 0..WARM_UP + ITERATIONS {
        let start = Instant::now();
        run.run()?;
        if iteration >= WARM_UP {
            latency.push(start.elapsed());
        }
    }
    let (summary, latency) =
        (errors.summary().unwrap_or_default().overall, latency.summary().unwrap_or_default());
    let accuracy = AccuracyRecord {
        against: "libtorch Float".to_owned(),
        inputs: format!("synthetic inputs of the usual sizes from seed {seed}"),
        // Values that are not finite stand in the way of figures.
        mse: summary.mse.unwrap_or(f64::MAX),
        cosine: summary.cosine.unwrap_or(0.0),
        least_cosine: 0.0,
        max_error: summary.max_abs.unwrap_or(f64::MAX),
        mse_per_step: vec![summary.mse.unwrap_or(f64::MAX)],
        growth: 1.0,
    };
    let latency = LatencyRecord {
        of: "one run, kernel by kernel, synchronised".to_owned(),
        iterations: latency.count,
        median_ms: latency.median,
        mean_ms: latency.mean,
        p90_ms: latency.p90,
    };
    Ok((accuracy, latency))
}
