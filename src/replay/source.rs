//! Bags and datasets behind one face.

use std::path::PathBuf;

use super::runner::ReplayError;
use crate::{
    evaluation,
    recording::{
        Sample,
        bag::{self, Bag, SamplesOptions, Stride},
        lerobot::{DatasetKeys, LeRobotDataset, SampleOptions},
    },
};

/// What is replayed.
pub enum Recording {
    /// rosbag2 recordings; each is one trajectory.
    Bags {
        /// The bags with their paths as given.
        bags: Vec<(PathBuf, Bag)>,
        /// How they become samples; the same for all.
        options: Box<SamplesOptions>,
    },
    /// Episodes of a LeRobot dataset.
    Dataset {
        /// Its folder, as given.
        path: PathBuf,
        /// The dataset.
        dataset: Box<LeRobotDataset>,
        /// Its episodes.
        episodes: Vec<u64>,
        /// Which rows of an episode.
        options: SampleOptions,
        /// What the checkpoint needs.
        keys: Box<DatasetKeys>,
    },
}

/// Samples of one trajectory, in the order of time.
pub trait SampleStream: Iterator<Item = Result<Sample, ReplayError>> {
    /// Adds what was read, and what was damaged, to the description of the source.
    fn account(&self, source: &mut evaluation::Source);
}

impl Recording {
    /// The trajectories' names in their order; no two are equal.
    pub fn trajectories(&self) -> Vec<String> {
        match self {
            Self::Bags { bags, .. } => {
                let names: Vec<String> = bags.iter().map(|(_, bag)| bag.name().to_owned()).collect();
                let unique = |(index, name): (usize, &String)| match names
                    .iter()
                    .filter(|other| *other == name)
                    .count()
                {
                    0 | 1 => name.clone(),
                    _ => format!("{name} ({})", index + 1),
                };
                names.iter().enumerate().map(unique).collect()
            }
            Self::Dataset { episodes, .. } => {
                episodes.iter().map(|number| format!("episode {number}")).collect()
            }
        }
    }

    /// What is known of it before it is read.
    pub fn describe(&self) -> evaluation::Source {
        let named = |kind: String, path: &PathBuf| evaluation::Source {
            kind,
            name: path
                .file_name()
                .map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned()),
            path: path.display().to_string(),
            ..evaluation::Source::default()
        };
        match self {
            Self::Bags { bags, .. } => match bags.as_slice() {
                [(path, bag)] => evaluation::Source {
                    duration_s: Some(bag.duration().as_secs_f64()),
                    ..named("rosbag2".to_owned(), path)
                },
                bags => evaluation::Source {
                    kind: "rosbag2".to_owned(),
                    name: format!("{} bags", bags.len()),
                    path: bags
                        .iter()
                        .map(|(path, _)| path.display().to_string())
                        .collect::<Vec<_>>()
                        .join(" "),
                    duration_s: Some(bags.iter().map(|(_, bag)| bag.duration().as_secs_f64()).sum()),
                    ..evaluation::Source::default()
                },
            },
            Self::Dataset { dataset, path, .. } => {
                named(format!("LeRobot {}", dataset.info().codebase_version), path)
            }
        }
    }

    /// About how many observations a trajectory has, for the time left; an upper bound is given where it is not known.
    pub fn expected(&self, trajectory: usize) -> u64 {
        match self {
            Self::Bags { bags, options } => {
                let Some((_, bag)) = bags.get(trajectory) else { return 0 };
                let frames = options.config.cameras.values().filter_map(|camera| {
                    let topic = options.node.resolve(&camera.subscribed_topic()).ok()?;
                    bag.topic(&topic).ok()?.count
                });
                let frames = frames.min();
                match options.stride {
                    Stride::Sets(every) => {
                        frames.map_or(u64::MAX, |frames| frames.div_ceil(every.get().into()))
                    }
                    Stride::Period(period) if period.is_zero() => frames.unwrap_or(u64::MAX),
                    Stride::Period(period) => {
                        let most = (bag.duration().as_secs_f64() / period.as_secs_f64()).ceil() as u64;
                        frames.map_or(most, |frames| frames.min(most))
                    }
                }
            }
            Self::Dataset { dataset, episodes, options, .. } => {
                let number = episodes.get(trajectory);
                let rows = dataset
                    .episodes()
                    .find(|(episode, _)| Some(episode) == number)
                    .map_or(0, |(_, rows)| rows);
                rows.div_ceil(options.stride.max(1))
            }
        }
    }

    /// Starts reading a trajectory by its place in [`Recording::trajectories`].
    ///
    /// # Errors
    /// What keeps it from being read.
    pub fn open(&self, trajectory: usize) -> Result<Box<dyn SampleStream + '_>, ReplayError> {
        let beyond = || ReplayError::Trajectory(trajectory);
        match self {
            Self::Bags { bags, options } => {
                let (_, bag) = bags.get(trajectory).ok_or_else(beyond)?;
                Ok(Box::new(BagStream(bag::Samples::new(bag, *options.clone())?)))
            }
            Self::Dataset { dataset, episodes, options, keys, .. } => {
                let episode = *episodes.get(trajectory).ok_or_else(beyond)?;
                let options = SampleOptions { episodes: vec![episode], ..options.clone() };
                Ok(Box::new(DatasetStream { samples: dataset.samples(&options, keys)?, rows: 0 }))
            }
        }
    }
}

struct BagStream(bag::Samples);

impl Iterator for BagStream {
    type Item = Result<Sample, ReplayError>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(self.0.next()?.map_err(Into::into))
    }
}

impl SampleStream for BagStream {
    fn account(&self, source: &mut evaluation::Source) {
        let report = self.0.report();
        for (topic, count) in &report.bag.read {
            *source.messages.entry(topic.clone()).or_default() += count;
        }
        for (place, faults) in report.bag.topics.iter().chain(&report.bag.files) {
            source.damage.extend(
                faults
                    .iter()
                    .map(|(fault, tally)| format!("{place}: {} {fault}: {}", tally.count, tally.first)),
            );
        }
        if report.cut_short > 0 {
            source.damage.push(format!(
                "{} observations have less recorded motion to be held against than there is: too many waited",
                report.cut_short
            ));
        }
        if !report.without_truth.is_empty() {
            source
                .damage
                .push(format!("nothing is recorded of the action keys {}", report.without_truth.join(", ")));
        }
        let blocked = report.blocked;
        if blocked.total() > 0 {
            source.damage.push(format!(
                "{} times there was no observation: {} waiting, {} stale, {} skewed, {} undecodable",
                blocked.total(),
                blocked.waiting,
                blocked.stale,
                blocked.skewed,
                blocked.undecodable
            ));
        }
    }
}

struct DatasetStream<'a> {
    samples: crate::recording::lerobot::Samples<'a>,
    rows: u64,
}

impl Iterator for DatasetStream<'_> {
    type Item = Result<Sample, ReplayError>;

    fn next(&mut self) -> Option<Self::Item> {
        let sample = self.samples.next()?;
        self.rows += u64::from(sample.is_ok());
        Some(sample.map_err(Into::into))
    }
}

impl SampleStream for DatasetStream<'_> {
    fn account(&self, source: &mut evaluation::Source) {
        *source.messages.entry("rows".to_owned()).or_default() += self.rows;
    }
}
