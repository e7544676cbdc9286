//! `embodiment_id.json`: which slice of the embodiment-specific layers belongs to which robot.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::side_file::{self, SideFileError};

/// The file's name inside a checkpoint directory.
pub const FILE: &str = "embodiment_id.json";

/// Indices known to the public reference (Isaac-GR00T N1.6, `EMBODIMENT_TAG_TO_PROJECTOR_INDEX`).
const BUILT_IN: [(&str, usize); 9] = [
    ("oxe_google", 0),
    ("oxe_widowx", 1),
    ("libero_panda", 2),
    ("unitree_g1", 8),
    ("new_embodiment", 10),
    ("robocasa_panda_omron", 13),
    ("oxe_droid", 16),
    ("gr1", 20),
    ("behavior_r1_pro", 24),
];

/// Embodiment tag → index into the category-specific layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmbodimentIds {
    path: PathBuf,
    indices: BTreeMap<String, usize>,
}

impl EmbodimentIds {
    /// Reads `embodiment_id.json` of a checkpoint directory on top of the built-in indices; the file wins. Without the
    /// file the built-in indices stand alone, as in the reference.
    pub fn load(checkpoint: &Path) -> Result<Self, SideFileError> {
        let path = checkpoint.join(FILE);
        match side_file::read(&path) {
            Ok(json) => Self::parse(&path, &json),
            Err(SideFileError::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                Self::parse(&path, b"{}")
            }
            Err(error) => Err(error),
        }
    }

    /// Parses the file's contents; `path` serves messages only.
    pub fn parse(path: &Path, json: &[u8]) -> Result<Self, SideFileError> {
        let mut indices: BTreeMap<_, _> = BUILT_IN.map(|(tag, index)| (tag.to_owned(), index)).into();
        indices.extend(side_file::parse::<BTreeMap<String, usize>>(path, json)?);
        Ok(Self { path: path.to_owned(), indices })
    }

    /// The index of `tag`, which must lie below the network's `max_num_embodiments`.
    pub fn index(&self, tag: &str, max_num_embodiments: usize) -> Result<usize, SideFileError> {
        match self.indices.get(tag) {
            Some(&index) if index < max_num_embodiments => Ok(index),
            Some(index) => Err(SideFileError::invalid(
                &self.path,
                tag,
                format!("an index below the network's max_num_embodiments = {max_num_embodiments}"),
                index.to_string(),
            )),
            None => Err(SideFileError::invalid(
                &self.path,
                "the top level",
                format!("the embodiment \"{tag}\""),
                side_file::list(self.indices.keys().map(String::as_str)),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<EmbodimentIds, SideFileError> {
        EmbodimentIds::parse(Path::new("embodiment_id.json"), json.as_bytes())
    }

    #[test]
    fn the_file_wins_over_the_built_in_indices_and_adds_to_them() {
        let ids = parse(r#"{"libero_panda": 5, "my_robot": 7}"#).unwrap();
        assert_eq!(ids.index("libero_panda", 32).unwrap(), 5);
        assert_eq!(ids.index("my_robot", 32).unwrap(), 7);
        assert_eq!(ids.index("gr1", 32).unwrap(), 20);
    }

    #[test]
    fn without_the_file_the_built_in_indices_stand_alone() {
        let empty = tempfile::tempdir().unwrap();
        let ids = EmbodimentIds::load(empty.path()).unwrap();
        assert_eq!(ids.index("new_embodiment", 32).unwrap(), 10);
    }

    #[test]
    fn an_index_beyond_the_network_is_refused() {
        let message = parse("{}").unwrap().index("gr1", 4).unwrap_err().to_string();
        assert_eq!(
            message,
            "embodiment_id.json: at gr1: expected an index below the network's max_num_embodiments = 4, found 20"
        );
    }

    #[test]
    fn an_unknown_tag_lists_the_known_ones() {
        let message = parse("{}").unwrap().index("spot", 32).unwrap_err().to_string();
        assert!(message.contains("\"spot\"") && message.contains("unitree_g1"), "{message}");
    }

    #[test]
    fn a_value_that_is_no_index_is_named() {
        for (json, found) in
            [(r#"{"gr1": -1}"#, "-1"), (r#"{"gr1": "20"}"#, "\"20\""), (r#"{"gr1": 1.5}"#, "1.5")]
        {
            let message = parse(json).unwrap_err().to_string();
            assert!(
                message.starts_with("embodiment_id.json: at gr1: ") && message.contains(found),
                "{message}"
            );
        }
        assert!(parse("{").unwrap_err().to_string().contains("EOF"));
        assert!(parse("{} x").unwrap_err().to_string().contains("trailing"));
    }
}
