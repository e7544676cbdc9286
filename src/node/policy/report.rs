//! What the node says of itself: a line on the terminal, `/diagnostics` at 1 Hz, its status.

use std::{
    convert::Infallible,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{
    task::JoinSet,
    time::{Interval, MissedTickBehavior},
};

use super::{NodeError, Shared, lock};
use crate::{
    engine::activity,
    node::config::NodeConfig,
    node::diagnostics::{Engine, Snapshot, TransportCounts, diagnostics, input_snapshots, policy_status},
    ros::{
        Stamp,
        msg::{DiagnosticArray, PolicyStatus},
        transport::{COUNTS_LOST, Publisher, Qos, RosNode},
    },
    safety::{gate::Gate, watchdog::Watchdog},
};

/// Time between two messages.
const PERIOD: Duration = Duration::from_secs(1);

/// Where other nodes are told.
pub(super) struct Reports {
    diagnostics: Publisher<DiagnosticArray>,
    status: Publisher<PolicyStatus>,
}

impl Reports {
    /// Opens the topics.
    ///
    /// # Errors
    /// A refusal of the transport.
    pub fn open(node: &RosNode, config: &NodeConfig) -> Result<Self, NodeError> {
        Ok(Self {
            diagnostics: node.publisher("/diagnostics", Qos::reliable(10))?,
            status: node.publisher(&config.status_topic, Qos::latched())?,
        })
    }

    /// Tells other nodes that the policy is being loaded, for as long as it is waited for.
    pub async fn while_loading(&self, node: &RosNode, config: &NodeConfig) -> Infallible {
        // The first time after a period: most policies are loaded by then.
        let mut interval = every_period(tokio::time::Instant::now() + PERIOD);
        let mut before = None;
        loop {
            interval.tick().await;
            let Some(now) = node.clock().map(|time| Stamp::from(&time)) else { continue };
            let snapshot = loading(node, config, now, building());
            self.tell(before.as_ref(), &snapshot);
            before = Some(snapshot);
        }
    }

    fn tell(&self, before: Option<&Snapshot>, snapshot: &Snapshot) {
        // Whoever does not listen does not hear; there is nobody else to tell.
        let _ = self.diagnostics.publish(diagnostics(before, snapshot));
        let _ = self.status.publish(policy_status(snapshot));
    }
}

/// How far the building of an engine is, if one is being built.
fn building() -> Option<String> {
    activity::current()
}

/// Ends the building of an engine, if one is being built: the node ends.
pub(super) fn cancel_building() {
    activity::cancel();
}

/// Starts the reports.
pub(super) fn spawn(shared: &Arc<Shared>, reports: Reports, tasks: &mut JoinSet<()>) {
    tasks.spawn(tell_people(shared.clone()));
    tasks.spawn(tell_nodes(shared.clone(), reports));
}

fn every_period(first: tokio::time::Instant) -> Interval {
    let mut interval = tokio::time::interval_at(first, PERIOD);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

async fn tell_people(shared: Arc<Shared>) {
    let mut last = tokio::time::Instant::now();
    loop {
        let config = shared.store.config();
        tokio::time::sleep_until(last + config.status_period).await;
        let now = tokio::time::Instant::now();
        let window = std::mem::take(&mut *lock(&shared.window));
        let inputs = lock(&shared.assembler).report(shared.now().unwrap_or_default());
        let chunks = shared.chunks.load(Ordering::Relaxed);
        let mut note = {
            let control = lock(&shared.control);
            let (watchdog, starting) = control.watchdog();
            let gate = control.gate();
            match watchdog.reason() {
                _ if gate.estop() => "E-STOP".to_owned(),
                _ if !gate.may_command() && !gate.dry_run() => gate.state().to_string(),
                Some(reason) if !starting => format!("{} ({reason})", watchdog.label().to_uppercase()),
                _ if gate.dry_run() => format!("{}, dry run", gate.state()),
                _ => gate.state().to_string(),
            }
        };
        if !config.status_note.is_empty() {
            note.push_str(" | ");
            note.push_str(&config.status_note);
        }
        tracing::info!("{}", window.line(now - last, &inputs, chunks, &note));
        last = now;
    }
}

async fn tell_nodes(shared: Arc<Shared>, reports: Reports) {
    let mut interval = every_period(tokio::time::Instant::now());
    let mut before: Option<Snapshot> = None;
    loop {
        interval.tick().await;
        let Some(now) = shared.now() else { continue };
        let snapshot = take(&shared, now, before.as_ref());
        reports.tell(before.as_ref(), &snapshot);
        before = Some(snapshot);
    }
}

/// What is known before there is a policy.
fn loading(node: &RosNode, config: &NodeConfig, now: Stamp, building: Option<String>) -> Snapshot {
    let watchdog = Watchdog::new(config.safety.watchdog.clone());
    Snapshot {
        time: now,
        node: node.name().base().to_owned(),
        device: String::new(),
        engine: building.map_or(Engine::Loading, Engine::Building),
        transport: node.transport(),
        embodiment: config.embodiment.clone(),
        instruction: config.instruction.clone(),
        handover: config.handover.mode.to_string(),
        inputs: Vec::new(),
        blocked: Default::default(),
        blocked_because: None,
        requested_rate: config.rate,
        rate: 0.0,
        latency: Vec::new(),
        chunks: 0,
        failed: 0,
        last_error: None,
        dropped_not_finite: 0,
        dropped_late: 0,
        clips: Vec::new(),
        gate: Gate::new(config.safety.dry_run),
        watchdog: watchdog.state().clone(),
        starting: true,
    }
}

fn take(shared: &Shared, now: Stamp, before: Option<&Snapshot>) -> Snapshot {
    let config = shared.store.config();
    let (reports, blocked, instruction) = {
        let assembler = lock(&shared.assembler);
        (assembler.report(now), assembler.blocked(), assembler.instruction().to_owned())
    };
    let transport = lock(&shared.transport);
    let counts = |input: &crate::node::assembly::Input| {
        let counters = transport.iter().find(|(other, _)| other == input).map(|(_, counters)| counters());
        counters.map_or(TransportCounts::default(), |counters| TransportCounts {
            lost: COUNTS_LOST.then_some(counters.lost),
            overwritten: counters.overwritten,
            undecodable: counters.undecodable,
            wrong_type: counters.wrong_type,
        })
    };
    let inputs = input_snapshots(reports, counts, config.max_age, config.max_state_age);
    drop(transport);
    let chunks = shared.chunks.load(Ordering::Relaxed);
    let rate = before.map_or(0.0, |before| {
        let seconds = now.elapsed_since(before.time).as_secs_f64();
        if seconds > 0.0 { chunks.saturating_sub(before.chunks) as f64 / seconds } else { 0.0 }
    });
    let control = lock(&shared.control);
    let motion = control.scheduler().counters();
    let (watchdog, starting) = control.watchdog();
    Snapshot {
        time: now,
        node: shared.node.name().base().to_owned(),
        device: String::new(),
        engine: Engine::Ready(shared.info.identity.clone()),
        transport: shared.node.transport(),
        embodiment: config.embodiment.clone(),
        instruction,
        handover: config.handover.mode.to_string(),
        inputs,
        blocked,
        blocked_because: lock(&shared.blocked).clone(),
        requested_rate: config.rate,
        rate,
        latency: std::mem::take(&mut *lock(&shared.latency)).latencies(),
        chunks,
        failed: shared.failed.load(Ordering::Relaxed),
        last_error: lock(&shared.last_error).clone(),
        dropped_not_finite: control.not_finite(),
        dropped_late: motion.expired + motion.older + motion.out_of_sequence + motion.crowded,
        clips: control.limiter().counts().map(|(joint, counts)| (joint.to_owned(), counts)).collect(),
        gate: control.gate().clone(),
        watchdog: watchdog.clone(),
        starting,
    }
}
