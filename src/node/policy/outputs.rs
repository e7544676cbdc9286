//! What the node publishes: each output twice, for the robot and for the dry run.

use crate::{
    node::{
        config::NodeConfig,
        outputs::{OutputError, PositionOutput, TwistOutput},
    },
    ros::{
        Stamp,
        msg::{ActionChunk, Float64MultiArray, JointTrajectory, Message, TwistStamped},
        transport::{Publisher, Qos, RosError, RosNode},
    },
    safety::gate::Route,
};

use super::{
    NodeError,
    control::{Control, Due},
};

/// An output that goes to the robot or to the dry run.
struct Routed<M: Message> {
    robot: Publisher<M>,
    dry_run: Publisher<M>,
}

impl<M: Message> Routed<M> {
    fn new(node: &RosNode, topic: &str) -> Result<Self, RosError> {
        Ok(Self {
            robot: node.publisher(topic, Qos::reliable(1))?,
            dry_run: node.publisher(&dry_run_topic(topic), Qos::reliable(1))?,
        })
    }

    fn publish(&self, route: Route, message: M) -> Result<(), RosError> {
        match route {
            Route::Robot => self.robot.publish(message),
            Route::DryRun => self.dry_run.publish(message),
            Route::Nowhere => Ok(()),
        }
    }
}

/// `~/dry_run/` and the topic's own name.
fn dry_run_topic(topic: &str) -> String {
    let name = topic.strip_prefix("~/").unwrap_or(topic);
    format!("~/dry_run/{}", name.trim_start_matches('/'))
}

/// See the module.
pub struct Outputs {
    trajectories: Routed<JointTrajectory>,
    chunks: Routed<ActionChunk>,
    positions: Option<(PositionOutput, Routed<Float64MultiArray>)>,
    base: Option<(String, TwistOutput, Routed<TwistStamped>)>,
}

impl Outputs {
    /// Announces the outputs of a configuration.
    ///
    /// # Errors
    /// Outputs that do not fit the checkpoint, a refusal of the transport.
    pub fn new(node: &RosNode, config: &NodeConfig, control: &Control) -> Result<Self, NodeError> {
        let commands = &config.commands;
        let positions = match &commands.positions_topic {
            Some(topic) => {
                let joints = commands.positions_joints.as_deref().unwrap_or(control.joints());
                Some((PositionOutput::new(joints, control.joints())?, Routed::new(node, topic)?))
            }
            None => None,
        };
        let base = match &commands.base {
            Some(base) => {
                let dimensions = control
                    .layout()
                    .keys
                    .iter()
                    .find(|key| key.key == base.key)
                    .map(|key| key.columns.len())
                    .ok_or_else(|| NodeError::BaseKey {
                        found: base.key.clone(),
                        known: control.layout().keys.iter().map(|key| key.key.clone()).collect(),
                    })?;
                let (linear, angular) = (base.max_linear, base.max_angular);
                let output = TwistOutput::new(&base.components, dimensions, linear, angular, &base.frame_id)?;
                Some((base.key.clone(), output, Routed::new(node, &base.topic)?))
            }
            None => None,
        };
        let outputs = Self {
            trajectories: Routed::new(node, &config.trajectory_topic)?,
            chunks: Routed::new(node, &config.chunk_topic)?,
            positions,
            base,
        };
        let (robot, dry_run) = (outputs.trajectories.robot.topic(), outputs.trajectories.dry_run.topic());
        tracing::info!("trajectories: {robot}; in dry run {dry_run}");
        Ok(outputs)
    }

    /// Publishes a trajectory.
    ///
    /// # Errors
    /// A refusal of the transport.
    pub fn trajectory(&self, route: Route, trajectory: JointTrajectory) -> Result<(), RosError> {
        self.trajectories.publish(route, trajectory)
    }

    /// Publishes a chunk as the policy made it.
    ///
    /// # Errors
    /// A refusal of the transport.
    pub fn chunk(&self, route: Route, chunk: ActionChunk) -> Result<(), RosError> {
        self.chunks.publish(route, chunk)
    }

    /// Publishes what is due.
    ///
    /// # Errors
    /// A command that is none, a refusal of the transport. The other outputs are published all the same.
    pub fn command(&self, route: Route, due: &Due, control: &Control, now: Stamp) -> Result<(), OutputFault> {
        match due {
            Due::Nothing => Ok(()),
            Due::Follow(command) => {
                let base = |key: &str| command.layout.values(&command.values, key);
                self.positions(route, &command.pose).and(self.base(route, base, now))
            }
            Due::Hold(pose) => self.positions(route, pose).and(self.stand(route, now)),
            Due::Halt { route, pose } => {
                let Some(pose) = pose.as_ref().filter(|pose| !pose.is_empty()) else {
                    return self.stand(*route, now);
                };
                let halted = control
                    .halt_trajectory(pose)
                    .map_err(OutputFault::from)
                    .and_then(|trajectory| Ok(self.trajectory(*route, trajectory)?));
                halted.and(self.positions(*route, pose)).and(self.stand(*route, now))
            }
        }
    }

    fn positions(&self, route: Route, pose: &[f64]) -> Result<(), OutputFault> {
        match &self.positions {
            Some((output, topic)) if !pose.is_empty() => Ok(topic.publish(route, output.message(pose)?)?),
            _ => Ok(()),
        }
    }

    fn base<'a>(
        &self,
        route: Route,
        values: impl Fn(&str) -> Option<&'a [f64]>,
        now: Stamp,
    ) -> Result<(), OutputFault> {
        let Some((key, output, topic)) = &self.base else { return Ok(()) };
        let Some(row) = values(key) else { return Ok(()) };
        let (twist, _) = output.message(row, now)?;
        Ok(topic.publish(route, twist)?)
    }

    fn stand(&self, route: Route, now: Stamp) -> Result<(), OutputFault> {
        match &self.base {
            Some((_, output, topic)) => Ok(topic.publish(route, output.zero(now))?),
            None => Ok(()),
        }
    }
}

/// Why a command was not published.
#[derive(Debug, thiserror::Error)]
pub enum OutputFault {
    /// It is none.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// The transport refuses it.
    #[error(transparent)]
    Ros(#[from] RosError),
}

#[cfg(test)]
mod tests {
    use super::dry_run_topic;

    #[test]
    fn a_dry_run_topic_lies_under_the_nodes_own_name() {
        for (topic, expected) in [
            ("~/joint_trajectory", "~/dry_run/joint_trajectory"),
            ("/arm_controller/joint_trajectory", "~/dry_run/arm_controller/joint_trajectory"),
            ("cmd_vel", "~/dry_run/cmd_vel"),
        ] {
            assert_eq!(dry_run_topic(topic), expected);
        }
    }
}
