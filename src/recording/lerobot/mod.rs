//! LeRobot datasets (v2.0, v2.1 and v3.0) as a source of samples.
//!
//! A dataset is a folder: `meta/` describes it, `data/` holds tables (parquet) with a row per step, `videos/` the
//! cameras (mp4), unless their pictures lie in the tables. `meta/modality.json`, which NVIDIA's Isaac-GR00T adds, says
//! which part of which column is which state or action key of a checkpoint.
//!
//! ```no_run
//! # use groot_policy::{checkpoint::Checkpoint, recording::lerobot::*};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let checkpoint = Checkpoint::open("checkpoint".as_ref(), &Default::default())?;
//! let dataset = LeRobotDataset::open("my_dataset".as_ref())?;
//! let keys = DatasetKeys::new(&checkpoint.processor, &checkpoint.statistics, "new_embodiment")?;
//! let options = SampleOptions { episodes: vec![0, 1], stride: 16, ..SampleOptions::default() };
//! for sample in dataset.samples(&options, &keys)? {
//!     let sample = sample?;
//!     println!("{} {}: {} recorded steps ahead", sample.episode, sample.step, sample.truth.steps());
//! }
//! # Ok(()) }
//! ```
//!
//! What a sample at row t holds:
//!
//! | part | rows | beyond the episode |
//! |---|---|---|
//! | frames, state | t + delta indices | the first or last row again |
//! | instruction | t | |
//! | truth | t + action delta indices | left out: fewer rows near the end |
//!
//! Rows of numbers and encoded pictures are streamed: memory does not grow with the episode.

mod camera;
mod episodes;
mod error;
mod files;
mod info;
mod keys;
mod mapping;
mod samples;
mod table;
mod video;
pub mod writer;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use self::episodes::{Episode, Tasks};
pub use self::{
    error::LeRobotError,
    info::{DatasetInfo, Feature, INFO_FILE, Version},
    keys::DatasetKeys,
    mapping::MODALITY_FILE,
    samples::Samples,
    video::VideoDecoder,
};

/// Which samples of a dataset to give.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SampleOptions {
    /// Episodes by their index, in this order; empty for all.
    pub episodes: Vec<u64>,
    /// Rows from one sample to the next, at least 1.
    pub stride: u64,
    /// Rows at the start of each episode in which samples lie; `None` for all.
    pub steps_per_episode: Option<u64>,
    /// What decodes videos.
    pub decoder: VideoDecoder,
}

impl Default for SampleOptions {
    fn default() -> Self {
        Self { episodes: Vec::new(), stride: 1, steps_per_episode: None, decoder: VideoDecoder::default() }
    }
}

/// An open dataset: its descriptions are in memory, its rows and frames are not.
pub struct LeRobotDataset {
    root: PathBuf,
    info: DatasetInfo,
    episodes: BTreeMap<u64, Episode>,
    tasks: Tasks,
    /// Per table of version 3 the number of its first row in the whole dataset.
    first_rows: BTreeMap<(u64, u64), u64>,
}

impl LeRobotDataset {
    /// Reads the descriptions in `meta/`.
    ///
    /// # Errors
    /// A missing or damaged description, or a version that is not read.
    pub fn open(root: &Path) -> Result<Self, LeRobotError> {
        let info = DatasetInfo::load(root)?;
        let videos: Vec<&str> = info
            .features
            .iter()
            .filter(|(_, feature)| feature.dtype == "video")
            .map(|(name, _)| name.as_str())
            .collect();
        let episodes = episodes::load(root, &info, &videos)?;
        let tasks = Tasks::load(root, info.version)?;
        let mut first_rows = BTreeMap::new();
        for place in episodes.values().filter_map(|episode| episode.place.as_ref()) {
            first_rows
                .entry(place.table)
                .and_modify(|first: &mut u64| *first = place.first_row.min(*first))
                .or_insert(place.first_row);
        }
        Ok(Self { root: root.to_owned(), info, episodes, tasks, first_rows })
    }

    /// What `meta/info.json` says.
    pub fn info(&self) -> &DatasetInfo {
        &self.info
    }

    /// Indices and listed lengths (in rows) of the episodes, ascending.
    pub fn episodes(&self) -> impl Iterator<Item = (u64, u64)> {
        self.episodes.iter().map(|(number, episode)| (*number, episode.length))
    }

    /// Samples for a checkpoint's keys.
    ///
    /// # Errors
    /// Episodes that are not there, and keys that the dataset does not have. Errors of rows and frames come from the
    /// iterator.
    pub fn samples(&self, options: &SampleOptions, keys: &DatasetKeys) -> Result<Samples<'_>, LeRobotError> {
        Samples::new(self, options.clone(), keys.clone())
    }
}
