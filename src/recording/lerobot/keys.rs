//! What a checkpoint wants of a dataset.

use crate::checkpoint::{
    processor_config::ProcessorConfig,
    side_file::SideFileError,
    statistics::{Statistics, StatisticsGroup},
};

/// The keys of one embodiment of a checkpoint, with the time steps of each modality relative to the present row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatasetKeys {
    /// Camera keys.
    pub cameras: Vec<String>,
    /// Rows of the frames of one observation, oldest first.
    pub video_deltas: Vec<i64>,
    /// State keys and their widths.
    pub state: Vec<(String, usize)>,
    /// Rows of the states of one observation, oldest first.
    pub state_deltas: Vec<i64>,
    /// Action keys and their widths.
    pub action: Vec<(String, usize)>,
    /// Rows that the rows of an action chunk aim at: row k of a chunk made at row t of the recording stands for the
    /// action recorded at row t + `action_deltas[k]`. The first delta is 0 in the published checkpoints, so the first
    /// row is the action recorded together with the observation.
    pub action_deltas: Vec<i64>,
    /// The language key: `task`, or `annotation.` and a key of `meta/modality.json`.
    pub language: Option<String>,
}

impl DatasetKeys {
    /// The keys of an embodiment, with the widths that the statistics know.
    ///
    /// # Errors
    /// What the checkpoint's files lack.
    pub fn new(
        config: &ProcessorConfig,
        statistics: &Statistics,
        embodiment: &str,
    ) -> Result<Self, SideFileError> {
        let modalities = config.embodiment(embodiment)?;
        let width = |group, key: &String| -> Result<_, SideFileError> {
            Ok((key.clone(), statistics.key(embodiment, group, key)?.dim()))
        };
        Ok(Self {
            cameras: modalities.video.modality_keys.clone(),
            video_deltas: modalities.video.delta_indices.clone(),
            state: modalities
                .state
                .modality_keys
                .iter()
                .map(|key| width(StatisticsGroup::State, key))
                .collect::<Result<_, _>>()?,
            state_deltas: modalities.state.delta_indices.clone(),
            action: modalities
                .action
                .modality_keys
                .iter()
                .map(|key| {
                    width(StatisticsGroup::Action, key)
                        .or_else(|_| width(StatisticsGroup::RelativeAction, key))
                })
                .collect::<Result<_, _>>()?,
            action_deltas: modalities.action.delta_indices.clone(),
            language: modalities.language.modality_keys.first().cloned(),
        })
    }
}
