//! What an engine of the fused graph must have been built from and for.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::graph::GraphKind;
use super::precision::Precision;
use super::record::{EngineNeeds, GpuRecord, GraphRecord, VersionRecord};
use crate::checkpoint::{BlockContext, ModelConfig};
use crate::onnx::dit::rows;

/// Version of the fused graph as the exporter writes it: raised when its inputs, outputs or arithmetic change.
pub const FUSED_GRAPH_VERSION: u32 = 1;

/// Which engine a policy shall run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineChoice {
    /// The folder that `engine_builder` wrote.
    pub folder: PathBuf,
    pub precision: Precision,
    /// Whether an engine that is missing, damaged or built for something else is built anew rather than refused.
    pub auto_build: bool,
}

/// Names of the fused graph's inputs and output.
pub mod names {
    pub const ACTIONS: &str = "actions";
    pub const STATE_TOKENS: &str = "state_tokens";
    pub const STEP_TERMS: &str = "step_terms";
    pub const VELOCITY: &str = "velocity";

    /// Keys of a cross-attending block.
    pub fn keys(block: usize) -> String {
        format!("keys_{block}")
    }

    /// Values of a cross-attending block.
    pub fn values(block: usize) -> String {
        format!("values_{block}")
    }
}

/// An engine of the fused graph, by what decides whether it fits.
#[derive(Clone, Debug)]
pub struct FusedEngine<'a> {
    /// The checkpoint's folder, for the command that rebuilds.
    pub checkpoint: PathBuf,
    pub checkpoint_hash: String,
    pub config: &'a ModelConfig,
    /// Index of the embodiment that is folded into the graph.
    pub embodiment: usize,
    /// Rows of the state.
    pub state_tokens: usize,
    pub precision: Precision,
    pub tensorrt: VersionRecord,
    pub gpu: GpuRecord,
}

impl FusedEngine<'_> {
    /// What is asked of the engine. Lengths of prompts are not known before they come: an engine is asked for them when it runs.
    pub fn needs(&self) -> EngineNeeds {
        let config = self.config;
        let (width, rows) = (config.input_embedding_dim as i64, rows(config) as i64);
        let actions = vec![1, config.action_horizon as i64, config.max_action_dim as i64];
        let mut shapes = BTreeMap::from([
            (names::ACTIONS.to_owned(), vec![actions]),
            (names::STATE_TOKENS.to_owned(), vec![vec![1, self.state_tokens as i64, width]]),
            (names::STEP_TERMS.to_owned(), vec![vec![rows, width]]),
        ]);
        for (block, _) in cross_blocks(config) {
            shapes.insert(names::keys(block), Vec::new());
            shapes.insert(names::values(block), Vec::new());
        }
        EngineNeeds {
            checkpoint: self.checkpoint.clone(),
            eagle_config: None,
            device: None,
            checkpoint_hash: self.checkpoint_hash.clone(),
            model_config: model_config(config),
            graph: GraphRecord {
                kind: GraphKind::DitFused,
                version: FUSED_GRAPH_VERSION,
                parameters: BTreeMap::from([
                    ("embodiment".to_owned(), json!(self.embodiment)),
                    ("state_tokens".to_owned(), json!(self.state_tokens)),
                ]),
            },
            precision: self.precision,
            shapes,
            tensorrt: self.tensorrt,
            gpu: self.gpu.clone(),
            builder: None,
            calibration_hash: None,
        }
    }
}

/// The blocks that attend to the backbone's tokens, and to which of them.
pub fn cross_blocks(config: &ModelConfig) -> impl Iterator<Item = (usize, BlockContext)> + use<> {
    let every = config.attend_text_every_n_blocks;
    (0..config.diffusion.num_layers)
        .map(move |block| (block, BlockContext::of(block, every)))
        .filter(|(_, reads)| *reads != BlockContext::Own)
}

/// The fields of `config.json` that the graph depends on.
pub fn model_config(config: &ModelConfig) -> BTreeMap<String, Value> {
    let diffusion = &config.diffusion;
    [
        ("max_action_dim", json!(config.max_action_dim)),
        ("action_horizon", json!(config.action_horizon)),
        ("backbone_embedding_dim", json!(config.backbone_embedding_dim)),
        ("hidden_size", json!(config.hidden_size)),
        ("input_embedding_dim", json!(config.input_embedding_dim)),
        ("num_layers", json!(diffusion.num_layers)),
        ("num_attention_heads", json!(diffusion.num_attention_heads)),
        ("attention_head_dim", json!(diffusion.attention_head_dim)),
        ("output_dim", json!(diffusion.output_dim)),
        ("attend_text_every_n_blocks", json!(config.attend_text_every_n_blocks)),
        ("add_pos_embed", json!(config.add_pos_embed)),
        ("num_timestep_buckets", json!(config.num_timestep_buckets)),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}
