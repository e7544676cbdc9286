//! What the graphs and libtorch are given.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use image::RgbImage;
use ndarray::{Array2, Array3, Array4, ArrayD, Axis, Ix2, Ix3, Ix4, IxDyn};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use tch::Tensor;

use crate::{
    checkpoint::Checkpoint,
    engine_builder::{
        backbone::image_token,
        synthetic::{self, SyntheticTick},
    },
    model::{network::to_array, policy::seeded_noise},
    observation::Observation,
    processor::Processor,
};

/// One tick as the network gets it.
pub struct Inputs {
    /// Where it comes from, for people.
    pub described: String,
    /// Index of the embodiment.
    pub embodiment: usize,
    /// (N, H, W, 3).
    pub frames: Array4<u8>,
    /// (1, S), without padding.
    pub ids: Array2<i64>,
    /// (1, 1, max state dim).
    pub state: Array3<f32>,
    /// (1, horizon, max action dim).
    pub noise: Array3<f32>,
    /// What a part gets whose predecessor was not run: backbone features (1, S, D).
    pub features: Option<Tensor>,
    /// Whether it was recorded, so that each part is to get what the ones before make of it.
    pub recorded: bool,
}

/// Sizes of a synthetic tick.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    pub images: usize,
    /// Height and width in pixels.
    pub size: (usize, usize),
    pub text_tokens: usize,
}

impl Inputs {
    /// A tick of a seed, the same on every machine.
    ///
    /// # Errors
    /// Sizes or an embodiment that the checkpoint does not have.
    pub fn synthetic(checkpoint: &Checkpoint, embodiment: &str, sizes: Sizes, seed: u64) -> Result<Self> {
        let (config, eagle) = (&checkpoint.config, &checkpoint.eagle);
        let Sizes { images, size: (height, width), text_tokens: text } = sizes;
        let cell = eagle.vision.patch_size * eagle.unshuffle_factor();
        ensure!(
            height.is_multiple_of(cell) && width.is_multiple_of(cell),
            "--image-size: expected height and width in multiples of {cell} pixels, found {height}x{width}"
        );
        let image = images * (height / cell) * (width / cell);
        let most = config.max_num_embodiments;
        let embodiment = match embodiment.parse::<usize>() {
            Ok(index) if index < most => index,
            Ok(index) => bail!("--embodiment: expected a tag or an index below {most}, found {index}"),
            Err(_) => checkpoint.embodiments.index(embodiment, most)?,
        };
        let tick = SyntheticTick::new(config, seed, text, image)?;
        Ok(Self {
            described: format!(
                "synthetic from seed {seed}: {images} images of {height}x{width}, {text} tokens of text"
            ),
            embodiment,
            frames: synthetic::frames(seed, images, sizes.size),
            ids: synthetic::token_ids(seed, text, image, image_token(eagle), eagle.text.vocab_size),
            state: to_array(&tick.state)?,
            noise: to_array(&tick.noise)?,
            features: Some(tick.features),
            recorded: false,
        })
    }

    /// An observation of a golden folder, through the policy's own processing.
    ///
    /// # Errors
    /// What is missing in the folder, or does not fit the checkpoint.
    pub fn golden(
        checkpoint: &Checkpoint,
        folder: &Path,
        wanted: Option<&str>,
        tokenizer: Option<&Path>,
    ) -> Result<Self> {
        let path = folder.join("manifest.json");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let manifest: Manifest =
            serde_json::from_str(&text).with_context(|| format!("cannot understand {}", path.display()))?;
        let fits = |info: &&Recorded| wanted.is_none_or(|name| info.name == name) && info.batch == 1;
        let Some(info) = manifest.observations.iter().find(fits) else {
            let known: Vec<&str> = manifest
                .observations
                .iter()
                .filter(|info| info.batch == 1)
                .map(|info| info.name.as_str())
                .collect();
            let wanted = wanted.unwrap_or("one");
            bail!("{}: expected an observation {wanted} of one sample, found only {known:?}", path.display());
        };
        let path = folder.join(format!("{}.inputs.safetensors", info.name));
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let file = SafeTensors::deserialize(&bytes)
            .with_context(|| format!("{}: no safetensors file", path.display()))?;
        let mut observation = Observation {
            video: BTreeMap::new(),
            state: BTreeMap::new(),
            instruction: info.language.first().to_owned(),
        };
        for (name, view) in file.tensors() {
            let problem = || format!("{}: tensor {name}", path.display());
            if let Some(camera) = name.strip_prefix("video.") {
                let bytes = view.data().to_vec();
                ensure!(view.dtype() == Dtype::U8, "{}: expected bytes, found {:?}", problem(), view.dtype());
                let frames = array::<u8, Ix4>(view.shape(), bytes).with_context(problem)?;
                let frames = frames.axis_iter(Axis(0)).map(|frame| {
                    let (height, width, _) = frame.dim();
                    let bytes = frame.iter().copied().collect();
                    RgbImage::from_raw(width as u32, height as u32, bytes).context("three channels")
                });
                let frames = frames.collect::<Result<Vec<_>>>().with_context(problem)?;
                observation.video.insert(camera.to_owned(), frames);
            } else if let Some(key) = name.strip_prefix("state.") {
                let values = array::<f32, Ix2>(view.shape(), floats(&view).with_context(problem)?);
                observation.state.insert(key.to_owned(), values.with_context(problem)?);
            }
        }
        let config = &checkpoint.config;
        let noise = match file.tensor("noise") {
            Ok(view) => array::<f32, Ix3>(view.shape(), floats(&view)?).context("the tensor noise")?,
            Err(_) => seeded_noise(0, (config.action_horizon, config.max_action_dim)).insert_axis(Axis(0)),
        };
        // The tokenizer lies in the checkpoint, or beside it.
        let beside = checkpoint.dir.join("../tokenizer");
        let own = checkpoint.dir.join("tokenizer").is_dir() || checkpoint.dir.join("vocab.json").is_file();
        let tokenizer = tokenizer.or((!own && beside.is_dir()).then_some(beside.as_path()));
        let processor = Processor::load(checkpoint, tokenizer, &info.embodiment_tag)?;
        let inputs = processor.prepare(&observation)?;
        Ok(Self {
            described: format!("observation {} of {}", info.name, folder.display()),
            embodiment: processor.embodiment_index(),
            frames: inputs.images,
            ids: inputs.input_ids,
            state: inputs.state,
            noise,
            features: None,
            recorded: true,
        })
    }
}

#[derive(Deserialize)]
struct Manifest {
    observations: Vec<Recorded>,
}

#[derive(Deserialize)]
struct Recorded {
    name: String,
    embodiment_tag: String,
    batch: usize,
    language: OneOrMany,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn first(&self) -> &str {
        match self {
            Self::One(text) => text,
            Self::Many(texts) => texts.first().map_or("", String::as_str),
        }
    }
}

/// The array of a tensor, whose number of axes must be the expected one.
fn array<T, D: ndarray::Dimension>(shape: &[usize], values: Vec<T>) -> Result<ndarray::Array<T, D>> {
    let array = ArrayD::from_shape_vec(IxDyn(shape), values)?;
    array
        .into_dimensionality::<D>()
        .with_context(|| format!("expected another number of axes, found {shape:?}"))
}

fn floats(view: &safetensors::tensor::TensorView) -> Result<Vec<f32>> {
    let bytes = view.data();
    match view.dtype() {
        Dtype::F32 => Ok(bytes.as_chunks::<4>().0.iter().map(|chunk| f32::from_le_bytes(*chunk)).collect()),
        Dtype::F64 => {
            Ok(bytes.as_chunks::<8>().0.iter().map(|chunk| f64::from_le_bytes(*chunk) as f32).collect())
        }
        other => bail!("expected f32, found {other:?}"),
    }
}
