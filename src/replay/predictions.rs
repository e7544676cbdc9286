//! Predictions as a recording of their own: a bag that Foxglove shows and `ros2 bag play` plays beside the original one.

use std::{collections::BTreeMap, path::Path, time::Duration};

use super::runner::ReplayError;
use crate::{
    evaluation::ActionGroup,
    model::policy::Prediction,
    motion::row_time,
    node::chunk_message::{ChunkBuilder, ChunkInfo},
    recording::{
        Sample,
        bag::{BagWriter, WriterOptions},
    },
    ros::msg::{Header, JointTrajectory, JointTrajectoryPoint},
};

/// Writes predictions with the stamps of their observations.
pub struct PredictionWriter {
    writer: BagWriter,
    builder: ChunkBuilder,
    trajectory_topic: String,
    chunk_topic: String,
    frame_id: String,
    sequence: u64,
}

/// Names in the written messages.
#[derive(Debug, Clone)]
pub struct PredictionNames {
    /// Topic of the `JointTrajectory` messages.
    pub trajectory_topic: String,
    /// Topic of the `ActionChunk` messages.
    pub chunk_topic: String,
    /// Frame of the trajectories.
    pub frame_id: String,
    /// Embodiment tag.
    pub embodiment: String,
    /// Action keys that move joints; the others are in the chunks only.
    pub moving: Vec<String>,
}

impl PredictionWriter {
    /// A writer into the new folder `target`, which appears when the recording is complete.
    ///
    /// # Errors
    /// The folder exists or cannot be made.
    pub fn create(
        target: &Path,
        names: PredictionNames,
        groups: &[ActionGroup],
        step_time: Duration,
    ) -> Result<Self, ReplayError> {
        let PredictionNames { trajectory_topic, chunk_topic, frame_id, embodiment, moving } = names;
        let joints = groups.iter().map(|group| {
            let names = group.dimensions.iter().map(|dimension| dimension.name.clone());
            let joints = if moving.contains(&group.key) { names.collect() } else { Vec::new() };
            (group.key.clone(), joints)
        });
        let joints: BTreeMap<String, Vec<String>> = joints.collect();
        Ok(Self {
            writer: BagWriter::create(target, WriterOptions::default())?,
            builder: ChunkBuilder { joints, step_time, embodiment },
            trajectory_topic,
            chunk_topic,
            frame_id,
            sequence: 0,
        })
    }

    /// Writes one prediction.
    ///
    /// # Errors
    /// The disk's refusal, a stamp before 1970.
    pub fn write(&mut self, sample: &Sample, prediction: &Prediction) -> Result<(), ReplayError> {
        let info = ChunkInfo {
            published: sample.stamp,
            image_stamp: sample.stamp,
            state_stamp: sample.stamp,
            sequence: self.sequence,
            noise_seed: prediction.seed.unwrap_or_default(),
            instruction: sample.observation.instruction.clone(),
            timing: prediction.timing.stages().map(|(stage, time)| (stage.to_owned(), time)).to_vec(),
        };
        self.sequence += 1;
        let chunk = self.builder.action_chunk(&prediction.actions, info);
        self.writer.write(&self.chunk_topic, sample.stamp, &chunk)?;
        self.writer.write(&self.trajectory_topic, sample.stamp, &self.trajectory(sample, prediction))?;
        Ok(())
    }

    /// The plan as the network gave it: no limits, no hand-over.
    fn trajectory(&self, sample: &Sample, prediction: &Prediction) -> JointTrajectory {
        let moving: Vec<_> = prediction
            .actions
            .iter()
            .filter_map(|(key, values)| {
                Some((self.builder.joints.get(key).filter(|joints| !joints.is_empty())?, values))
            })
            .collect();
        let rows = moving.iter().map(|(_, values)| values.nrows()).min().unwrap_or(0);
        let point = |row: usize| JointTrajectoryPoint {
            positions: moving
                .iter()
                .flat_map(|(_, values)| values.row(row).to_vec())
                .map(f64::from)
                .collect(),
            time_from_start: row_time(sample.stamp, self.builder.step_time, row)
                .elapsed_since(sample.stamp)
                .into(),
            ..JointTrajectoryPoint::default()
        };
        JointTrajectory {
            header: Header { stamp: sample.stamp.into(), frame_id: self.frame_id.clone() },
            joint_names: moving.iter().flat_map(|(joints, _)| joints.iter().cloned()).collect(),
            points: (0..rows).map(point).collect(),
        }
    }

    /// Completes the recording.
    ///
    /// # Errors
    /// The disk's refusal.
    pub fn finish(self) -> Result<(), ReplayError> {
        Ok(self.writer.finish()?)
    }
}
