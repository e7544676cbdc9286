//! What the node says of itself: a line on the terminal, `/diagnostics` at 1 Hz, its status.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{task::JoinSet, time::MissedTickBehavior};

use super::{NodeError, Shared, lock};
use crate::{
    node::diagnostics::{Engine, Snapshot, TransportCounts, diagnostics, input_snapshots, policy_status},
    ros::{
        Stamp,
        msg::{DiagnosticArray, PolicyStatus},
        transport::{COUNTS_LOST, Publisher, Qos},
    },
};

/// Starts the reports.
///
/// # Errors
/// A refusal of the transport.
pub(super) fn spawn(shared: &Arc<Shared>, tasks: &mut JoinSet<()>) -> Result<(), NodeError> {
    let config = shared.store.config();
    let diagnostics = shared.node.publisher::<DiagnosticArray>("/diagnostics", Qos::reliable(10))?;
    let status = shared.node.publisher::<PolicyStatus>(&config.status_topic, Qos::latched())?;
    tasks.spawn(tell_people(shared.clone()));
    tasks.spawn(tell_nodes(shared.clone(), diagnostics, status));
    Ok(())
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

async fn tell_nodes(
    shared: Arc<Shared>,
    diagnostics_topic: Publisher<DiagnosticArray>,
    status_topic: Publisher<PolicyStatus>,
) {
    const PERIOD: Duration = Duration::from_secs(1);
    let mut interval = tokio::time::interval(PERIOD);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before: Option<Snapshot> = None;
    loop {
        interval.tick().await;
        let Some(now) = shared.now() else { continue };
        let snapshot = take(&shared, now, before.as_ref());
        // Whoever does not listen does not hear; there is nobody else to tell.
        let _ = diagnostics_topic.publish(diagnostics(before.as_ref(), &snapshot));
        let _ = status_topic.publish(policy_status(&snapshot));
        before = Some(snapshot);
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
