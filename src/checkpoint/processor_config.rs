//! `processor_config.json`: how observations are prepared and actions decoded, per embodiment.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer};

use super::side_file::{self, SideFileError};

/// The file's name inside a checkpoint directory.
pub const FILE: &str = "processor_config.json";

/// The processor class whose rules this crate implements.
const PROCESSOR_CLASS: &str = "Gr00tN1d6Processor";
/// Bound on time steps of one modality; real chunks have at most some fifty.
const MAX_TIME_STEPS: usize = 4096;
/// Bound on the padded state and action widths; the 3B checkpoint has 128.
const MAX_WIDTH: usize = 65_536;
/// Bound on the shortest image edge in pixels; real checkpoints have 256 or 512.
const MAX_EDGE: u32 = 4096;

/// The processor's settings. Absent keys take the defaults of the reference's processor class (which differ from those
/// of the model's `config.json`), unknown keys are ignored.
#[derive(Debug, Clone, PartialEq)]
pub struct ProcessorConfig {
    path: PathBuf,
    modalities: BTreeMap<String, BTreeMap<String, ModalityConfig>>,
    /// Length in pixels that the shorter image side is resized to.
    pub shortest_image_edge: u32,
    /// Fraction of each side that the centre crop keeps, in (0, 1].
    pub crop_fraction: f64,
    /// Lower-case the instruction and strip its punctuation.
    pub formalize_language: bool,
    /// Normalise by the 1st and 99th percentile in place of minimum and maximum.
    pub use_percentiles: bool,
    /// Clip normalised state to [-1, 1].
    pub clip_outliers: bool,
    /// Honour `sin_cos_embedding_keys` of the state.
    pub apply_sincos_state_encoding: bool,
    /// Treat actions marked RELATIVE as relative to the current state.
    pub use_relative_action: bool,
    /// Width of the padded state vector.
    pub max_state_dim: usize,
    /// Width of the padded action rows.
    pub max_action_dim: usize,
    /// Number of padded action rows during training.
    pub max_action_horizon: usize,
}

/// One modality of one embodiment.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ModalityConfig {
    /// Time steps relative to now; their number is the modality's length in time.
    pub delta_indices: Vec<i64>,
    /// Camera, state, action or language keys, in the order in which they are concatenated.
    pub modality_keys: Vec<String>,
    /// State keys encoded as sine and cosine.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub sin_cos_embedding_keys: Vec<String>,
    /// Keys normalised by mean and standard deviation.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub mean_std_embedding_keys: Vec<String>,
    /// One entry per action key.
    #[serde(default)]
    pub action_configs: Option<Vec<ActionConfig>>,
}

/// How the values of one action key are meant.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ActionConfig {
    /// Relative to what.
    pub rep: ActionRepresentation,
    /// What moves.
    #[serde(rename = "type")]
    pub kind: ActionType,
    /// Layout of the values.
    pub format: ActionFormat,
    /// The state key that a relative action refers to; the action's own key if absent.
    #[serde(default)]
    pub state_key: Option<String>,
}

/// What an action is relative to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ActionRepresentation {
    /// The state at the time of the observation.
    Relative,
    /// The previous action.
    Delta,
    /// Nothing.
    Absolute,
}

/// What an action moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ActionType {
    /// An end-effector pose.
    Eef,
    /// Joints, grippers, bases: plain numbers.
    NonEef,
}

/// Layout of an action's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum ActionFormat {
    /// Plain numbers.
    #[serde(rename = "DEFAULT")]
    Default,
    /// Translation (3) and the first two rows of the rotation matrix (6).
    #[serde(rename = "XYZ_ROT6D")]
    XyzRot6d,
    /// Translation (3) and rotation vector (3).
    #[serde(rename = "XYZ_ROTVEC")]
    XyzRotvec,
}

/// The four modalities of one embodiment.
#[derive(Debug, Clone, Copy)]
pub struct EmbodimentModalities<'a> {
    /// Cameras.
    pub video: &'a ModalityConfig,
    /// Raw state.
    pub state: &'a ModalityConfig,
    /// Actions.
    pub action: &'a ModalityConfig,
    /// Instruction.
    pub language: &'a ModalityConfig,
}

#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    processor_class: Option<String>,
    processor_kwargs: Kwargs,
}

/// The file's `processor_kwargs`, with the reference's defaults.
#[derive(Deserialize)]
struct Kwargs {
    modality_configs: BTreeMap<String, BTreeMap<String, ModalityConfig>>,
    #[serde(default)]
    image_crop_size: Option<[u32; 2]>,
    #[serde(default)]
    image_target_size: Option<[u32; 2]>,
    #[serde(default = "default_shortest_image_edge")]
    shortest_image_edge: Option<u32>,
    #[serde(default = "default_crop_fraction")]
    crop_fraction: Option<f64>,
    #[serde(default)]
    use_albumentations: bool,
    #[serde(default = "yes")]
    formalize_language: bool,
    #[serde(default)]
    use_percentiles: bool,
    #[serde(default = "yes")]
    clip_outliers: bool,
    #[serde(default)]
    apply_sincos_state_encoding: bool,
    #[serde(default)]
    use_relative_action: bool,
    #[serde(default = "default_width")]
    max_state_dim: usize,
    #[serde(default = "default_width")]
    max_action_dim: usize,
    #[serde(default = "default_horizon")]
    max_action_horizon: usize,
}

fn default_shortest_image_edge() -> Option<u32> {
    Some(512)
}

fn default_crop_fraction() -> Option<f64> {
    Some(0.95)
}

fn default_width() -> usize {
    29
}

fn default_horizon() -> usize {
    40
}

fn yes() -> bool {
    true
}

fn null_as_empty<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl ProcessorConfig {
    /// Reads `processor_config.json` of a checkpoint directory.
    pub fn load(checkpoint: &Path) -> Result<Self, SideFileError> {
        let path = checkpoint.join(FILE);
        Self::parse(&path, &side_file::read(&path)?)
    }

    /// Parses the file's contents; `path` serves messages only.
    pub fn parse(path: &Path, json: &[u8]) -> Result<Self, SideFileError> {
        let Document { processor_class, processor_kwargs: kwargs } = side_file::parse(path, json)?;
        let invalid =
            |at: &str, expected: &str, found: String| Err(SideFileError::invalid(path, at, expected, found));
        if let Some(class) = processor_class.filter(|class| class != PROCESSOR_CLASS) {
            return invalid("processor_class", PROCESSOR_CLASS, class);
        }
        if !kwargs.use_albumentations {
            return invalid(
                "processor_kwargs.use_albumentations",
                "true: the reference can evaluate with its albumentations image pipeline only, and raises otherwise",
                "false (also the default where the key is absent)".to_owned(),
            );
        }
        for (at, width) in [
            ("max_state_dim", kwargs.max_state_dim),
            ("max_action_dim", kwargs.max_action_dim),
            ("max_action_horizon", kwargs.max_action_horizon),
        ] {
            if !(1..=MAX_WIDTH).contains(&width) {
                return Err(SideFileError::invalid(
                    path,
                    format!("processor_kwargs.{at}"),
                    format!("1 to {MAX_WIDTH}"),
                    width.to_string(),
                ));
            }
        }
        for (embodiment, modalities) in &kwargs.modality_configs {
            for (modality, config) in modalities {
                let at = format!("processor_kwargs.modality_configs.{embodiment}.{modality}");
                config.validate(path, &at)?;
            }
        }
        let (shortest_image_edge, crop_fraction) = kwargs.image_geometry(path)?;
        Ok(Self {
            path: path.to_owned(),
            modalities: kwargs.modality_configs,
            shortest_image_edge,
            crop_fraction,
            formalize_language: kwargs.formalize_language,
            use_percentiles: kwargs.use_percentiles,
            clip_outliers: kwargs.clip_outliers,
            apply_sincos_state_encoding: kwargs.apply_sincos_state_encoding,
            use_relative_action: kwargs.use_relative_action,
            max_state_dim: kwargs.max_state_dim,
            max_action_dim: kwargs.max_action_dim,
            max_action_horizon: kwargs.max_action_horizon,
        })
    }

    /// The embodiment tags of the file, in alphabetical order.
    pub fn embodiments(&self) -> impl Iterator<Item = &str> {
        self.modalities.keys().map(String::as_str)
    }

    /// The four modalities of `tag`.
    pub fn embodiment(&self, tag: &str) -> Result<EmbodimentModalities<'_>, SideFileError> {
        let modalities = self.modalities.get(tag).ok_or_else(|| {
            SideFileError::invalid(
                &self.path,
                "processor_kwargs.modality_configs",
                format!("the embodiment \"{tag}\""),
                side_file::list(self.embodiments()),
            )
        })?;
        let modality = |name: &str| {
            modalities.get(name).ok_or_else(|| {
                SideFileError::invalid(
                    &self.path,
                    format!("processor_kwargs.modality_configs.{tag}"),
                    format!("the modality \"{name}\""),
                    side_file::list(modalities.keys().map(String::as_str)),
                )
            })
        };
        Ok(EmbodimentModalities {
            video: modality("video")?,
            state: modality("state")?,
            action: modality("action")?,
            language: modality("language")?,
        })
    }
}

impl ModalityConfig {
    fn validate(&self, path: &Path, at: &str) -> Result<(), SideFileError> {
        let invalid = |field: &str, expected: String, found: String| {
            Err(SideFileError::invalid(path, format!("{at}.{field}"), expected, found))
        };
        if !(1..=MAX_TIME_STEPS).contains(&self.delta_indices.len()) {
            return invalid(
                "delta_indices",
                format!("1 to {MAX_TIME_STEPS} time steps"),
                self.delta_indices.len().to_string(),
            );
        }
        if self.modality_keys.is_empty() {
            return invalid("modality_keys", "at least one key".to_owned(), "none".to_owned());
        }
        let mut seen = BTreeSet::new();
        if let Some(key) = self.modality_keys.iter().find(|&key| !seen.insert(key)) {
            return invalid("modality_keys", "each key once".to_owned(), format!("\"{key}\" twice"));
        }
        match &self.action_configs {
            Some(configs) if configs.len() != self.modality_keys.len() => invalid(
                "action_configs",
                format!("one entry for each of the {} modality_keys", self.modality_keys.len()),
                configs.len().to_string(),
            ),
            _ => Ok(()),
        }
    }
}

impl Kwargs {
    /// Shortest edge and crop fraction; where they are null, the older size keys rule.
    fn image_geometry(&self, path: &Path) -> Result<(u32, f64), SideFileError> {
        let missing = |key: &str, fallback: &str| {
            SideFileError::invalid(
                path,
                format!("processor_kwargs.{key}"),
                format!("a number, or {fallback} to derive it from"),
                "null",
            )
        };
        let edge = self
            .shortest_image_edge
            .or(self.image_target_size.map(|[height, _]| height))
            .ok_or_else(|| missing("shortest_image_edge", "image_target_size"))?;
        let fraction = self
            .crop_fraction
            .or_else(|| {
                let ([crop, _], [target, _]) = (self.image_crop_size?, self.image_target_size?);
                Some(f64::from(crop) / f64::from(target))
            })
            .ok_or_else(|| missing("crop_fraction", "image_crop_size and image_target_size"))?;
        if !(1..=MAX_EDGE).contains(&edge) {
            return Err(SideFileError::invalid(
                path,
                "processor_kwargs.shortest_image_edge",
                format!("1 to {MAX_EDGE} pixels"),
                edge.to_string(),
            ));
        }
        if !(fraction > 0.0 && fraction <= 1.0) {
            return Err(SideFileError::invalid(
                path,
                "processor_kwargs.crop_fraction",
                "a fraction above 0, at most 1",
                fraction.to_string(),
            ));
        }
        Ok((edge, fraction))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn document() -> Value {
        let plain = json!({"delta_indices": [0], "modality_keys": ["a"]});
        json!({
            "processor_class": "Gr00tN1d6Processor",
            "processor_kwargs": {
                "modality_configs": {"robot": {"video": plain, "state": plain, "action": plain, "language": plain}},
                "use_albumentations": true,
            }
        })
    }

    fn parse(document: &Value) -> Result<ProcessorConfig, SideFileError> {
        ProcessorConfig::parse(Path::new(FILE), document.to_string().as_bytes())
    }

    /// The message after `value` was put at JSON pointer `at`.
    fn message(at: &str, value: Value) -> String {
        let mut document = document();
        let (parent, key) = at.rsplit_once('/').unwrap();
        document.pointer_mut(parent).unwrap()[key] = value;
        parse(&document).unwrap_err().to_string()
    }

    #[test]
    fn absent_keys_take_the_defaults_of_the_processor_class() {
        let config = parse(&document()).unwrap();
        assert_eq!((config.shortest_image_edge, config.crop_fraction), (512, 0.95));
        assert!(config.formalize_language && config.clip_outliers);
        assert!(
            !config.use_percentiles && !config.use_relative_action && !config.apply_sincos_state_encoding
        );
        assert_eq!((config.max_state_dim, config.max_action_dim, config.max_action_horizon), (29, 29, 40));
        let modalities = config.embodiment("robot").unwrap();
        assert!(
            modalities.state.sin_cos_embedding_keys.is_empty() && modalities.action.action_configs.is_none()
        );
    }

    #[test]
    fn the_older_size_keys_rule_where_edge_and_fraction_are_null() {
        let mut document = document();
        let kwargs = &mut document["processor_kwargs"];
        kwargs["shortest_image_edge"] = Value::Null;
        kwargs["crop_fraction"] = Value::Null;
        kwargs["image_target_size"] = json!([256, 320]);
        kwargs["image_crop_size"] = json!([230, 300]);
        let config = parse(&document).unwrap();
        assert_eq!((config.shortest_image_edge, config.crop_fraction), (256, 230.0 / 256.0));
    }

    #[test]
    fn enumerations_are_read_by_name() {
        let mut document = document();
        document["processor_kwargs"]["modality_configs"]["robot"]["action"]["action_configs"] =
            json!([{"rep": "RELATIVE", "type": "EEF", "format": "XYZ_ROT6D", "state_key": "a"}]);
        let config = parse(&document).unwrap();
        let action = &config.embodiment("robot").unwrap().action.action_configs.as_ref().unwrap()[0];
        let expected = ActionConfig {
            rep: ActionRepresentation::Relative,
            kind: ActionType::Eef,
            format: ActionFormat::XyzRot6d,
            state_key: Some("a".to_owned()),
        };
        assert_eq!(action, &expected);
        let unknown = message(
            "/processor_kwargs/modality_configs/robot/action/action_configs",
            json!([{"rep": "SIDEWAYS", "type": "NON_EEF", "format": "DEFAULT"}]),
        );
        assert!(
            unknown.contains("robot.action.action_configs[0].rep")
                && unknown.contains("SIDEWAYS")
                && unknown.contains("RELATIVE"),
            "{unknown}"
        );
    }

    #[test]
    fn every_kind_of_broken_value_is_named_with_its_path() {
        let robot = "processor_kwargs.modality_configs.robot";
        for (at, value, parts) in [
            ("/processor_class", json!("Gr00tN1d5Processor"), ["processor_class", "Gr00tN1d5Processor"]),
            ("/processor_kwargs/use_albumentations", json!(false), ["use_albumentations", "raises"]),
            ("/processor_kwargs/max_state_dim", json!(0), ["processor_kwargs.max_state_dim", "found 0"]),
            ("/processor_kwargs/max_action_dim", json!("x"), ["processor_kwargs.max_action_dim", "\"x\""]),
            ("/processor_kwargs/crop_fraction", json!(1.5), ["crop_fraction", "found 1.5"]),
            ("/processor_kwargs/shortest_image_edge", json!(0), ["shortest_image_edge", "found 0"]),
            ("/processor_kwargs/shortest_image_edge", json!(null), ["shortest_image_edge", "found null"]),
            ("/processor_kwargs/modality_configs/robot/state/delta_indices", json!([]), [robot, "found 0"]),
            (
                "/processor_kwargs/modality_configs/robot/state/modality_keys",
                json!([]),
                [robot, "found none"],
            ),
            (
                "/processor_kwargs/modality_configs/robot/state/modality_keys",
                json!(["a", "a"]),
                [robot, "twice"],
            ),
            ("/processor_kwargs/modality_configs/robot/action/action_configs", json!([]), [robot, "found 0"]),
            (
                "/processor_kwargs/modality_configs",
                json!(null),
                ["processor_kwargs.modality_configs", "null"],
            ),
        ] {
            let message = message(at, value);
            assert!(
                message.starts_with(FILE) && parts.iter().all(|part| message.contains(part)),
                "{at}: {message}"
            );
        }
    }

    #[test]
    fn albumentations_switched_off_by_default_is_refused() {
        let mut document = document();
        document["processor_kwargs"].as_object_mut().unwrap().remove("use_albumentations");
        assert!(parse(&document).unwrap_err().to_string().contains("use_albumentations"));
    }

    #[test]
    fn an_unknown_embodiment_or_a_missing_modality_lists_what_there_is() {
        let mut document = document();
        document["processor_kwargs"]["modality_configs"]["robot"].as_object_mut().unwrap().remove("language");
        let config = parse(&document).unwrap();
        let message = config.embodiment("other").unwrap_err().to_string();
        assert!(message.ends_with("expected the embodiment \"other\", found robot"), "{message}");
        let message = config.embodiment("robot").unwrap_err().to_string();
        assert!(
            message.ends_with("expected the modality \"language\", found action, state, video"),
            "{message}"
        );
    }

    #[test]
    fn a_missing_or_truncated_file_is_one_error_with_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let message = ProcessorConfig::load(folder.path()).unwrap_err().to_string();
        assert!(message.contains(FILE), "{message}");
        std::fs::write(folder.path().join(FILE), &document().to_string()[..40]).unwrap();
        let message = ProcessorConfig::load(folder.path()).unwrap_err().to_string();
        assert!(message.contains(FILE) && message.contains("EOF"), "{message}");
    }
}
