//! The policy node: subscriptions fill the observation assembler, ticks ask the policy's thread, commands follow the plan.
//!
//! | task | does |
//! |---|---|
//! | one per input | drains the topic into assembler, measured pose, e-stop |
//! | planner | asks for the next chunk when it is due and hands it to [`control`] |
//! | commander | at a fixed rate: watchdog, limits, commands; never waits for a prediction |
//! | reporter | terminal, `/diagnostics`, status |
//! | configurer | applies changed parameters |

mod arrivals;
pub mod control;
mod inputs;
mod look_ahead;
mod outputs;
mod report;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use thiserror::Error;
use tokio::{task::JoinSet, time::MissedTickBehavior};

use self::{
    arrivals::{Arrivals, Frames},
    control::{Control, ControlError, Moment, RefusedChunk},
    look_ahead::{LookAhead, Observed},
    outputs::{OutputFault, Outputs},
};
pub use super::policy_options::policy_options;
use super::{
    assembly::{AssemblerConfig, Input, ObservationAssembler},
    chunk_message::{ChunkBuilder, ChunkInfo},
    config::{CheckpointKeys, ConfigError, NodeConfig},
    diagnostics::LatencyWindow,
    lifecycle_services::{self, Lifecycle},
    outputs::OutputError,
    parameter_server::ParameterServer,
    parameter_store::{ConfigChanges, ParameterStore},
    status::StatusWindow,
    transition_events::transition_events,
};
use crate::{
    model::{
        policy::{Noise, Policy, PolicyError, PredictRequest, Preparation, entropy_seed},
        thread::{PolicyThread, Predict, Readiness},
    },
    motion::RequestPlan,
    ros::{
        Stamp,
        msg::JointState,
        srv::TransitionEvent,
        transport::{Counters, Publisher, Qos, RosError, RosNode},
    },
    safety::{
        gate::{State, Transition},
        watchdog,
    },
};

/// Why the node cannot start.
#[derive(Debug, Error)]
pub enum NodeError {
    /// The configuration does not fit the checkpoint.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The settings of motion or safety do not fit the checkpoint.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The outputs do not fit the checkpoint.
    #[error("positions_joints, base_twist: {0}")]
    Output(#[from] OutputError),
    /// The base's key is none of the checkpoint's.
    #[error("base_twist.key: expected an action key of the embodiment, one of {known:?}, found {found:?}")]
    BaseKey {
        /// The key.
        found: String,
        /// Those that there are.
        known: Vec<String>,
    },
    /// The policy cannot be loaded.
    #[error("{0}")]
    Policy(String),
    /// The network refuses.
    #[error(transparent)]
    Ros(#[from] RosError),
    /// The system gives no thread.
    #[error("the policy's thread cannot be started: {0}")]
    Thread(#[from] std::io::Error),
}

/// Why a tick that had an observation gave no chunk.
#[derive(Debug, Error)]
enum TickError {
    #[error(transparent)]
    Policy(#[from] PolicyError),
    #[error(transparent)]
    Refused(#[from] RefusedChunk),
    #[error("the chunk cannot be published: {0}")]
    Publish(#[from] RosError),
}

/// What the node needs to know of the loaded policy.
#[derive(Debug, Clone)]
pub struct PolicyInfo {
    /// What the embodiment reads and writes.
    pub keys: CheckpointKeys,
    /// Delta indices of the frames.
    pub video_deltas: Vec<i64>,
    /// Delta indices of the state.
    pub state_deltas: Vec<i64>,
    /// Steps of a chunk.
    pub horizon: usize,
    /// Denoising steps that the checkpoint asks for.
    pub denoising_steps: usize,
    /// Where and how the network runs.
    pub identity: String,
    /// Prepares observations while the policy predicts; None: it does so itself, in its turn.
    pub preparation: Option<Preparation>,
}

impl PolicyInfo {
    fn of(policy: &mut Policy) -> Self {
        let processor = policy.processor();
        let owned = |key: &str, dim: usize| (key.to_owned(), dim);
        Self {
            keys: CheckpointKeys {
                video: processor.cameras().to_vec(),
                state: processor.state().keys().map(|(key, dim)| owned(key, dim)).collect(),
                action: processor.action().keys().iter().map(|key| owned(key.name(), key.dim())).collect(),
            },
            video_deltas: processor.video_deltas().to_vec(),
            state_deltas: processor.state_deltas().to_vec(),
            horizon: processor.action().horizon(),
            denoising_steps: policy.default_denoising_steps(),
            identity: policy.identity(),
            preparation: Some(policy.preparation()),
        }
    }
}

/// Warms a policy up for an instruction and returns it as the thread wants it.
///
/// # Errors
/// What is wrong with the first predictions.
pub fn ready(mut policy: Policy, instruction: &str) -> Result<(Predict, PolicyInfo), PolicyError> {
    // The first prediction allocates and, on a GPU, compiles and tunes; the second is captured: not to be done in front of a
    // moving robot.
    let mut blank = policy.processor().blank_observation();
    blank.instruction = instruction.to_owned();
    let request = PredictRequest::new(blank, Noise::Seed(0));
    for _ in 0..policy.warm_up_predictions() {
        policy.predict(&request)?;
    }
    let info = PolicyInfo::of(&mut policy);
    Ok((Box::new(move |request| policy.predict(request)), info))
}

/// What the transport counted of one input.
type InputCounters = Box<dyn Fn() -> Counters + Send + Sync>;

/// State that the node's tasks share.
struct Shared {
    node: RosNode,
    store: Arc<ParameterStore>,
    /// Kept to the end: dropping it withdraws the services.
    parameters: ParameterServer,
    transitions: Publisher<TransitionEvent>,
    info: PolicyInfo,
    assembler: Mutex<ObservationAssembler>,
    arrivals: Arrivals,
    control: Mutex<Control>,
    /// The newest joint message, for the measured pose.
    measured: Mutex<Option<JointState>>,
    outputs: Outputs,
    window: Mutex<StatusWindow>,
    latency: Mutex<LatencyWindow>,
    /// Why the last tick had no observation; None where it had one.
    blocked: Mutex<Option<String>>,
    last_error: Mutex<Option<String>>,
    transport: Mutex<Vec<(Input, InputCounters)>>,
    chunks: AtomicU64,
    failed: AtomicU64,
}

/// A lock whose content is whole after every statement, so that a panic elsewhere has left it usable.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// The node's clock; None while simulated time has not begun.
    fn now(&self) -> Option<Stamp> {
        self.node.clock().map(|time| Stamp::from(&time))
    }

    /// Does what may change the lifecycle's state, and tells everybody what has changed.
    fn steer<R>(&self, work: impl FnOnce(&mut Control) -> R) -> R {
        let mut control = lock(&self.control);
        let result = work(&mut control);
        for change in control.take_changes() {
            for event in transition_events(change, self.now().unwrap_or_default()) {
                // Whoever does not listen does not hear; there is nobody else to tell.
                let _ = self.transitions.publish(event);
            }
        }
        result
    }

    /// The robot's own pose of the moved joints, where the newest message has all of them.
    fn measured(&self, joints: &[String]) -> Option<Vec<f64>> {
        let measured = lock(&self.measured);
        let message = measured.as_ref()?;
        joints
            .iter()
            .map(|joint| {
                let index = message.name.iter().position(|name| name == joint)?;
                message.position.get(index).copied().filter(|value| value.is_finite())
            })
            .collect()
    }

    /// See [`ObservationAssembler::ages`].
    fn ages(&self, now: Stamp) -> (Option<Duration>, Option<Duration>) {
        lock(&self.assembler).ages(now)
    }

    /// Publishes what a moment brought. Commands never wait for anything.
    fn act(&self, control: &Control, moment: Moment, now: Stamp) {
        if let Some(change) = moment.change {
            match change.to {
                watchdog::State::Ok => tracing::info!("watchdog: chunks are followed again"),
                state => tracing::warn!("watchdog: {state}"),
            }
        }
        let published = match &moment.due {
            Ok(due) => self.outputs.command(control.gate().route(), due, control, now),
            Err(error) => {
                self.note_failure(&error.to_string());
                return;
            }
        };
        if let Err(OutputFault::Output(error)) = published {
            self.note_failure(&error.to_string());
        }
    }

    /// Notes a failure; said once until another one comes.
    fn note_failure(&self, reason: &str) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        lock(&self.window).failed(reason);
        let mut last = lock(&self.last_error);
        if last.as_deref() != Some(reason) {
            tracing::error!("{reason}");
            *last = Some(reason.to_owned());
        }
    }
}

/// Runs the node until `stop` completes.
///
/// `load` runs on the policy's own thread; it loads a policy and makes it [`ready`].
///
/// # Errors
/// Why it could not start. Once it runs, nothing that arrives ends it.
pub async fn run(
    config: NodeConfig,
    node: RosNode,
    load: impl FnOnce() -> Result<(Predict, PolicyInfo), PolicyError> + Send + 'static,
    stop: impl Future<Output = ()>,
) -> Result<(), NodeError> {
    tokio::pin!(stop);
    tracing::info!("loading {}", config.checkpoint.path.display());
    let started = Instant::now();
    let policy = PolicyThread::spawn(load)?;
    let mut readiness = policy.readiness();
    let reports = report::Reports::open(&node, &config)?;
    let state = tokio::select! {
        state = readiness.wait_for(|state| !matches!(state, Readiness::Loading)) => match state {
            Ok(state) => state.clone(),
            Err(_) => return Err(NodeError::Policy("the policy's thread ended while loading".to_owned())),
        },
        never = reports.while_loading(&node, &config) => match never {},
        () = &mut stop => {
            report::cancel_building();
            return Ok(());
        }
    };
    let info = match state {
        Readiness::Ready(info) => info,
        Readiness::Failed(reason) => return Err(NodeError::Policy(reason)),
        Readiness::Loading => return Err(NodeError::Policy("the policy's thread said nothing".to_owned())),
    };
    tracing::info!("policy ready in {:.1} s: {}", started.elapsed().as_secs_f64(), info.identity);
    config.check_against(&info.keys)?;

    let mut assembler =
        ObservationAssembler::new(AssemblerConfig::new(&config, &info.video_deltas, &info.state_deltas));
    assembler.set_instruction(config.instruction.clone());
    let mut control = Control::new(&config, &info.keys, info.horizon)?;
    control.request(Transition::Configure);
    let outputs = Outputs::new(&node, &config, &control)?;
    let store = Arc::new(ParameterStore::new(config.clone()));
    // From before anybody can change them.
    let changes = store.changes();
    let shared = Arc::new(Shared {
        node: node.clone(),
        parameters: ParameterServer::start(&node, store.clone())?,
        store,
        // As `rcl` does.
        transitions: node.publisher("~/transition_event", Qos::reliable(10))?,
        assembler: Mutex::new(assembler),
        arrivals: Arrivals::new(config.cameras.len()),
        control: Mutex::new(control),
        measured: Mutex::default(),
        outputs,
        window: Mutex::default(),
        latency: Mutex::default(),
        blocked: Mutex::default(),
        last_error: Mutex::default(),
        transport: Mutex::default(),
        chunks: AtomicU64::new(0),
        failed: AtomicU64::new(0),
        info,
    });
    let mut tasks = JoinSet::new();
    inputs::subscribe(&config, &shared, &mut tasks)?;
    // Kept to the end: dropping them withdraws the services.
    let _lifecycle = lifecycle_services::serve(&node, Arc::new(Life(shared.clone())))?;
    tasks.spawn(configure(shared.clone(), changes));
    tasks.spawn(command(shared.clone(), config.commands.rate));
    report::spawn(&shared, reports, &mut tasks);
    if config.safety.autostart {
        let outcome = shared.steer(|control| control.request(Transition::Activate));
        tracing::info!("{}", outcome.message);
    } else {
        tracing::info!("waiting for ~/activate");
    }
    let planner = Planner {
        builder: ChunkBuilder::new(&config, shared.info.keys.action.iter().map(|(key, _)| key.as_str())),
        shared: shared.clone(),
        policy,
        first_seed: config.noise_seed.unwrap_or_else(entropy_seed),
        look_ahead: LookAhead::new(shared.info.preparation.clone())?,
    };
    tokio::select! {
        () = planner.run() => {}
        () = &mut stop => {}
    }
    tasks.shutdown().await;
    halt(&shared);
    tracing::info!("stopping after {} chunks", shared.chunks.load(Ordering::Relaxed));
    Ok(())
}

/// Leaves the robot where it is: without this, a controller would follow the last trajectory to its end.
fn halt(shared: &Shared) {
    let Some(now) = shared.now() else { return };
    shared.steer(|control| {
        control.request(Transition::Deactivate);
        let measured = shared.measured(control.joints());
        let moment = control.moment(now, &watchdog::Inputs::default(), measured);
        shared.act(control, moment, now);
    });
}

/// The lifecycle on the network.
struct Life(Arc<Shared>);

impl Lifecycle for Life {
    fn state(&self) -> State {
        lock(&self.0.control).gate().state()
    }

    fn change(&self, transition: Transition) -> Result<String, String> {
        let outcome = self.0.steer(|control| control.request(transition));
        if outcome.success { Ok(outcome.message) } else { Err(outcome.message) }
    }

    fn reset(&self) -> Result<String, String> {
        let outcome = lock(&self.0.control).reset();
        if outcome.success { Ok(outcome.message) } else { Err(outcome.message) }
    }
}

/// Applies changed parameters.
async fn configure(shared: Arc<Shared>, mut changes: ConfigChanges) {
    while let Some((before, config)) = changes.next().await {
        {
            let mut assembler = lock(&shared.assembler);
            assembler.set_limits(config.max_age, config.max_skew, config.max_state_age);
            if config.instruction != before.instruction {
                tracing::info!("instruction: {:?}", config.instruction);
                assembler.set_instruction(config.instruction.clone());
            }
        }
        for problem in shared.steer(|control| control.configure(&config)) {
            tracing::warn!("{problem}");
        }
    }
}

/// Commands at a fixed rate, whatever the policy is doing.
async fn command(shared: Arc<Shared>, rate: f64) {
    let mut interval = tokio::time::interval(Duration::from_secs_f64(1.0 / rate));
    interval.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        interval.tick().await;
        let Some(now) = shared.now() else { continue };
        let (observation_age, joint_age) = shared.ages(now);
        let blocked = lock(&shared.blocked).clone();
        let inputs = watchdog::Inputs {
            observation_age,
            joint_age,
            blocked: blocked.as_deref(),
            ..watchdog::Inputs::default()
        };
        let mut control = lock(&shared.control);
        let measured = shared.measured(control.joints());
        let moment = control.moment(now, &inputs, measured);
        shared.act(&control, moment, now);
    }
}

/// Asks the policy for chunks.
struct Planner {
    shared: Arc<Shared>,
    policy: PolicyThread<PolicyInfo>,
    builder: ChunkBuilder,
    first_seed: u64,
    look_ahead: LookAhead,
}

/// The part of a tick's period by which it may come earlier or later, to meet new frames.
const LEEWAY: u32 = 8;

/// When the next tick may begin.
struct Opening {
    time: Instant,
    leeway: Duration,
}

impl Opening {
    /// After a tick that began at `begun` and used `used`.
    fn after(begun: Instant, used: &Frames, period: Duration) -> Self {
        let leeway = period / LEEWAY;
        let earliest = begun.checked_sub(leeway).unwrap_or(begun);
        Self { time: used.last().unwrap_or(begun).clamp(earliest, begun) + (period - leeway), leeway }
    }
}

impl Planner {
    async fn run(&self) {
        let shared = &self.shared;
        let mut ticks = 0;
        loop {
            let config = shared.store.config();
            let begun = Instant::now();
            let due = shared.now().filter(|&now| {
                lock(&shared.control).wants_chunk(now, config.handover.execute_horizon.is_none())
            });
            // Taken before the observation, so that whatever comes meanwhile counts as new.
            let used = shared.arrivals.frames();
            let observed = due.and_then(|now| Some((now, self.observe(now, &config, ticks, &used)?)));
            let used = observed.as_ref().map_or(used, |(_, observed)| observed.frames.clone());
            let period = Duration::from_secs_f64(1.0 / config.rate);
            if let Some((now, observed)) = observed {
                ticks += 1;
                let plan = lock(&shared.control).on_request(now, observed.assembled.image_stamp);
                let sequence = plan.sequence;
                let opening = Opening::after(begun, &used, period);
                let tick = self.tick(&config, plan, observed, used.last().unwrap_or(begun));
                let result = tokio::select! {
                    result = tick => result,
                    never = self.look_ahead.watch(shared, ticks, opening.time, used.clone()) => match never {},
                };
                if let Err(error) = result {
                    let reason = error.to_string();
                    // A chunk that came too late is no fault of the engine; the watchdog sees the lateness itself.
                    if !matches!(error, TickError::Refused(_)) {
                        lock(&shared.control).on_failure(sequence, &reason);
                    }
                    shared.note_failure(&reason);
                }
            } else {
                self.look_ahead.forget();
            }
            self.wait(period, begun, used).await;
        }
    }

    /// Waits for the next tick: for a period, with some leeway both ways to meet the next frame of each camera, so that ticks
    /// fall into step with the cameras. Where no such frames have come since the last tick, another half of a period.
    async fn wait(&self, period: Duration, begun: Instant, used: Frames) {
        let arrivals = &self.shared.arrivals;
        let Opening { time: opening, leeway } = Opening::after(begun, &used, period);
        let end = opening + 2 * leeway;
        // A tick that took so long that the next one is late waits only for what it has not seen.
        if Instant::now() < opening {
            tokio::time::sleep_until(opening.into()).await;
            let frames = arrivals.frames();
            if frames.expected().is_some_and(|next| next <= end) {
                arrivals.wait_for_all(&frames, end).await;
            }
        }
        arrivals.wait_for_all(&used, opening + period / 2).await;
    }

    /// The newest observation, or one that was made ready during the tick before, the `ticks`-th, see [`look_ahead`]; None
    /// where there is none, which is noted. `frames` are those that have come. They are decoded where they block no other
    /// task; one that cannot be decoded is dropped and the next best set is taken.
    fn observe(&self, now: Stamp, config: &NodeConfig, ticks: u64, frames: &Frames) -> Option<Observed> {
        loop {
            let selection = lock(&self.shared.assembler).select(now);
            let selection = match selection {
                Ok(selection) => selection,
                Err(reason) => {
                    lock(&self.shared.window).blocked(&reason);
                    *lock(&self.shared.blocked) = Some(reason.to_string());
                    return None;
                }
            };
            let ready = || self.look_ahead.take(&selection, ticks, now, config.max_age);
            if let Some(observed) = tokio::task::block_in_place(ready) {
                *lock(&self.shared.blocked) = None;
                return Some(observed);
            }
            match tokio::task::block_in_place(|| selection.decode()) {
                Ok(assembled) => {
                    *lock(&self.shared.blocked) = None;
                    return Some(Observed { assembled, prepared: None, frames: frames.clone() });
                }
                Err(failure) => {
                    tracing::warn!("{failure}");
                    lock(&self.shared.assembler).discard(&failure);
                }
            }
        }
    }

    /// Asks for the prediction that belongs to an observation, whose last frame came at `arrived`, and has it followed.
    async fn tick(
        &self,
        config: &NodeConfig,
        plan: RequestPlan,
        observed: Observed,
        arrived: Instant,
    ) -> Result<(), TickError> {
        let shared = &self.shared;
        let Observed { assembled, prepared, .. } = observed;
        let sequence = shared.chunks.load(Ordering::Relaxed);
        let seed = self.first_seed.wrapping_add(sequence);
        let instruction = assembled.observation.instruction.clone();
        let request = PredictRequest {
            planned: plan.planned,
            denoising_steps: Some(config.denoising_steps.unwrap_or(shared.info.denoising_steps)),
            prepared,
            ..PredictRequest::new(assembled.observation, Noise::Seed(seed))
        };
        let prediction = self.policy.predict(request).await?;
        let now = shared.now().unwrap_or(assembled.image_stamp);
        let stages = prediction.timing.stages();
        let (observation_age, joint_age) = shared.ages(now);
        let inputs = watchdog::Inputs { observation_age, joint_age, ..watchdog::Inputs::default() };
        let overhead;
        {
            let mut control = lock(&shared.control);
            let measured = shared.measured(control.joints());
            let stamps = (plan.sequence, assembled.image_stamp);
            let (moment, trajectory) =
                control.on_chunk(now, stamps, &prediction.actions, &inputs, measured)?;
            shared.act(&control, moment, now);
            let route = control.gate().route();
            if let Some(trajectory) = trajectory {
                shared.outputs.trajectory(route, trajectory)?;
            }
            // All but the prediction itself, up to here: the last input's way from the network, waiting for the tick's turn,
            // decoding, hand-over between threads, hand-over to the plan, limits, commands.
            overhead = ("overhead", arrived.elapsed().saturating_sub(prediction.timing.total));
            let info = ChunkInfo {
                published: now,
                image_stamp: assembled.image_stamp,
                state_stamp: assembled.state_stamp,
                sequence,
                noise_seed: seed,
                instruction,
                timing: stages
                    .iter()
                    .chain([&overhead])
                    .map(|(stage, time)| ((*stage).to_owned(), *time))
                    .collect(),
            };
            shared.outputs.chunk(route, self.builder.action_chunk(&prediction.actions, info))?;
        }
        shared.chunks.store(sequence + 1, Ordering::Relaxed);
        *lock(&shared.last_error) = None;
        lock(&shared.latency).record(stages.into_iter().chain([overhead]));
        lock(&shared.window).predicted(stages);
        Ok(())
    }
}
