//! When to ask for the next chunk, what to ask for, and which command is due now.
//!
//! ```text
//!            observation      request            answer: hand-over         end of the executed horizon
//!  running chunk  |--------------|-- predicted latency --|----------------------|........ overlap ........|
//!  new chunk            |--- rows in the past, frozen ---|-- decaying / ramp ---|---- free -------------
//! ```
//!
//! A request changes nothing about what is being executed, so commands go on while a prediction runs, and when none comes
//! the running chunk is followed to its end, where its last pose is held. A new chunk is entered at the row that belongs to
//! the present; its earlier rows are history.
//!
//! | chunk | what happens |
//! |---|---|
//! | sequence not above that of the last accepted chunk, or from before [`Scheduler::hold`] | dropped, `out_of_sequence` |
//! | observation older than that of the running chunk | dropped, `older` |
//! | last row in the past | dropped, `expired` |
//! | other keys, joints or dimensions than the running chunk | dropped, `layout` |
//! | too many chunks at once are taking over | dropped, `crowded` |
//!
//! A clock that jumps back (a simulation that starts over) makes every time in the plan meaningless: the pose of the last
//! command is held until the next chunk comes.

use std::{fmt, sync::Arc, time::Duration};

use super::{
    chunk::{ChunkError, Layout, MAX_ROWS, MotionChunk, row_time},
    handover::{HandoverMode, Ramp, TiedRows, planned_actions},
    latency::LatencyEstimator,
    plan::{ActivePlan, Sample},
};
use crate::{processor::guidance::PlannedActions, ros::Stamp};

/// How chunks follow each other.
#[derive(Debug, Clone, PartialEq)]
pub struct SchedulerConfig {
    /// How a chunk takes over.
    pub mode: HandoverMode,
    /// Time between two rows.
    pub step_time: Duration,
    /// Rows of a chunk.
    pub horizon: usize,
    /// Rows of a chunk, counted from its observation, after which the next one is to be in force.
    pub execute_horizon: usize,
    /// Rows over which one chunk takes over from another.
    pub overlap: usize,
    /// Latency that is assumed until one was measured.
    pub initial_latency: Duration,
    /// Measured latencies that count.
    pub latency_window: usize,
    /// Which quantile of them is predicted, 0 to 1.
    pub latency_quantile: f64,
}

/// Settings that cannot be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SchedulerError {
    /// The step time is zero.
    #[error("expected a step time above zero, found {0:?}")]
    StepTime(Duration),
    /// No rows, or far too many.
    #[error("expected a horizon of 1 to {MAX_ROWS} steps, found {0}")]
    Horizon(usize),
    /// More or fewer rows to execute than there are.
    #[error("expected 1 to {horizon} steps to execute (the chunk's horizon), found {found}")]
    ExecuteHorizon {
        /// Rows of a chunk.
        horizon: usize,
        /// Rows to execute.
        found: usize,
    },
    /// More overlap than rows.
    #[error("expected an overlap of 0 to {horizon} steps (the chunk's horizon), found {found}")]
    Overlap {
        /// Rows of a chunk.
        horizon: usize,
        /// Rows of overlap.
        found: usize,
    },
}

impl SchedulerConfig {
    /// Whether the settings fit each other.
    ///
    /// # Errors
    /// The first that does not.
    pub fn check(&self) -> Result<(), SchedulerError> {
        let horizon = self.horizon;
        if self.step_time.is_zero() {
            return Err(SchedulerError::StepTime(self.step_time));
        }
        if !(1..=MAX_ROWS).contains(&horizon) {
            return Err(SchedulerError::Horizon(horizon));
        }
        if !(1..=horizon).contains(&self.execute_horizon) {
            return Err(SchedulerError::ExecuteHorizon { horizon, found: self.execute_horizon });
        }
        if self.overlap > horizon {
            return Err(SchedulerError::Overlap { horizon, found: self.overlap });
        }
        Ok(())
    }

    /// A number of rows as time.
    fn steps(&self, rows: usize) -> Duration {
        self.step_time.saturating_mul(u32::try_from(rows).unwrap_or(u32::MAX))
    }
}

/// What to ask the policy for.
#[derive(Debug, Clone, PartialEq)]
pub struct RequestPlan {
    /// Number of the request, which the chunk that answers it must carry.
    pub sequence: u64,
    /// Stamp of the observation: the start of the new chunk.
    pub observation: Stamp,
    /// When the answer is expected.
    pub arrival: Stamp,
    /// Rows of the new chunk that are covered by the running one: until the answer, and after it.
    pub tied: TiedRows,
    /// With real-time chunking and a running chunk: what the new chunk is to agree with.
    pub planned: Option<PlannedActions>,
}

/// Why a chunk is not executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dropped {
    /// A newer request was answered already, or the motion was stopped since.
    OutOfSequence,
    /// Its observation is older than that of the chunk in force.
    Older,
    /// All of it lies in the past.
    Expired,
    /// Its keys, joints or dimensions differ from those in force.
    Layout,
    /// Too many chunks are taking over at once.
    Crowded,
}

impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OutOfSequence => "a newer request was answered already, or the motion was stopped since",
            Self::Older => "its observation is older than that of the chunk in force",
            Self::Expired => "all of it lies in the past",
            Self::Layout => "its keys, joints or dimensions differ from those in force",
            Self::Crowded => "too many chunks are taking over at once",
        })
    }
}

/// What became of a chunk.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Arrival {
    /// It is taking over.
    Entered {
        /// The first row that is not in the past.
        row: usize,
        /// How it takes over; None where it is in force at once.
        ramp: Option<Ramp>,
    },
    /// It is not executed.
    Dropped(Dropped),
}

/// What happened since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Requests made.
    pub requested: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Chunks that took over.
    pub entered: u64,
    /// Of them, real-time chunks that came after their frozen rows were over.
    pub late: u64,
    /// Chunks dropped as [`Dropped::OutOfSequence`].
    pub out_of_sequence: u64,
    /// Chunks dropped as [`Dropped::Older`].
    pub older: u64,
    /// Chunks dropped as [`Dropped::Expired`].
    pub expired: u64,
    /// Chunks dropped as [`Dropped::Layout`].
    pub layout: u64,
    /// Chunks dropped as [`Dropped::Crowded`].
    pub crowded: u64,
    /// Times the clock jumped back.
    pub clock_jumps: u64,
}

/// A request that was not answered yet.
#[derive(Debug, Clone, PartialEq)]
struct Pending {
    sequence: u64,
    at: Stamp,
    /// Time of the last frozen row, where rows were frozen.
    frozen_until: Option<Stamp>,
}

/// Decides what is asked for and what is executed. Times may come in any order; nothing here waits.
#[derive(Debug, Clone)]
pub struct Scheduler {
    config: SchedulerConfig,
    latency: LatencyEstimator,
    plan: Option<ActivePlan>,
    pending: Option<Pending>,
    next_sequence: u64,
    /// The lowest sequence that is still accepted.
    lowest_accepted: u64,
    /// Time of the newest command.
    commanded: Option<Stamp>,
    counters: Counters,
}

impl Scheduler {
    /// A scheduler that executes nothing yet.
    ///
    /// # Errors
    /// Settings that do not fit each other.
    pub fn new(config: SchedulerConfig) -> Result<Self, SchedulerError> {
        config.check()?;
        let latency =
            LatencyEstimator::new(config.initial_latency, config.latency_window, config.latency_quantile);
        Ok(Self {
            config,
            latency,
            plan: None,
            pending: None,
            next_sequence: 0,
            lowest_accepted: 0,
            commanded: None,
            counters: Counters::default(),
        })
    }

    /// The settings in force.
    pub fn config(&self) -> &SchedulerConfig {
        &self.config
    }

    /// Changes the settings; what is being executed goes on as it was begun. Measured latencies are kept unless their
    /// settings change.
    ///
    /// # Errors
    /// Settings that do not fit each other; the old ones stay in force.
    pub fn configure(&mut self, config: SchedulerConfig) -> Result<(), SchedulerError> {
        config.check()?;
        let of = |config: &SchedulerConfig| {
            (config.initial_latency, config.latency_window, config.latency_quantile)
        };
        let settings = of(&config);
        if settings != of(&self.config) {
            self.latency = LatencyEstimator::new(settings.0, settings.1, settings.2);
        }
        self.config = config;
        Ok(())
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The latency to be expected of the next answer.
    pub fn predicted_latency(&self) -> Duration {
        self.latency.predict()
    }

    /// What is being executed.
    pub fn plan(&self) -> Option<&ActivePlan> {
        self.plan.as_ref()
    }

    /// Whether a request is unanswered.
    pub fn is_waiting(&self) -> bool {
        self.pending.is_some()
    }

    /// Whether to ask for the next chunk now: no answer is awaited, and one that is asked for now would come within the last
    /// step of the executed horizon or later. Without a chunk in force, always.
    pub fn due(&self, now: Stamp) -> bool {
        if self.pending.is_some() {
            return false;
        }
        let Some(running) = self.plan.as_ref().and_then(ActivePlan::newest) else { return true };
        // One that starts in the future was made before the clock jumped.
        let end = running.start() + self.config.steps(self.config.execute_horizon);
        running.start() > now || now + self.predicted_latency() + self.config.step_time >= end
    }

    /// Notes a request for the observation of `observation`, and says what to ask for. A request that is still unanswered
    /// may be answered all the same, as long as its answer comes before this one's.
    pub fn on_request(&mut self, now: Stamp, observation: Stamp) -> RequestPlan {
        let now = self.settle(now);
        let SchedulerConfig { mode, step_time, horizon, overlap, .. } = self.config;
        let arrival = now + self.predicted_latency();
        let grid = (observation, step_time, horizon);
        let running = self.plan.as_ref().and_then(|plan| Some((plan, plan.newest()?)));
        let tied =
            running.map_or(TiedRows::default(), |(_, chunk)| TiedRows::count(grid, arrival, chunk, overlap));
        let planned = match running {
            Some((plan, _)) if mode == HandoverMode::Rtc && tied.frozen > 0 => {
                Some(planned_actions(plan, grid, tied))
            }
            _ => None,
        };
        let sequence = self.next_sequence;
        self.next_sequence = self.next_sequence.wrapping_add(1);
        let last_frozen = tied.frozen.checked_sub(1).filter(|_| planned.is_some());
        let frozen_until = last_frozen.map(|row| row_time(observation, step_time, row));
        self.pending = Some(Pending { sequence, at: now, frozen_until });
        self.counters.requested += 1;
        RequestPlan { sequence, observation, arrival, tied, planned }
    }

    /// Notes that the request of `sequence` brought no chunk, so that the next one may be made.
    pub fn on_failure(&mut self, sequence: u64) {
        if self.pending.take_if(|pending| pending.sequence == sequence).is_some() {
            self.counters.failed += 1;
        }
    }

    /// Takes a chunk that came at `now`; its sequence is that of its request.
    pub fn on_chunk(&mut self, now: Stamp, chunk: MotionChunk) -> Arrival {
        let now = self.settle(now);
        let answered = self.pending.take_if(|pending| pending.sequence == chunk.sequence());
        if let Some(pending) = &answered {
            self.latency.record(now.elapsed_since(pending.at));
        }
        if let Some(reason) = self.refuse(now, &chunk) {
            let counter = match reason {
                Dropped::OutOfSequence => &mut self.counters.out_of_sequence,
                Dropped::Older => &mut self.counters.older,
                Dropped::Expired => &mut self.counters.expired,
                Dropped::Layout => &mut self.counters.layout,
                Dropped::Crowded => &mut self.counters.crowded,
            };
            *counter += 1;
            return Arrival::Dropped(reason);
        }
        self.counters.entered += 1;
        self.lowest_accepted = chunk.sequence().saturating_add(1);
        let row = (0..chunk.horizon()).find(|&row| chunk.time_of(row) >= now).unwrap_or(0);
        let ramp = self.ramp(now, answered.and_then(|pending| pending.frozen_until));
        let chunk = self.with_origin(now, chunk);
        match (&mut self.plan, ramp) {
            (Some(plan), Some(ramp)) => plan.enter(chunk, ramp),
            (plan, _) => *plan = Some(ActivePlan::of(chunk)),
        }
        Arrival::Entered { row, ramp }
    }

    /// The command that is due at `now`; None before the first chunk or pose. Call it as often as commands are sent.
    ///
    /// It moves continuously with `now`, also over hand-overs unless the mode is `replace`. When `now` falls back by
    /// less than a step, the newest time counts; by more, the clock has jumped.
    pub fn command(&mut self, now: Stamp) -> Option<Sample> {
        let time = self.settle(now);
        let plan = self.plan.as_mut()?;
        self.commanded = Some(time);
        plan.prune(time);
        Some(plan.sample(time))
    }

    /// Holds the pose that is due at `now`, until a chunk comes that is asked for later: answers to earlier requests are
    /// refused. Without a plan only the latter.
    pub fn hold(&mut self, now: Stamp) -> Option<Sample> {
        self.command(now);
        if let Some(time) = self.commanded {
            self.hold_at(time);
        }
        self.refuse_what_was_asked();
        self.command(now)
    }

    /// Holds a given pose, the robot's own for instance, from which the next chunk is then entered gradually.
    ///
    /// # Errors
    /// Another number of values than the layout has, or values that are not finite; nothing changes then.
    pub fn hold_pose(&mut self, layout: Arc<Layout>, pose: Vec<f64>) -> Result<(), ChunkError> {
        self.plan = Some(ActivePlan::hold(layout, pose)?);
        self.refuse_what_was_asked();
        Ok(())
    }

    /// Forgets what is being executed and what was asked for. Latencies and counters stay.
    pub fn reset(&mut self) {
        self.plan = None;
        self.commanded = None;
        self.refuse_what_was_asked();
    }

    /// The time that counts for `now`: never before the newest command. Holds the last commanded pose where the clock has
    /// jumped back.
    fn settle(&mut self, now: Stamp) -> Stamp {
        let Some(last) = self.commanded.filter(|&last| now < last) else { return now };
        if last.elapsed_since(now) < self.config.step_time {
            return last;
        }
        self.counters.clock_jumps += 1;
        self.commanded = Some(now);
        self.hold_at(last);
        self.refuse_what_was_asked();
        now
    }

    fn hold_at(&mut self, time: Stamp) {
        let held = self.plan.as_ref().map(|plan| plan.sample(time));
        // The pose was sampled from this very layout and is finite, as all rows are.
        if let Some(Ok(hold)) = held.map(|held| ActivePlan::hold(held.layout, held.positions)) {
            self.plan = Some(hold);
        }
    }

    fn refuse_what_was_asked(&mut self) {
        self.pending = None;
        self.lowest_accepted = self.next_sequence;
    }

    fn refuse(&self, now: Stamp, chunk: &MotionChunk) -> Option<Dropped> {
        if chunk.sequence() < self.lowest_accepted {
            return Some(Dropped::OutOfSequence);
        }
        if chunk.end() < now {
            return Some(Dropped::Expired);
        }
        let plan = self.plan.as_ref()?;
        // A running chunk from the future was made before the clock jumped, and is no measure.
        if plan.newest().is_some_and(|running| running.start() <= now && chunk.start() < running.start()) {
            return Some(Dropped::Older);
        }
        if plan.layout() != chunk.layout() {
            return Some(Dropped::Layout);
        }
        (self.config.mode != HandoverMode::Replace && !plan.has_room()).then_some(Dropped::Crowded)
    }

    /// A chunk that is entered before its first row, with what was commanded at its start as the pose from which that row is
    /// approached. Without it the chunk would be at its first row too early, by up to a step.
    fn with_origin(&self, now: Stamp, chunk: MotionChunk) -> MotionChunk {
        let Some(plan) = &self.plan else { return chunk };
        if chunk.origin().is_some() || now < chunk.start() || chunk.time_of(0) <= now {
            return chunk;
        }
        let pose = plan.sample(chunk.start()).positions;
        // Plan and chunk have one layout, and poses are finite.
        chunk.clone().with_origin(pose).unwrap_or(chunk)
    }

    /// How a chunk takes over at `now`, whose rows are frozen until `frozen_until`.
    fn ramp(&mut self, now: Stamp, frozen_until: Option<Stamp>) -> Option<Ramp> {
        let overlap = self.config.steps(self.config.overlap);
        let duration = match (self.config.mode, frozen_until) {
            (HandoverMode::Replace, _) => return None,
            (HandoverMode::Rtc, Some(until)) if now <= until => overlap.min(self.config.step_time),
            (HandoverMode::Rtc, Some(_)) => {
                self.counters.late += 1;
                overlap
            }
            (HandoverMode::Rtc | HandoverMode::Blend, _) => overlap,
        };
        (self.plan.is_some() && !duration.is_zero()).then_some(Ramp { start: now, duration })
    }
}

#[cfg(test)]
mod tests;
