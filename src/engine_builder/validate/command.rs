//! The options of `engine_builder validate`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;

use super::{
    inputs::{Inputs, Sizes},
    parts::Part,
};
use crate::{checkpoint::Checkpoint, engine_builder::lengths::ImageSize};

/// Exported graphs against libtorch, layer by layer.
///
/// Writes each part of the network as ONNX, runs it in ONNX Runtime (looked for in ORT_DYLIB_PATH, the active Python environment
/// and .venv: `pip install onnxruntime`) and in libtorch on the same inputs, both in f32, and reports of each layer the mean squared
/// error, the cosine, and the range of values with what of it f16 could not hold. The exit code is 1 where a cosine is too small.
#[derive(Debug, Clone, Parser)]
#[command(name = "engine_builder validate", version)]
pub struct Command {
    /// Checkpoint directory
    #[arg(long, value_name = "DIR")]
    pub checkpoint: PathBuf,
    /// vision, language or dit; may be given several times. All where none is given
    #[arg(long, value_name = "PART")]
    pub part: Vec<Part>,
    /// Where libtorch runs: cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    pub device: String,
    /// File for the report as JSON
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Print the report as JSON instead of tables
    #[arg(long)]
    pub json: bool,
    /// Cosine below which a layer is called wrong
    #[arg(long, value_name = "COSINE", default_value_t = 0.9999)]
    pub least_cosine: f64,
    /// Folder with manifest.json and observations NAME.inputs.safetensors, instead of synthetic inputs
    #[arg(long, value_name = "DIR")]
    pub golden: Option<PathBuf>,
    /// Observation of the golden folder; its first of one sample where it is not given
    #[arg(long, value_name = "NAME", requires = "golden")]
    pub observation: Option<String>,
    /// Folder of the tokenizer for a golden observation, where it is not in the checkpoint
    #[arg(long, value_name = "DIR", requires = "golden")]
    pub tokenizer: Option<PathBuf>,
    /// Embodiment tag of the checkpoint, or its index, for synthetic inputs
    #[arg(long, value_name = "TAG", default_value = "new_embodiment")]
    pub embodiment: String,
    /// Seed of synthetic inputs
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Images of a synthetic observation
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub images: u8,
    /// Their height and width in pixels as the network sees them
    #[arg(long, value_name = "HEIGHTxWIDTH", default_value = "252x336")]
    pub image_size: ImageSize,
    /// Tokens of a synthetic prompt that are not of images
    #[arg(long, value_name = "N", default_value_t = 40, value_parser = clap::value_parser!(u16).range(1..=8192))]
    pub text_tokens: u16,
    /// A file that replaces the built-in configuration of the backbone
    #[arg(long, value_name = "FILE")]
    pub eagle_config: Option<PathBuf>,
    /// Folder to keep the graphs in; a temporary one where it is not given. The 3B model's take up to 5 GB each
    #[arg(long, value_name = "DIR")]
    pub onnx: Option<PathBuf>,
    /// ONNX Runtime's shared library, 1.17 or newer
    #[arg(long, value_name = "FILE")]
    pub onnxruntime: Option<PathBuf>,
}

impl Command {
    /// The parts that are compared, in the order of the network, each once.
    pub fn parts(&self) -> Vec<Part> {
        let chosen = Part::ALL.into_iter().filter(|part| self.part.is_empty() || self.part.contains(part));
        chosen.collect()
    }

    /// What the network is given.
    ///
    /// # Errors
    /// A golden folder that cannot be read, sizes that do not fit the checkpoint.
    pub fn inputs(&self, checkpoint: &Checkpoint) -> Result<Inputs> {
        if let Some(folder) = &self.golden {
            return Inputs::golden(
                checkpoint,
                folder,
                self.observation.as_deref(),
                self.tokenizer.as_deref(),
            );
        }
        let sizes = Sizes {
            images: self.images.into(),
            size: (self.image_size.height, self.image_size.width),
            text_tokens: self.text_tokens.into(),
        };
        Inputs::synthetic(checkpoint, &self.embodiment, sizes, self.seed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_compared_in_the_order_of_the_network_and_all_where_none_is_named() {
        let read = |line: &str| Command::try_parse_from(line.split(' '));
        assert_eq!(read("validate --checkpoint c").unwrap().parts(), Part::ALL);
        let two = read("validate --checkpoint c --part dit --part vision --part dit").unwrap();
        assert_eq!(two.parts(), [Part::Vision, Part::Dit]);
        let error = read("validate --checkpoint c --part backbone").unwrap_err().to_string();
        assert!(error.contains("language"), "{error}");
        assert!(read("validate --checkpoint c --observation obs0").is_err());
    }
}
