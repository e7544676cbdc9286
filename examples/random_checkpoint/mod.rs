//! A checkpoint of the action head at the size of the released 3B model, with random weights: the same on every machine.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use groot_policy::checkpoint::{
    Checkpoint, EagleConfig, ModelConfig, OpenOptions, Parts, Purpose, TensorSpec, key_table,
};
use half::bf16;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Normal};
use rayon::prelude::*;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;

/// Of the built-in table: `new_embodiment`.
pub const EMBODIMENT: usize = 10;
/// Standard deviation of the weights: what such networks are initialised with.
const SPREAD: f32 = 0.02;
/// Of the decoder's last layer, so that velocities are about as large as the noise.
const LAST_SPREAD: f32 = 0.08;
/// Bytes of a shard.
const SHARD: usize = 512 << 20;
/// Values from one seed.
const CHUNK: usize = 1 << 20;

/// Where the checkpoint goes, and its size.
#[derive(clap::Args)]
pub struct CheckpointOptions {
    #[arg(long)]
    dir: PathBuf,
    /// Blocks of the transformer
    #[arg(long, default_value_t = 32)]
    blocks: usize,
}

/// Opens what [`write_checkpoint`] wrote.
pub fn open(dir: &Path) -> Result<Checkpoint> {
    let options = OpenOptions { parts: Parts::ActionHead, ..OpenOptions::default() };
    Ok(Checkpoint::open(dir, &options)?)
}

/// The configuration of the released 3B model, but for the number of blocks.
fn config(blocks: usize) -> serde_json::Value {
    json!({
        "model_type": "Gr00tN1d6",
        "max_state_dim": 128,
        "max_action_dim": 128,
        "action_horizon": 50,
        "diffusion_model_cfg": {
            "num_layers": blocks, "num_attention_heads": 32, "attention_head_dim": 48, "output_dim": 1024,
            "norm_type": "ada_norm", "interleave_self_attention": true, "positional_embeddings": null,
        },
    })
}

/// Writes it, if it is not there.
pub fn write_checkpoint(CheckpointOptions { dir, blocks }: &CheckpointOptions) -> Result<()> {
    let blocks = *blocks;
    if open(dir).is_ok_and(|checkpoint| checkpoint.config.diffusion.num_layers == blocks) {
        println!("{}: is there", dir.display());
        return Ok(());
    }
    fs::create_dir_all(dir)?;
    let config = config(blocks);
    fs::write(dir.join("config.json"), config.to_string())?;
    let joints = json!({"delta_indices": [0], "modality_keys": ["arm"]});
    let camera = json!({"delta_indices": [0], "modality_keys": ["front"]});
    let language = json!({"delta_indices": [0], "modality_keys": ["annotation.human.task_description"]});
    let steps: Vec<usize> = (0..50).collect();
    let actions = json!({
        "delta_indices": steps, "modality_keys": ["arm"],
        "action_configs": [{"rep": "ABSOLUTE", "type": "NON_EEF", "format": "DEFAULT", "state_key": null}],
    });
    let modalities = json!({"video": camera, "state": joints, "action": actions, "language": language});
    let processor = json!({
        "processor_class": "Gr00tN1d6Processor",
        "processor_kwargs": {"use_albumentations": true, "modality_configs": {"new_embodiment": modalities}},
    });
    fs::write(dir.join("processor_config.json"), processor.to_string())?;
    let (zero, low, high) = ([0.0; 7], [-1.0; 7], [1.0; 7]);
    let range = json!({"mean": zero, "std": high, "min": low, "max": high, "q01": low, "q99": high});
    let statistics = json!({"new_embodiment": {"state": {"arm": range}, "action": {"arm": range}}});
    fs::write(dir.join("statistics.json"), statistics.to_string())?;

    let model = ModelConfig::from_json(&config, Path::new("config.json"))?;
    let wanted = key_table(&model, &EagleConfig::n1d6_3b())
        .into_iter()
        .filter(|spec| spec.purpose == Purpose::Inference && spec.name.starts_with("action_head."));
    let mut shards: Vec<Vec<TensorSpec>> = vec![Vec::new()];
    let mut size = 0;
    for spec in wanted {
        size += spec.elements() * 2;
        if size > SHARD && shards.last().is_some_and(|shard| !shard.is_empty()) {
            shards.push(Vec::new());
            size = spec.elements() * 2;
        }
        shards.last_mut().context("a shard")?.push(spec);
    }
    let mut map = BTreeMap::new();
    let count = shards.len();
    for (number, shard) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{count:05}.safetensors", number + 1);
        let tensors: Vec<(String, Vec<usize>, Vec<u8>)> =
            shard.iter().map(|spec| (spec.name.clone(), spec.shape.clone(), random_weights(spec))).collect();
        let views = tensors
            .iter()
            .map(|(name, shape, bytes)| Ok((name, TensorView::new(Dtype::BF16, shape.clone(), bytes)?)))
            .collect::<Result<Vec<_>>>()?;
        safetensors::serialize_to_file(views, None, &dir.join(&name))?;
        map.extend(shard.iter().map(|spec| (spec.name.clone(), name.clone())));
        println!("{name}: {} tensors", shard.len());
    }
    fs::write(dir.join("model.safetensors.index.json"), json!({"weight_map": map}).to_string())?;
    open(dir)?;
    Ok(())
}

/// bf16 values from the tensor's own seed.
fn random_weights(spec: &TensorSpec) -> Vec<u8> {
    if spec.name == "action_head.vlln.weight" {
        return bf16::ONE.to_le_bytes().repeat(spec.elements());
    }
    let spread = if spec.name == "action_head.action_decoder.layer2.W" { LAST_SPREAD } else { SPREAD };
    let seed = blake3::hash(spec.name.as_bytes());
    let mut bytes = vec![0; spec.elements() * 2];
    bytes.par_chunks_mut(CHUNK * 2).enumerate().for_each(|(chunk, bytes)| {
        let mut random = ChaCha8Rng::from_seed(*seed.as_bytes());
        random.set_stream(chunk as u64);
        // A deviation that is positive and finite is accepted.
        let normal = Normal::new(0.0, spread).unwrap_or_else(|_| unreachable!());
        for (place, value) in bytes.chunks_exact_mut(2).zip(normal.sample_iter(&mut random)) {
            place.copy_from_slice(&bf16::from_f32(value).to_le_bytes());
        }
    });
    bytes
}
