//! How the node fares, as `diagnostic_msgs/DiagnosticArray` and as [`PolicyStatus`]. Pure: a [`Snapshot`] in, messages out.
//!
//! | status | ERROR | WARN |
//! |---|---|---|
//! | inputs | an input is missing or too old; none of its new messages is of use (NaN joints, frames of a wrong size) | lost messages, blocked ticks, refused, undecodable or wrongly typed messages, a clock that was set back |
//! | inference | the engine failed; a tick failed; a chunk was not finite | no chunk yet; rate below 80 % of what is asked for; chunks that came too late |
//! | motion | the watchdog holds or stops | the watchdog waits for the first chunk; commands were clipped |
//! | activation | an e-stop is latched | |
//!
//! Counts are since the start; what they say about *now* is their growth since the snapshot before.

use std::fmt::Display;
use std::time::Duration;

use super::assembly::{Blocked, Input, InputCounts, InputReport};
use crate::ros::Stamp;
use crate::ros::msg::{
    DiagnosticArray, DiagnosticStatus, Header, InputStatus, JointClips, KeyValue, PolicyStatus, StageLatency,
};
use crate::safety::gate::{Gate, Route};
use crate::safety::limits::ClipCounts;
use crate::safety::watchdog;

/// The part of the requested rate below which a warning is given.
const RATE_EXPECTED: f64 = 0.8;

/// Ticks whose latencies are kept: more than the fastest policy makes in a minute.
const LATENCIES: usize = 16_384;

/// Latencies of the ticks since the window began, by stage.
#[derive(Debug, Clone, Default)]
pub struct LatencyWindow {
    stages: Vec<(String, Vec<Duration>)>,
}

impl LatencyWindow {
    /// Adds a tick's stages. Beyond 16384 ticks, further ones are left out until the window is taken.
    pub fn record<'a>(&mut self, stages: impl IntoIterator<Item = (&'a str, Duration)>) {
        for (name, time) in stages {
            let index = self.stages.iter().position(|(stage, _)| stage == name).unwrap_or_else(|| {
                self.stages.push((name.to_owned(), Vec::new()));
                self.stages.len() - 1
            });
            // The index was found or just made.
            if let Some((_, times)) = self.stages.get_mut(index)
                && times.len() < LATENCIES
            {
                times.push(time);
            }
        }
    }

    /// Median and 99th percentile by stage, in the order in which stages were first recorded.
    pub fn latencies(&self) -> Vec<StageLatency> {
        self.stages
            .iter()
            .map(|(stage, times)| {
                let mut times = times.clone();
                times.sort_unstable();
                StageLatency {
                    stage: stage.clone(),
                    // At most LATENCIES.
                    samples: times.len() as u32,
                    p50: milliseconds(percentile(&times, 50)),
                    p99: milliseconds(percentile(&times, 99)),
                }
            })
            .collect()
    }
}

/// The smallest of the sorted times that at least `percent` of them do not exceed; zero where there are none.
fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

fn milliseconds(time: Duration) -> f32 {
    (time.as_secs_f64() * 1e3) as f32
}

/// What the transport counted of one input's topic.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TransportCounts {
    /// Messages that were sent and never came; `None` where the transport cannot tell.
    pub lost: Option<u64>,
    /// Messages that newer ones pushed out before they were read. Normal for cameras faster than the policy.
    pub overwritten: u64,
    /// Payloads that are not the message that the topic should carry.
    pub undecodable: u64,
    /// Messages of another type.
    pub wrong_type: u64,
}

/// An input as the assembler and the transport see it.
#[derive(Debug, Clone)]
pub struct InputSnapshot {
    /// What the assembler says.
    pub report: InputReport,
    /// What the transport says.
    pub transport: TransportCounts,
    /// Greatest age.
    pub max_age: Duration,
}

impl InputSnapshot {
    fn fresh(&self) -> bool {
        self.report.age.is_some_and(|age| age <= self.max_age)
    }
}

/// Whether there is something that computes chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Engine {
    /// It is being loaded.
    Loading,
    /// It is being built, which takes minutes; how far that is.
    Building(String),
    /// It works; what computes the chunks, and where.
    Ready(String),
    /// It does not work; why.
    Failed(String),
}

/// Everything that is known at one moment. Counts are since the start.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Now.
    pub time: Stamp,
    /// Name of the node, without its namespace.
    pub node: String,
    /// Device that computes, for `hardware_id`; may be empty.
    pub device: String,
    /// What computes the chunks.
    pub engine: Engine,
    /// What carries the messages.
    pub transport: String,
    /// Tag of the embodiment.
    pub embodiment: String,
    /// Instruction in force.
    pub instruction: String,
    /// How one chunk follows another.
    pub handover: String,
    /// Inputs, cameras first.
    pub inputs: Vec<InputSnapshot>,
    /// Ticks without an observation.
    pub blocked: Blocked,
    /// Why the last of them had none.
    pub blocked_because: Option<String>,
    /// Chunks per second that are asked for.
    pub requested_rate: f64,
    /// Chunks per second in the last window.
    pub rate: f64,
    /// Latencies in the last window.
    pub latency: Vec<StageLatency>,
    /// Chunks.
    pub chunks: u64,
    /// Ticks that failed.
    pub failed: u64,
    /// Why the last of them failed.
    pub last_error: Option<String>,
    /// Chunks that were dropped because a value was not finite.
    pub dropped_not_finite: u64,
    /// Chunks that were dropped because they came too late.
    pub dropped_late: u64,
    /// Clips by joint.
    pub clips: Vec<(String, ClipCounts)>,
    /// Lifecycle, dry run, e-stop.
    pub gate: Gate,
    /// What the watchdog says.
    pub watchdog: watchdog::State,
    /// Whether no chunk was followed yet.
    pub starting: bool,
}

/// A status in the making: its level is that of its worst finding.
struct Part {
    level: u8,
    findings: Vec<(u8, String)>,
    values: Vec<KeyValue>,
}

impl Part {
    fn new() -> Self {
        Self { level: DiagnosticStatus::OK, findings: Vec::new(), values: Vec::new() }
    }

    fn find(&mut self, level: u8, message: impl Into<String>) {
        self.level = self.level.max(level);
        self.findings.push((level, message.into()));
    }

    fn error(&mut self, message: impl Into<String>) {
        self.find(DiagnosticStatus::ERROR, message);
    }

    fn warn(&mut self, message: impl Into<String>) {
        self.find(DiagnosticStatus::WARN, message);
    }

    fn value(&mut self, key: impl Into<String>, value: impl Display) {
        self.values.push(KeyValue { key: key.into(), value: value.to_string() });
    }

    /// Worst findings first; `fine` where there are none.
    fn status(mut self, snapshot: &Snapshot, part: &str, fine: String) -> DiagnosticStatus {
        self.findings.sort_by_key(|(level, _)| std::cmp::Reverse(*level));
        let messages: Vec<String> = self.findings.into_iter().map(|(_, message)| message).collect();
        DiagnosticStatus {
            level: self.level,
            name: format!("{}: {part}", snapshot.node),
            message: if messages.is_empty() { fine } else { messages.join("; ") },
            hardware_id: snapshot.device.clone(),
            values: self.values,
        }
    }
}

/// How the node fares, with the snapshot before for what is new; `None` for the first one.
pub fn diagnostics(before: Option<&Snapshot>, now: &Snapshot) -> DiagnosticArray {
    DiagnosticArray {
        header: Header { stamp: now.time.into(), ..Header::default() },
        status: vec![inputs(before, now), inference(before, now), motion(before, now), activation(now)],
    }
}

/// By how much a count grew.
fn grown(before: Option<&Snapshot>, now: &Snapshot, count: impl Fn(&Snapshot) -> u64) -> u64 {
    // A count that shrinks was reset, and counts from zero again.
    let then = before.map_or(0, &count);
    count(now).checked_sub(then).unwrap_or_else(|| count(now))
}

fn inputs(before: Option<&Snapshot>, now: &Snapshot) -> DiagnosticStatus {
    let mut part = Part::new();
    for input in &now.inputs {
        let InputReport { input: name, age, counts, last_error } = &input.report;
        let then = before.and_then(|before| before.inputs.iter().find(|then| then.report.input == *name));
        let then_counts = then.map_or(InputCounts::default(), |then| then.report.counts);
        let then_transport = then.map_or(TransportCounts::default(), |then| then.transport);
        let received = counts.received.saturating_sub(then_counts.received);
        let refused = counts.refused.saturating_sub(then_counts.refused);
        let because = last_error.as_deref().unwrap_or("no reason known");

        let limit = shown(input.max_age);
        match age {
            None => part.error(format!("{name}: nothing usable came yet")),
            Some(age) if !input.fresh() => {
                part.error(format!("{name} is {} old, at most {limit} are allowed", shown(*age)));
            }
            Some(_) => {}
        }
        match refused {
            0 => {}
            // Frames are refused when they are used, which may be after the window in which they came.
            refused if refused >= received => {
                part.error(format!("{name}: all {refused} new messages refused: {because}"));
            }
            refused => part.warn(format!("{name}: {refused} of {received} new messages refused: {because}")),
        }
        let lost = input.transport.lost.unwrap_or(0).saturating_sub(then_transport.lost.unwrap_or(0));
        if lost > 0 {
            part.warn(format!("{name}: {lost} messages were lost on the way, {received} came"));
        }
        let undecodable = input.transport.undecodable.saturating_sub(then_transport.undecodable);
        if undecodable > 0 {
            part.warn(format!("{name}: {undecodable} payloads that are not of the topic's type"));
        }
        let wrong_type = input.transport.wrong_type.saturating_sub(then_transport.wrong_type);
        if wrong_type > 0 {
            part.warn(format!("{name}: {wrong_type} messages of a publisher of another type"));
        }
        if counts.clock_jumps > then_counts.clock_jumps {
            part.warn(format!("{name}: the publisher's clock was set back"));
        }

        part.value(
            format!("{name} age (ms)"),
            age.map_or_else(|| "none".to_owned(), |age| milliseconds(age).to_string()),
        );
        if let Some(lost) = input.transport.lost {
            part.value(format!("{name} lost"), lost);
        }
        for (what, count) in [
            ("received", counts.received),
            ("refused", counts.refused),
            ("overwritten", input.transport.overwritten),
            ("out of order", counts.out_of_order),
            ("duplicates", counts.duplicates),
        ] {
            part.value(format!("{name} {what}"), count);
        }
    }
    for (what, count) in [
        ("an input that had not come", (|s| s.blocked.waiting) as fn(&Snapshot) -> u64),
        ("stale inputs", |s| s.blocked.stale),
        ("stamps too far apart", |s| s.blocked.skewed),
        ("undecodable frames", |s| s.blocked.undecodable),
    ] {
        let blocked = grown(before, now, count);
        if blocked > 0 {
            let because = now.blocked_because.as_deref().unwrap_or("no reason known");
            part.warn(format!("{blocked} ticks blocked by {what}, the last one because {because}"));
        }
        part.value(format!("ticks blocked by {what}"), count(now));
    }
    let fine = format!("{} inputs fresh", now.inputs.len());
    part.status(now, "inputs", fine)
}

fn inference(before: Option<&Snapshot>, now: &Snapshot) -> DiagnosticStatus {
    let mut part = Part::new();
    match &now.engine {
        Engine::Loading => part.warn("the engine is being loaded"),
        Engine::Building(progress) => part.warn(progress),
        Engine::Ready(_) => {}
        Engine::Failed(reason) => part.error(format!("the engine failed: {reason}")),
    }
    let failed = grown(before, now, |s| s.failed);
    if failed > 0 {
        let because = now.last_error.as_deref().unwrap_or("no reason known");
        part.error(format!("{failed} ticks failed: {because}"));
    }
    let not_finite = grown(before, now, |s| s.dropped_not_finite);
    if not_finite > 0 {
        part.error(format!("{not_finite} chunks dropped: a value was not finite"));
    }
    let late = grown(before, now, |s| s.dropped_late);
    if late > 0 {
        part.warn(format!("{late} chunks dropped: they came too late"));
    }
    let active = now.gate.route() != Route::Nowhere;
    if active && matches!(now.engine, Engine::Ready(_)) {
        if now.chunks == 0 {
            part.warn("no chunk yet");
        } else if now.rate < RATE_EXPECTED * now.requested_rate {
            part.warn(format!("{:.2} Hz, {:.2} Hz are asked for", now.rate, now.requested_rate));
        }
    }
    part.value("engine", engine(now));
    part.value("rate (Hz)", format!("{:.2}", now.rate));
    part.value("requested rate (Hz)", format!("{:.2}", now.requested_rate));
    part.value("chunks", now.chunks);
    part.value("failed ticks", now.failed);
    part.value("chunks dropped, not finite", now.dropped_not_finite);
    part.value("chunks dropped, too late", now.dropped_late);
    for stage in &now.latency {
        part.value(format!("{} p50 (ms)", stage.stage), format!("{:.2}", stage.p50));
        part.value(format!("{} p99 (ms)", stage.stage), format!("{:.2}", stage.p99));
    }
    part.value("handover", &now.handover);
    part.value("transport", &now.transport);
    part.value("embodiment", &now.embodiment);
    part.value("instruction", &now.instruction);
    let fine = format!("{:.2} Hz", now.rate);
    part.status(now, "inference", fine)
}

fn motion(before: Option<&Snapshot>, now: &Snapshot) -> DiagnosticStatus {
    let mut part = Part::new();
    match &now.watchdog {
        watchdog::State::Ok => {}
        waiting if now.starting => part.warn(waiting.to_string()),
        fault => part.error(fault.to_string()),
    }
    let mut clipped = Vec::new();
    for (joint, counts) in &now.clips {
        let then = before.and_then(|before| before.clips.iter().find(|(other, _)| other == joint));
        let then = then.map_or(ClipCounts::default(), |(_, counts)| *counts);
        let new: Vec<String> = [
            ("position", counts.position, then.position),
            ("velocity", counts.velocity, then.velocity),
            ("step", counts.step, then.step),
        ]
        .into_iter()
        .filter(|(_, count, then)| count > then)
        .map(|(kind, count, then)| format!("{kind} {}", count - then))
        .collect();
        if !new.is_empty() {
            clipped.push(format!("{joint} ({})", new.join(", ")));
        }
        for (kind, count) in
            [("position", counts.position), ("velocity", counts.velocity), ("step", counts.step)]
        {
            part.value(format!("{joint} {kind} clips"), count);
        }
    }
    if !clipped.is_empty() {
        part.warn(format!("commands clipped: {}", clipped.join(", ")));
    }
    part.value("watchdog", &now.watchdog);
    part.status(now, "motion", "chunks are followed".to_owned())
}

fn activation(now: &Snapshot) -> DiagnosticStatus {
    let mut part = Part::new();
    let gate = &now.gate;
    if gate.estop() {
        part.error("the e-stop is latched; release it, call reset, then activate");
    }
    part.value("state", gate.state());
    part.value("commanding", commanding(now));
    part.value("dry run", gate.dry_run());
    part.value("e-stop latched", gate.estop());
    part.value("e-stops", gate.stops());
    let fine = match gate.route() {
        Route::Robot => "active".to_owned(),
        Route::DryRun => "active, in dry run: the robot is not commanded".to_owned(),
        Route::Nowhere => gate.state().to_string(),
    };
    part.status(now, "activation", fine)
}

/// How the node fares, as one message.
pub fn policy_status(now: &Snapshot) -> PolicyStatus {
    let watchdog = match now.watchdog {
        watchdog::State::Ok => PolicyStatus::WATCHDOG_OK,
        watchdog::State::Hold { .. } => PolicyStatus::WATCHDOG_HOLD,
        watchdog::State::Stop { .. } => PolicyStatus::WATCHDOG_STOP,
    };
    let last_error = match &now.engine {
        Engine::Failed(reason) => reason.clone(),
        _ => now.last_error.clone().unwrap_or_default(),
    };
    PolicyStatus {
        header: Header { stamp: now.time.into(), ..Header::default() },
        state: now.gate.state().id(),
        commanding: commanding(now),
        dry_run: now.gate.dry_run(),
        estop: now.gate.estop(),
        watchdog,
        watchdog_reason: now.watchdog.reason().unwrap_or_default().to_owned(),
        handover: now.handover.clone(),
        transport: now.transport.clone(),
        engine: engine(now),
        embodiment: now.embodiment.clone(),
        instruction: now.instruction.clone(),
        requested_rate: now.requested_rate as f32,
        rate: now.rate as f32,
        chunks: now.chunks,
        failed: now.failed,
        blocked_waiting: now.blocked.waiting,
        blocked_stale: now.blocked.stale,
        blocked_skewed: now.blocked.skewed,
        blocked_undecodable: now.blocked.undecodable,
        dropped_not_finite: now.dropped_not_finite,
        dropped_late: now.dropped_late,
        latency: now.latency.clone(),
        inputs: now.inputs.iter().map(input_status).collect(),
        clips: now.clips.iter().map(joint_clips).collect(),
        last_error,
    }
}

/// Whether the robot is being commanded: a stop is silent.
fn commanding(now: &Snapshot) -> bool {
    now.gate.may_command() && !matches!(now.watchdog, watchdog::State::Stop { .. })
}

fn engine(now: &Snapshot) -> String {
    match &now.engine {
        Engine::Loading => "loading".to_owned(),
        Engine::Building(progress) => progress.clone(),
        Engine::Ready(identity) => identity.clone(),
        Engine::Failed(reason) => format!("failed: {reason}"),
    }
}

fn input_status(input: &InputSnapshot) -> InputStatus {
    let InputReport { input: name, age, counts, last_error } = &input.report;
    InputStatus {
        name: name.to_string(),
        age: age.map_or(-1.0, milliseconds),
        max_age: milliseconds(input.max_age),
        fresh: input.fresh(),
        received: counts.received,
        refused: counts.refused + input.transport.undecodable + input.transport.wrong_type,
        // A count since the start stays far below the end of i64.
        lost: input.transport.lost.map_or(-1, |lost| i64::try_from(lost).unwrap_or(i64::MAX)),
        overwritten: input.transport.overwritten,
        out_of_order: counts.out_of_order,
        duplicates: counts.duplicates,
        clock_jumps: counts.clock_jumps,
        last_error: last_error.clone().unwrap_or_default(),
    }
}

fn joint_clips((joint, counts): &(String, ClipCounts)) -> JointClips {
    let ClipCounts { position, velocity, step } = *counts;
    JointClips { joint: joint.clone(), position, velocity, step }
}

/// The inputs of a snapshot: the assembler's reports with what the transport counted and the limits of the ages.
pub fn input_snapshots(
    reports: Vec<InputReport>,
    transport: impl Fn(&Input) -> TransportCounts,
    max_camera_age: Duration,
    max_joint_age: Duration,
) -> Vec<InputSnapshot> {
    reports
        .into_iter()
        .map(|report| InputSnapshot {
            transport: transport(&report.input),
            max_age: match report.input {
                Input::Camera(_) => max_camera_age,
                Input::JointStates => max_joint_age,
            },
            report,
        })
        .collect()
}

fn shown(time: Duration) -> String {
    format!("{} ms", time.as_millis())
}

#[cfg(test)]
mod tests;
