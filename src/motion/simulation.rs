//! What the modes of hand-over do to a simulated joint.
//!
//! A joint with a lag follows commands at 100 Hz. A made-up policy plans along a smooth motion of it, starting from where the
//! joint is; like a real one it never says the same twice: every chunk has an error of its own, as a whole and row by row.
//! It denoises by guided flow matching in the normalised range, through the same [`ActionProcessor`] as the real one, with
//! actions relative to the state of the observation. Its answers take a given time, give or take a tenth.
//!
//! Everything follows from the seed.

use std::{collections::BTreeMap, f64::consts::TAU, fmt::Write, path::Path, time::Duration};

use ndarray::{Array2, array};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use serde_json::json;
use thiserror::Error;

use super::{
    chunk::{ChunkError, MotionChunk, MotionGroup},
    handover::HandoverMode,
    sampler::sample,
    scheduler::{Arrival, Scheduler, SchedulerConfig, SchedulerError},
};
use crate::{
    checkpoint::{processor_config::ProcessorConfig, side_file::SideFileError, statistics::Statistics},
    processor::{
        action::{ActionError, ActionProcessor},
        guidance::{Guidance, PlannedActions},
        setup::SetupError,
    },
    ros::Stamp,
};

/// Time between two commands.
pub const COMMAND_PERIOD: Duration = Duration::from_millis(10);
/// Time between two rows of a chunk.
pub const STEP_TIME: Duration = Duration::from_millis(50);
/// Rows of a chunk.
pub const HORIZON: usize = 16;
/// Rows after which the next chunk is to be in force.
pub const EXECUTE_HORIZON: usize = 8;
/// Rows over which chunks take over.
pub const OVERLAP: usize = 4;
/// The latencies of the table.
pub const LATENCIES_MS: [u64; 5] = [0, 50, 100, 200, 300];

/// Hand-overs of each row of the table.
const HANDOVERS: usize = 200;
/// Seed of the table.
const SEED: u64 = 16;
/// The network's output: more rows and columns than the embodiment has, as in a real checkpoint.
const NETWORK_SHAPE: (usize, usize) = (20, 8);
const DENOISING_STEPS: usize = 4;
/// Standard deviations of a chunk's error, rad: of the chunk as a whole at its first and at its last row, of each row.
const CHUNK_ERROR: f64 = 0.03;
const ROW_ERROR: f64 = 0.002;
/// How fast a plan returns from where the joint is to the motion.
const RETURN_TIME: f64 = 0.4;
/// Lag of the joint.
const LAG: f64 = 0.06;
/// The age of the observation at its request.
const OBSERVATION_AGE: Duration = Duration::from_millis(20);
/// Range of the relative actions, rad, wide enough that nothing is clipped.
const RANGE: f64 = 2.0;
const KEY: &str = "joint";

/// Why a simulation cannot run; none does with the constants of this file.
#[derive(Debug, Error)]
pub enum SimulationError {
    /// Its configuration of the processor.
    #[error(transparent)]
    SideFile(#[from] SideFileError),
    /// Its statistics.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// Its actions.
    #[error(transparent)]
    Action(#[from] ActionError),
    /// Its chunks.
    #[error(transparent)]
    Chunk(#[from] ChunkError),
    /// Its settings.
    #[error(transparent)]
    Scheduler(#[from] SchedulerError),
    /// Fewer hand-overs happened than were asked for.
    #[error("expected {expected} hand-overs, found {found}")]
    Handovers {
        /// How many were asked for.
        expected: usize,
        /// How many there were.
        found: usize,
    },
}

/// Largest and mean of a measure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// Largest.
    pub max: f64,
    /// Mean.
    pub mean: f64,
}

impl Spread {
    fn of(values: &[f64]) -> Self {
        let max = values.iter().copied().fold(0.0, f64::max);
        Self { max, mean: values.iter().sum::<f64>() / values.len().max(1) as f64 }
    }
}

/// What a simulation measured; the measures of a hand-over are taken from it to the end of the overlap.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// Number of hand-overs.
    pub handovers: usize,
    /// Largest change of the command in one period, rad.
    pub position: Spread,
    /// Largest change of the command's velocity from one period to the next, rad/s.
    pub velocity: Spread,
    /// How far the new chunk lies from the running plan at the hand-over, rad: what has to be bridged.
    pub disagreement: Spread,
    /// The fastest that any executed chunk moves, rad/s.
    pub fastest: f64,
    /// The most that any hand-over adds to it in theory: 1.5 · difference / duration of the ramp, rad/s.
    pub ramp: f64,
}

/// The motion that the policy plans along, rad.
fn motion(seconds: f64) -> f64 {
    0.6 * (TAU * 0.25 * seconds).sin() + 0.1 * (TAU * 0.6 * seconds + 1.0).sin()
}

fn seconds(stamp: Stamp) -> f64 {
    stamp.0 as f64 * 1e-9
}

/// A policy with relative actions of one joint.
struct FakePolicy {
    processor: ActionProcessor,
    random: ChaCha8Rng,
}

impl FakePolicy {
    fn new(seed: u64) -> Result<Self, SimulationError> {
        let delta: Vec<usize> = (0..HORIZON).collect();
        let other = json!({"delta_indices": [0], "modality_keys": ["none"]});
        let config = json!({"processor_kwargs": {
            "use_albumentations": true,
            "use_relative_action": true,
            "max_action_dim": NETWORK_SHAPE.1,
            "modality_configs": {"simulated": {
                "video": other,
                "language": other,
                "state": {"delta_indices": [0], "modality_keys": [KEY]},
                "action": {
                    "delta_indices": delta,
                    "modality_keys": [KEY],
                    "action_configs": [{"rep": "RELATIVE", "type": "NON_EEF", "format": "DEFAULT"}],
                },
            }},
        }});
        let flat = json!({"mean": [0.0], "std": [1.0], "min": [-RANGE], "max": [RANGE]});
        let rows = |value: f64| vec![[value]; HORIZON];
        let statistics = json!({"simulated": {
            "state": {KEY: flat},
            "action": {KEY: flat},
            "relative_action": {KEY: {
                "mean": rows(0.0), "std": rows(1.0), "min": rows(-RANGE), "max": rows(RANGE),
            }},
        }});
        let at = Path::new("simulated.json");
        let config = ProcessorConfig::parse(at, config.to_string().as_bytes())?;
        let statistics = Statistics::parse(at, statistics.to_string().as_bytes())?;
        let processor = ActionProcessor::new(&config, &statistics, "simulated")?;
        Ok(Self { processor, random: ChaCha8Rng::seed_from_u64(seed) })
    }

    fn normal(&mut self) -> f64 {
        StandardNormal.sample(&mut self.random)
    }

    /// Where this chunk wants to go, relative to the joint and in units of the range.
    fn intention(&mut self, observed: Stamp, position: f64) -> Array2<f32> {
        let (first, last) = (CHUNK_ERROR * self.normal(), CHUNK_ERROR * self.normal());
        let start = seconds(observed);
        let away = position - motion(start);
        let mut rows = Array2::zeros(NETWORK_SHAPE);
        for row in 0..HORIZON {
            let ahead = (row + 1) as f64 * STEP_TIME.as_secs_f64();
            let share = row as f64 / (HORIZON - 1) as f64;
            let error = first * (1.0 - share) + last * share + ROW_ERROR * self.normal();
            let target = motion(start + ahead) + away * (-ahead / RETURN_TIME).exp() + error;
            rows[[row, 0]] = ((target - position) / RANGE) as f32;
        }
        rows
    }

    /// Flow matching from noise along a field that leads straight to the intention.
    fn predict(
        &mut self,
        observed: Stamp,
        position: f64,
        planned: Option<&PlannedActions>,
    ) -> Result<Vec<(String, Array2<f32>)>, SimulationError> {
        let intention = self.intention(observed, position);
        let state = BTreeMap::from([(KEY.to_owned(), array![[position as f32]])]);
        let guidance =
            planned.map(|planned| self.processor.guidance(planned, &state, NETWORK_SHAPE)).transpose()?;
        let noise = Array2::from_shape_simple_fn(NETWORK_SHAPE, || StandardNormal.sample(&mut self.random));
        let field = |actions: &Array2<f32>, time: f32| (&intention - actions) / (1.0 - time);
        let actions = denoise(noise, DENOISING_STEPS, guidance.as_ref(), field);
        Ok(self.processor.decode(actions.view(), &state)?)
    }
}

/// Guided Euler integration of a velocity field from noise to actions, as the action head has it: with time τ from 0 to 1,
/// the predicted end a + (1 - τ) · v is moved towards the target by its weight, and the velocity is the one that leads there.
fn denoise(
    noise: Array2<f32>,
    steps: usize,
    guidance: Option<&Guidance>,
    mut field: impl FnMut(&Array2<f32>, f32) -> Array2<f32>,
) -> Array2<f32> {
    let mut actions = noise;
    for step in 0..steps {
        let time = step as f32 / steps as f32;
        let mut velocity = field(&actions, time);
        if let Some(Guidance { target, weights }) = guidance {
            let end = &actions + &velocity * (1.0 - time);
            let end = &end + weights * (target - &end);
            velocity = (end - &actions) / (1.0 - time);
        }
        actions = actions + velocity / steps as f32;
    }
    actions
}

/// The fastest that a chunk moves, rad/s, the approach to its first row included.
fn steepest(chunk: &MotionChunk) -> f64 {
    let rows = chunk.values().column(0).mapv(f64::from);
    let poses: Vec<f64> = chunk.origin().into_iter().flatten().copied().chain(rows).collect();
    let change = poses.windows(2).map(|pair| (pair[1] - pair[0]).abs()).fold(0.0, f64::max);
    change / chunk.step_time().as_secs_f64()
}

fn joint_chunk(start: Stamp, sequence: u64, values: Array2<f32>) -> Result<MotionChunk, ChunkError> {
    let group = MotionGroup { key: KEY.to_owned(), joints: vec![KEY.to_owned()], values };
    MotionChunk::new(start, STEP_TIME, sequence, vec![group])
}

/// Commands of the last periods, and what they did in the hand-over in progress.
#[derive(Default)]
struct Meter {
    commands: Vec<f64>,
    /// Per hand-over: largest change of position and of velocity.
    taken: Vec<(f64, f64)>,
    /// Commands until the overlap of the last hand-over ends.
    left: usize,
}

impl Meter {
    /// Commands that the overlap takes.
    fn window() -> usize {
        (STEP_TIME * OVERLAP as u32).as_nanos().div_ceil(COMMAND_PERIOD.as_nanos()) as usize
    }

    fn hand_over(&mut self) {
        self.taken.push((0.0, 0.0));
        self.left = Self::window();
    }

    fn command(&mut self, position: f64) {
        let period = COMMAND_PERIOD.as_secs_f64();
        if let (&[.., before, last], Some(worst), true) =
            (self.commands.as_slice(), self.taken.last_mut(), self.left > 0)
        {
            let change = position - last;
            worst.0 = worst.0.max(change.abs());
            worst.1 = worst.1.max((change - (last - before)).abs() / period);
            self.left -= 1;
        }
        self.commands.push(position);
    }

    fn spreads(&self) -> (Spread, Spread) {
        let of = |part: fn(&(f64, f64)) -> f64| Spread::of(&self.taken.iter().map(part).collect::<Vec<_>>());
        (of(|taken| taken.0), of(|taken| taken.1))
    }
}

/// Runs until there were `handovers` hand-overs of a mode at a latency (of a request's answer).
///
/// # Errors
/// None with the constants of this file.
pub fn simulate(
    mode: HandoverMode,
    latency: Duration,
    handovers: usize,
    seed: u64,
) -> Result<Measured, SimulationError> {
    let mut scheduler = Scheduler::new(SchedulerConfig {
        mode,
        step_time: STEP_TIME,
        horizon: HORIZON,
        execute_horizon: EXECUTE_HORIZON,
        overlap: OVERLAP,
        initial_latency: latency,
        latency_window: 20,
        latency_quantile: 0.9,
    })?;
    let mut policy = FakePolicy::new(seed)?;
    let mut jitter = ChaCha8Rng::seed_from_u64(seed.wrapping_add(1));
    let mut meter = Meter::default();
    let mut disagreements = Vec::new();
    let (mut fastest, mut ramp_speed) = (0f64, 0f64);
    let mut answer: Option<(Stamp, MotionChunk)> = None;
    let mut joint = motion(0.0);
    // Where the joint was in the last periods, oldest first: observations are a little old.
    let mut history = Vec::new();
    let age = (OBSERVATION_AGE.as_nanos() / COMMAND_PERIOD.as_nanos()) as usize;
    let follow = 1.0 - (-COMMAND_PERIOD.as_secs_f64() / LAG).exp();
    let period = COMMAND_PERIOD.as_nanos() as i64;
    // Each hand-over takes at most about the latency and the executed horizon.
    let enough =
        (handovers as i64 + 2) * 2 * (EXECUTE_HORIZON as i64 * STEP_TIME.as_nanos() as i64 / period + 40);
    for tick in 0..enough {
        let now = Stamp(tick * period);
        history.push(joint);
        if scheduler.due(now) && history.len() > age {
            let observed = now - OBSERVATION_AGE;
            let request = scheduler.on_request(now, observed);
            let position = history[history.len() - 1 - age];
            let actions = policy.predict(observed, position, request.planned.as_ref())?;
            let values = actions.into_iter().next().map(|(_, values)| values).unwrap_or_default();
            let took = latency.mul_f64(jitter.random_range(0.9..=1.1));
            answer = Some((now + took, joint_chunk(observed, request.sequence, values)?));
        }
        if let Some((_, chunk)) = answer.take_if(|(arrival, _)| *arrival <= now) {
            let running = scheduler.plan().cloned();
            let arrival = scheduler.on_chunk(now, chunk);
            let entered = scheduler.plan().and_then(|plan| plan.newest());
            fastest = fastest.max(entered.map_or(0.0, steepest));
            if let (Some(running), Some(entered), Arrival::Entered { ramp, .. }) = (running, entered, arrival)
            {
                if disagreements.len() == handovers {
                    break;
                }
                meter.hand_over();
                let apart = |time| (sample(entered, time).0[0] - running.sample(time).positions[0]).abs();
                disagreements.push(apart(now));
                if let Some(ramp) = ramp {
                    let end = ramp.start + ramp.duration;
                    let times = (now.0..=end.0).step_by(1_000_000).map(Stamp);
                    let most = times.map(apart).fold(0.0, f64::max);
                    ramp_speed = ramp_speed.max(1.5 * most / ramp.duration.as_secs_f64());
                }
            }
        }
        if let Some(command) = scheduler.command(now) {
            let target = command.positions[0];
            meter.command(target);
            joint += (target - joint) * follow;
        }
    }
    if disagreements.len() != handovers {
        return Err(SimulationError::Handovers { expected: handovers, found: disagreements.len() });
    }
    let (position, velocity) = meter.spreads();
    let disagreement = Spread::of(&disagreements);
    Ok(Measured { handovers, position, velocity, disagreement, fastest, ramp: ramp_speed })
}

/// The same measures where there is no hand-over: one endless chunk along the motion, with the error of its rows.
///
/// # Errors
/// None with the constants of this file.
pub fn simulate_motion(windows: usize, seed: u64) -> Result<Measured, SimulationError> {
    let mut policy = FakePolicy::new(seed)?;
    let mut meter = Meter::default();
    let mut fastest = 0f64;
    // A chunk per period of the slowest part of the motion, 4 s, sampled where it is defined.
    let rows = 81;
    for _ in 0..windows.div_ceil(16) {
        let position = |row: usize| motion(row as f64 * STEP_TIME.as_secs_f64());
        let values =
            Array2::from_shape_fn((rows, 1), |(row, _)| (position(row) + ROW_ERROR * policy.normal()) as f32);
        let chunk = joint_chunk(Stamp(0), 0, values)?;
        fastest = fastest.max(steepest(&chunk));
        meter.commands.clear();
        let mut time = chunk.time_of(0);
        while time <= chunk.end() {
            if meter.left == 0 && meter.commands.len() >= 2 && meter.taken.len() < windows {
                meter.hand_over();
            }
            meter.command(sample(&chunk, time).0[0]);
            time = time + COMMAND_PERIOD;
        }
        meter.left = 0;
    }
    let (position, velocity) = meter.spreads();
    let none = Spread { max: 0.0, mean: 0.0 };
    Ok(Measured { handovers: meter.taken.len(), position, velocity, disagreement: none, fastest, ramp: 0.0 })
}

/// The table of the documentation, Markdown, with a newline at the end.
///
/// # Errors
/// None with the constants of this file.
pub fn table() -> Result<String, SimulationError> {
    let mut text = String::from(
        "| latency | mode | position, max | position, mean | velocity, max | velocity, mean | disagreement, mean |\n\
         |---:|---|---:|---:|---:|---:|---:|\n",
    );
    let mut row = |latency: &str, mode: &str, measured: &Measured, disagreement: &str| {
        let Measured { position: p, velocity: v, .. } = measured;
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "| {latency} | {mode} | {:.3} rad | {:.3} rad | {:.2} rad/s | {:.2} rad/s | {disagreement} |",
            p.max, p.mean, v.max, v.mean
        );
    };
    row("", "no hand-over", &simulate_motion(HANDOVERS, SEED)?, "");
    for latency in LATENCIES_MS {
        for mode in HandoverMode::ALL {
            let measured = simulate(mode, Duration::from_millis(latency), HANDOVERS, SEED)?;
            let disagreement = format!("{:.3} rad", measured.disagreement.mean);
            row(&format!("{latency} ms"), &format!("`{mode}`"), &measured, &disagreement);
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEGIN: &str = "<!-- handover:begin -->\n";
    const END: &str = "<!-- handover:end -->";

    /// What a command may move in a period: the motion of the chunks themselves, and what a ramp adds to it.
    fn bound(measured: &Measured) -> f64 {
        (measured.fastest + measured.ramp) * COMMAND_PERIOD.as_secs_f64() + 1e-9
    }

    #[test]
    fn blend_and_rtc_are_continuous_where_replace_jumps() {
        for latency in LATENCIES_MS {
            let run = |mode| simulate(mode, Duration::from_millis(latency), 60, 3).unwrap();
            let [replace, blend, rtc] = HandoverMode::ALL.map(run);
            for (name, measured) in [("blend", &blend), ("rtc", &rtc)] {
                assert!(measured.position.max <= bound(measured), "{name} at {latency} ms: {measured:?}");
                assert!(
                    replace.position.max > 1.25 * bound(measured),
                    "{name} at {latency} ms: {measured:?} against {replace:?}"
                );
                assert!(measured.velocity.max < 0.3 * replace.velocity.max, "{name} at {latency} ms");
            }
        }
    }

    #[test]
    fn replace_breaks_the_bound_that_continuous_motion_keeps() {
        for latency in LATENCIES_MS {
            let measured = simulate(HandoverMode::Replace, Duration::from_millis(latency), 60, 3).unwrap();
            assert!(measured.position.max > bound(&measured), "{latency} ms: {measured:?}");
        }
    }

    #[test]
    fn rtc_chunks_agree_with_the_running_one_where_others_do_not() {
        for latency in LATENCIES_MS {
            let run = |mode| simulate(mode, Duration::from_millis(latency), 60, 3).unwrap().disagreement.mean;
            let (blend, rtc) = (run(HandoverMode::Blend), run(HandoverMode::Rtc));
            assert!(rtc < 0.1 * blend, "{latency} ms: rtc {rtc}, blend {blend}");
        }
    }

    #[test]
    fn a_simulation_repeats_itself_and_depends_on_its_seed() {
        let run = |seed| simulate(HandoverMode::Rtc, Duration::from_millis(100), 20, seed).unwrap();
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
    }

    #[test]
    fn guided_denoising_meets_its_target_where_the_weight_is_one_and_is_free_where_it_is_zero() {
        let mut policy = FakePolicy::new(5).unwrap();
        let noise = Array2::from_shape_simple_fn((3, 2), || policy.normal() as f32);
        let goal = array![[0.3, -0.2], [0.1, 0.0], [-0.9, 0.4]];
        // A field with a curve, so that the steps matter.
        let field =
            |actions: &Array2<f32>, time: f32| (&goal - actions) * (1.5 - time) + actions.mapv(f32::sin);
        let free = denoise(noise.clone(), 4, None, field);
        let target = Array2::from_elem((3, 2), 0.5);
        let weights = array![[1.0, 1.0], [0.0, 0.0], [0.25, 0.25]];
        let guided = denoise(noise, 4, Some(&Guidance { target, weights }), field);
        assert!(guided.row(0).iter().all(|value| (value - 0.5).abs() < 1e-6), "{guided}");
        assert!(guided.row(1).iter().zip(free.row(1)).all(|(a, b)| (a - b).abs() < 1e-6));
        for (guided, free) in guided.row(2).iter().zip(free.row(2)) {
            assert!((guided - 0.5).abs() < (free - 0.5f32).abs());
        }
    }

    #[test]
    fn the_readme_shows_the_table_as_it_is_computed() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
        if !path.exists() {
            return;
        }
        let readme = std::fs::read_to_string(path).unwrap();
        let section = readme.split_once(BEGIN).and_then(|(_, rest)| rest.split_once(END));
        let Some((section, _)) = section else {
            panic!(
                "README.md has no section between {BEGIN:?} and {END:?}: put the output of \
                    `cargo run --no-default-features --example handover_table` there"
            );
        };
        assert_eq!(
            section,
            table().unwrap(),
            "run `cargo run --no-default-features --example handover_table`"
        );
    }
}
