//! What may move the robot, in one place and behind one lock: activation, watchdog, plan, limits.
//!
//! Nothing here reads a clock or touches the network: the node's tasks say what happened, and publish what comes back.

use std::{sync::Arc, time::Duration};

use ndarray::Array2;
use thiserror::Error;

use crate::{
    motion::{
        Arrival, ChunkError, Layout, MotionChunk, MotionGroup, RequestPlan, Scheduler, SchedulerConfig,
        SchedulerError,
    },
    node::{
        config::{CheckpointKeys, NodeConfig},
        outputs::{self, OutputError},
    },
    ros::{
        Stamp,
        msg::{Header, JointTrajectory, JointTrajectoryPoint},
    },
    safety::{
        gate::{Gate, Outcome, Route, State, StateChange, Transition},
        limits::{CommandError, LimitError, Limiter, Previous, Start},
        watchdog::{self, Watchdog, WatchdogConfig},
    },
};

/// Latencies that the prediction of the next one rests on.
const LATENCY_WINDOW: usize = 20;
/// Which part of them the prediction is to cover.
const LATENCY_QUANTILE: f64 = 0.9;

/// Settings that do not fit the checkpoint.
#[derive(Debug, Error)]
pub enum ControlError {
    /// How chunks follow each other.
    #[error("handover: {0}")]
    Scheduler(#[from] SchedulerError),
    /// Limits of joints.
    #[error(transparent)]
    Limits(#[from] LimitError),
}

/// Why a chunk moves nothing.
#[derive(Debug, Error)]
pub enum RefusedChunk {
    /// Its values cannot be followed, not being finite for instance.
    #[error(transparent)]
    Chunk(#[from] ChunkError),
    /// It came too late, or for a request that no longer counts.
    #[error("the chunk is not executed: {0}")]
    Dropped(crate::motion::Dropped),
    /// The limits refuse it.
    #[error(transparent)]
    Command(#[from] CommandError),
}

/// A command to be sent now.
#[derive(Debug, Clone, PartialEq)]
pub struct Command {
    /// Positions of the moved joints, limited, in the order of [`Control::joints`].
    pub pose: Vec<f64>,
    /// Values of all action keys before limiting, and how they stand.
    pub values: Vec<f64>,
    /// How `values` stand.
    pub layout: Arc<Layout>,
}

/// What the command loop is to do at one moment.
#[derive(Debug, Clone, PartialEq)]
pub enum Due {
    /// Nothing may be commanded, or nothing is known to command.
    Nothing,
    /// Follow the plan.
    Follow(Command),
    /// Motion ends here: lead the controllers to this pose once, and the base to a standstill.
    Halt {
        /// Where it is to be sent; activation may have ended already.
        route: Route,
        /// Where the robot is to stay, in the order of [`Control::joints`]; None where no pose is known.
        pose: Option<Vec<f64>>,
    },
    /// Hold the pose.
    Hold(Vec<f64>),
}

/// What a moment brought.
#[derive(Debug)]
pub struct Moment {
    /// The watchdog's change, worth a line in the log.
    pub change: Option<watchdog::Change>,
    /// What is to be commanded, or why nothing is.
    pub due: Result<Due, CommandError>,
}

/// See the module.
pub struct Control {
    gate: Gate,
    watchdog: Watchdog,
    watchdog_config: WatchdogConfig,
    scheduler: Scheduler,
    limiter: Limiter,
    layout: Arc<Layout>,
    joints: Vec<String>,
    step_time: Duration,
    frame_id: String,
    /// The last pose that was commanded, of the moved joints, and when.
    commanded: Option<(Stamp, Vec<f64>)>,
    /// The watchdog's verdict that was acted upon last.
    acted: &'static str,
    /// Changes of the state that nobody was told of yet.
    changes: Vec<StateChange>,
    /// Activation ended: where motion is to be halted, and at which pose.
    halt: Option<(Route, Option<Vec<f64>>)>,
    /// When the tick in progress began.
    in_flight: Option<Stamp>,
    failure: Option<String>,
    chunk: Option<watchdog::Chunk>,
    not_finite: u64,
}

fn scheduler_config(config: &NodeConfig, horizon: usize) -> SchedulerConfig {
    let handover = &config.handover;
    SchedulerConfig {
        mode: handover.mode,
        step_time: config.step_time,
        horizon,
        execute_horizon: handover.execute_horizon.unwrap_or(horizon).min(horizon),
        overlap: handover.overlap.min(horizon),
        initial_latency: handover.initial_latency,
        latency_window: LATENCY_WINDOW,
        latency_quantile: LATENCY_QUANTILE,
    }
}

impl Control {
    /// For a configuration and what the checkpoint's embodiment moves; `horizon` are the steps of its chunks.
    ///
    /// # Errors
    /// Settings that do not fit.
    pub fn new(config: &NodeConfig, keys: &CheckpointKeys, horizon: usize) -> Result<Self, ControlError> {
        let layout = Layout::new(
            keys.action.iter().map(|(key, dim)| (key.clone(), config.action_joints(key).to_vec(), *dim)),
        );
        let joints: Vec<String> = layout.keys.iter().flat_map(|key| key.joints.iter().cloned()).collect();
        Ok(Self {
            gate: Gate::new(config.safety.dry_run),
            watchdog: Watchdog::new(config.safety.watchdog.clone()),
            watchdog_config: config.safety.watchdog.clone(),
            scheduler: Scheduler::new(scheduler_config(config, horizon))?,
            limiter: Limiter::new(joints.clone(), config.safety.limits.clone())?,
            layout: Arc::new(layout),
            joints,
            step_time: config.step_time,
            frame_id: config.frame_id.clone(),
            commanded: None,
            acted: "",
            changes: Vec::new(),
            halt: None,
            in_flight: None,
            failure: None,
            chunk: None,
            not_finite: 0,
        })
    }

    /// Takes a changed configuration. What does not fit keeps its old value; the problems are returned.
    pub fn configure(&mut self, config: &NodeConfig) -> Vec<ControlError> {
        let mut problems = Vec::new();
        let horizon = self.scheduler.config().horizon;
        if let Err(error) = self.scheduler.configure(scheduler_config(config, horizon)) {
            problems.push(error.into());
        }
        if let Err(error) = self.limiter.set_settings(config.safety.limits.clone()) {
            problems.push(error.into());
        }
        self.watchdog_config = config.safety.watchdog.clone();
        self.watchdog.set_config(self.watchdog_config.clone());
        if self.gate.dry_run() != config.safety.dry_run {
            // From the dry run to the robot only over an activation of its own.
            self.deactivate();
            self.gate.set_dry_run(config.safety.dry_run);
        }
        problems
    }

    /// Names of the moved joints.
    pub fn joints(&self) -> &[String] {
        &self.joints
    }

    /// How the values of a chunk stand.
    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// Activation, dry run, e-stop.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Limits and clips.
    pub fn limiter(&self) -> &Limiter {
        &self.limiter
    }

    /// Takes the limits of a URDF; what deserves a line in the log comes back.
    ///
    /// # Errors
    /// Why the limits in force stay.
    pub fn set_urdf(&mut self, xml: &str) -> Result<Vec<String>, LimitError> {
        self.limiter.set_urdf(xml)
    }

    /// Requests, latencies and what became of chunks.
    pub fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    /// What the watchdog says, and whether no chunk was followed yet.
    pub fn watchdog(&self) -> (&watchdog::State, bool) {
        (self.watchdog.state(), self.watchdog.is_starting())
    }

    /// Chunks that were dropped because a value was not finite.
    pub fn not_finite(&self) -> u64 {
        self.not_finite
    }

    /// A transition of the lifecycle.
    pub fn request(&mut self, transition: Transition) -> Outcome {
        let route = self.gate.route();
        let outcome = self.gate.request(transition, &[]);
        self.after(route, outcome.change);
        outcome
    }

    fn deactivate(&mut self) {
        if self.gate.state() == State::Active {
            self.request(Transition::Deactivate);
        }
    }

    /// A message of the e-stop.
    pub fn on_estop(&mut self, pressed: bool) -> Option<StateChange> {
        let route = self.gate.route();
        let change = self.gate.on_estop(pressed);
        self.after(route, change);
        change
    }

    /// The changes of the state since the last call, oldest first.
    pub fn take_changes(&mut self) -> Vec<StateChange> {
        std::mem::take(&mut self.changes)
    }

    /// Releases the e-stop's latch.
    pub fn reset(&mut self) -> Outcome {
        self.gate.reset()
    }

    /// Where activation has ended, motion is halted. Whoever activates next finds neither an old plan nor an old pose.
    fn after(&mut self, route: Route, change: Option<StateChange>) {
        let Some(change) = change else { return };
        self.changes.push(change);
        let pose = self.commanded.take().map(|(_, pose)| pose);
        if route != Route::Nowhere && self.gate.route() == Route::Nowhere {
            self.halt = Some((route, pose));
        }
        self.scheduler.reset();
        self.watchdog = Watchdog::new(self.watchdog_config.clone());
        self.acted = "";
        self.in_flight = None;
        self.chunk = None;
        self.failure = None;
    }

    /// Whether the next chunk is to be asked for now.
    pub fn wants_chunk(&self, now: Stamp, at_each_tick: bool) -> bool {
        self.gate.state() == State::Active
            && !self.scheduler.is_waiting()
            && (at_each_tick || self.scheduler.due(now))
    }

    /// A tick begins with the observation stamped `observation`.
    pub fn on_request(&mut self, now: Stamp, observation: Stamp) -> RequestPlan {
        self.in_flight = Some(now);
        self.scheduler.on_request(now, observation)
    }

    /// The tick of `sequence` failed.
    pub fn on_failure(&mut self, sequence: u64, reason: &str) {
        self.in_flight = None;
        self.failure = Some(reason.to_owned());
        self.scheduler.on_failure(sequence);
    }

    /// The tick of `sequence` brought `actions`; returns what is to be commanded at once, and the trajectory that is to be
    /// followed from now on, limited, where any of it is left and may be followed.
    ///
    /// # Errors
    /// Why nothing of it is followed.
    pub fn on_chunk(
        &mut self,
        now: Stamp,
        (sequence, observation): (u64, Stamp),
        actions: &[(String, Array2<f32>)],
        inputs: &watchdog::Inputs<'_>,
        measured: Option<Vec<f64>>,
    ) -> Result<(Moment, Option<JointTrajectory>), RefusedChunk> {
        let begun = self.in_flight.take().unwrap_or(now);
        let groups = actions
            .iter()
            .zip(&self.layout.keys)
            .map(|((key, values), layout)| MotionGroup {
                key: key.clone(),
                joints: layout.joints.clone(),
                values: values.clone(),
            })
            .collect();
        let chunk = MotionChunk::new(observation, self.step_time, sequence, groups).inspect_err(|error| {
            self.not_finite += u64::from(matches!(error, ChunkError::NotFinite { .. }));
            self.failure = Some(error.to_string());
            self.scheduler.on_failure(sequence);
        })?;
        let times: Vec<Stamp> = (0..chunk.horizon()).map(|row| chunk.time_of(row)).collect();
        match self.scheduler.on_chunk(now, chunk) {
            Arrival::Entered { .. } => {}
            Arrival::Dropped(reason) => return Err(RefusedChunk::Dropped(reason)),
        }
        self.failure = None;
        self.chunk = Some(watchdog::Chunk { begun, complete: now });
        let moment = self.moment(now, inputs, measured);
        let Ok(Due::Follow(command)) = &moment.due else { return Ok((moment, None)) };
        if command.pose.is_empty() {
            return Ok((moment, None));
        }
        let Some(mut trajectory) = outputs::upcoming(self.trajectory(observation, &times), now) else {
            return Ok((moment, None));
        };
        let start = Start { pose: &command.pose, time: now };
        self.limiter.apply_trajectory(Some(start), &mut trajectory)?;
        Ok((moment, Some(trajectory)))
    }

    /// The plan in force at the given times, of the moved joints.
    fn trajectory(&self, observation: Stamp, times: &[Stamp]) -> JointTrajectory {
        let plan = self.scheduler.plan();
        let points = times.iter().filter_map(|&time| {
            let sample = plan?.sample(time);
            Some(JointTrajectoryPoint {
                positions: self.moved(&sample.positions),
                time_from_start: time.elapsed_since(observation).into(),
                ..JointTrajectoryPoint::default()
            })
        });
        JointTrajectory {
            header: Header { stamp: observation.into(), frame_id: self.frame_id.clone() },
            joint_names: self.joints.clone(),
            points: points.collect(),
        }
    }

    /// The values of the moved joints out of those of all keys.
    fn moved(&self, values: &[f64]) -> Vec<f64> {
        let moving = self.layout.keys.iter().filter(|key| !key.joints.is_empty());
        moving.flat_map(|key| values.get(key.columns.clone()).unwrap_or_default().iter().copied()).collect()
    }

    /// Judges the inputs and says what is to be commanded at `now`. `measured` is the robot's own pose of the moved joints,
    /// where it is known.
    pub fn moment(
        &mut self,
        now: Stamp,
        inputs: &watchdog::Inputs<'_>,
        measured: Option<Vec<f64>>,
    ) -> Moment {
        if let Some((route, pose)) = self.halt.take() {
            return Moment { change: None, due: Ok(Due::Halt { route, pose: pose.or(measured) }) };
        }
        let route = self.gate.route();
        if route == Route::Nowhere {
            return Moment { change: None, due: Ok(Due::Nothing) };
        }
        let inputs = watchdog::Inputs {
            in_flight: self.in_flight.map(|begun| now.elapsed_since(begun)),
            failure: self.failure.as_deref(),
            chunk: self.chunk,
            estop: self.gate.estop(),
            ..*inputs
        };
        let change = self.watchdog.update(now, &inputs);
        let verdict = self.watchdog.state().label();
        let new = std::mem::replace(&mut self.acted, verdict) != verdict;
        let due = match verdict {
            "ok" => self.follow(now, measured),
            // Nothing was commanded yet, so there is nothing to hold either.
            _ if self.watchdog.is_starting() => Ok(Due::Nothing),
            _ => {
                if new {
                    self.scheduler.hold(now);
                }
                let pose = self.commanded.as_ref().map(|(_, pose)| pose.clone()).or(measured);
                Ok(match pose {
                    pose if new => Due::Halt { route, pose },
                    Some(pose) if verdict == "hold" => Due::Hold(pose),
                    _ => Due::Nothing,
                })
            }
        };
        Moment { change, due }
    }

    fn follow(&mut self, now: Stamp, measured: Option<Vec<f64>>) -> Result<Due, CommandError> {
        let Some(sample) = self.scheduler.command(now) else { return Ok(Due::Nothing) };
        let mut pose = self.moved(&sample.positions);
        if !pose.is_empty() {
            let before = self.commanded.take().or(measured.map(|pose| (now, pose)));
            let previous =
                before.as_ref().map(|(then, pose)| Previous { pose, elapsed: now.elapsed_since(*then) });
            let limited = self.limiter.apply(previous, &mut pose);
            if let Err(error) = limited {
                self.commanded = before;
                return Err(error);
            }
            self.commanded = Some((now, pose.clone()));
        }
        Ok(Due::Follow(Command { pose, values: sample.positions, layout: sample.layout }))
    }

    /// A trajectory that leads the controllers to `pose` and keeps them there.
    ///
    /// # Errors
    /// A pose that is not finite or has the wrong length.
    pub fn halt_trajectory(&self, pose: &[f64]) -> Result<JointTrajectory, OutputError> {
        outputs::pose_trajectory(&self.joints, pose, self.step_time, &self.frame_id)
    }
}
