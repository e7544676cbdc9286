//! The model directory: a GR00T N1.6 checkpoint as it is published.
//!
//! | file | read by | |
//! |---|---|---|
//! | `config.json` | [`ModelConfig`] | sizes of the network |
//! | `eagle_config.json` | [`EagleConfig`] | sizes of the backbone; optional, the 3B model's are built in |
//! | `processor_config.json` | [`ProcessorConfig`] | modalities of each embodiment, image and language settings |
//! | `statistics.json` | [`Statistics`] | what state and actions are normalised by |
//! | `embodiment_id.json` | [`EmbodimentIds`] | embodiment tag to projector index; optional |
//! | `model.safetensors`, or shards with `model.safetensors.index.json` | [`Weights`] | memory-mapped |
//!
//! [`Checkpoint::open`] reads them and compares every tensor's name, type and shape with the [`key_table`] that the
//! configurations imply, before any weight is touched.

mod denoising;
mod eagle_config;
pub mod embodiments;
mod entries;
mod error;
mod fields;
mod header;
mod key_table;
mod model_config;
pub mod processor_config;
mod scan;
pub mod side_file;
pub mod statistics;
mod validate;
mod weights;

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

pub use denoising::{BlockContext, timesteps};
pub use eagle_config::{EagleConfig, TextConfig, VisionConfig};
pub use error::{CheckpointError, Problem, Problems};
pub use key_table::{Purpose, TensorSpec, key_table};
pub use model_config::{DiffusionConfig, ModelConfig};
pub use weights::{TensorView, WeightKind, Weights};

use embodiments::EmbodimentIds;
use error::quote;
use processor_config::ProcessorConfig;
use scan::scan;
use statistics::Statistics;
use validate::validate;

/// The network's configuration.
const CONFIG_FILE: &str = "config.json";

/// The backbone's configuration, where the directory brings its own.
const EAGLE_CONFIG_FILE: &str = "eagle_config.json";

/// How many names a warning or a listing spells out.
const MAX_NAMES: usize = 10;

/// A checkpoint whose parts fit each other.
#[derive(Debug)]
pub struct Checkpoint {
    /// The directory.
    pub dir: PathBuf,
    pub config: ModelConfig,
    pub eagle: EagleConfig,
    /// The file that `eagle` comes from, where it was named and not found in the directory.
    pub eagle_file: Option<PathBuf>,
    /// How observations and actions are processed, per embodiment.
    pub processor: ProcessorConfig,
    /// What they are normalised by.
    pub statistics: Statistics,
    /// Which slice of the embodiment-specific weights belongs to which embodiment.
    pub embodiments: EmbodimentIds,
    /// Holds at least every tensor that [`key_table`] marks as needed, with that shape.
    pub weights: Weights,
}

/// How to open a checkpoint.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// The backbone's configuration file. `None`: `eagle_config.json` in the directory if it exists, else the built-in
    /// values of the 3B model.
    pub eagle_config: Option<PathBuf>,
    /// Which tensors must be there.
    pub parts: Parts,
}

/// Parts of the network, for whoever needs no more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Parts {
    #[default]
    All,
    /// Everything behind the backbone.
    ActionHead,
    /// Vision tower, connector and language model.
    Backbone,
}

impl Parts {
    fn includes(self, spec: &TensorSpec) -> bool {
        match self {
            Self::All => true,
            Self::ActionHead => spec.name.starts_with("action_head."),
            Self::Backbone => spec.name.starts_with("backbone."),
        }
    }
}

impl Checkpoint {
    /// Opens and validates a checkpoint directory. Reads the configurations and the headers of the weight files.
    ///
    /// Tensors that are left over from training (see [`Purpose::Unused`]) may be absent and are not looked at; tensors
    /// of unknown name are tolerated with a warning.
    ///
    /// # Errors
    /// The directory or a file is missing or damaged, a configuration asks for what is not supported, or the weights do
    /// not fit it. Everything wrong with a configuration file, and everything wrong with the weights, is in one error.
    pub fn open(dir: &Path, options: &OpenOptions) -> Result<Self, CheckpointError> {
        let config_path = find_config(dir)?;
        let config = ModelConfig::from_file(&config_path)?;
        let eagle = open_eagle_config(dir, options)?;
        let mismatches = config.mismatches(&eagle, CONFIG_FILE);
        if !mismatches.is_empty() {
            return Err(CheckpointError::in_file(&config_path, mismatches));
        }

        let mut scan = scan(dir)?;
        let mut table = key_table(&config, &eagle);
        for spec in table.iter_mut().filter(|spec| !options.parts.includes(spec)) {
            spec.purpose = Purpose::Unused;
        }
        let verdict = validate(&table, &scan);
        scan.problems.extend(verdict.problems);
        if !scan.problems.is_empty() {
            return Err(CheckpointError::Invalid { dir: dir.to_owned(), problems: Problems(scan.problems) });
        }
        if !verdict.unknown.is_empty() {
            tracing::warn!(
                "{}: ignoring {} tensors that GR00T N1.6 does not have: {}",
                dir.display(),
                verdict.unknown.len(),
                some_of(&verdict.unknown)
            );
        }
        Ok(Self {
            dir: dir.to_owned(),
            config,
            eagle,
            eagle_file: options.eagle_config.clone(),
            processor: ProcessorConfig::load(dir)?,
            statistics: Statistics::load(dir)?,
            embodiments: EmbodimentIds::load(dir)?,
            weights: scan.into_weights(),
        })
    }
}

/// The path of `config.json`, once it is sure that there is something to open.
fn find_config(dir: &Path) -> Result<PathBuf, CheckpointError> {
    let not_a_directory = |found| CheckpointError::NotADirectory { path: dir.to_owned(), found };
    match fs::metadata(dir) {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => return Err(not_a_directory("a file")),
        Err(error) if error.kind() == ErrorKind::NotFound => return Err(not_a_directory("nothing there")),
        Err(source) => return Err(CheckpointError::Read { path: dir.to_owned(), source }),
    }
    let path = dir.join(CONFIG_FILE);
    if path.exists() { Ok(path) } else { Err(CheckpointError::MissingFile { path, found: listing(dir) }) }
}

fn open_eagle_config(dir: &Path, options: &OpenOptions) -> Result<EagleConfig, CheckpointError> {
    let own = dir.join(EAGLE_CONFIG_FILE);
    match &options.eagle_config {
        Some(path) => EagleConfig::from_file(path),
        None if own.exists() => EagleConfig::from_file(&own),
        None => Ok(EagleConfig::n1d6_3b()),
    }
}

/// The last component of a path, for messages.
fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}

/// A shape as the reference prints it.
fn shape_text(shape: &[usize]) -> String {
    let dims: Vec<String> = shape.iter().map(usize::to_string).collect();
    quote(&format!("({})", dims.join(", ")))
}

/// What a directory holds, for a message that says what is missing.
fn listing(dir: &Path) -> String {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    if names.is_empty() { "an empty directory".to_owned() } else { some_of(&names) }
}

/// The first few of a list of names, and how many there are besides.
fn some_of(names: &[String]) -> String {
    let shown: Vec<String> = names.iter().take(MAX_NAMES).map(|name| quote(name)).collect();
    match names.len().saturating_sub(MAX_NAMES) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}
