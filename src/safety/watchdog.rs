//! Whether what is commanded is up to date; if not, whether to hold or to stop.
//!
//! | fault | when |
//! |---|---|
//! | observation, joints | there is no usable one, or the newest is too old |
//! | inference | a tick has been running for too long |
//! | chunk | the last chunk came too long ago |
//! | failure | the last tick failed |
//! | e-stop | latched: always a stop, whatever the action is |
//!
//! **Hold** keeps the robot where it was last told to be: the last safe pose goes on being published, base velocities are
//! zero. **Stop** says so once and is silent afterwards. [`outputs`](crate::node::outputs) makes the messages of both.
//!
//! The watchdog recovers by itself, but not on a flicker: once no fault is left, it waits for a chunk whose tick *began*
//! after the last moment of the fault. A chunk that a stalled engine delivers at last is not one. The state at the start
//! is the same waiting, for the first chunk.
//!
//! Every time is on one clock of the caller's choice, best a steady one; one that is set back does no harm.

use std::fmt;
use std::time::Duration;

use crate::ros::Stamp;

/// What is done about a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Hold the last safe pose.
    Hold,
    /// Stop once, then publish nothing.
    Stop,
}

impl std::str::FromStr for Action {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "hold" => Ok(Self::Hold),
            "stop" => Ok(Self::Stop),
            _ => Err(()),
        }
    }
}

/// The limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchdogConfig {
    /// What is done about a fault.
    pub action: Action,
    /// Oldest newest usable set of camera frames.
    pub max_observation_age: Duration,
    /// Oldest newest joint sample.
    pub max_joint_age: Duration,
    /// Longest tick.
    pub max_inference: Duration,
    /// Longest time without a chunk.
    pub max_chunk_age: Duration,
}

/// A chunk as the watchdog sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// When the tick that made it began, i.e. chose its observation.
    pub begun: Stamp,
    /// When it was complete.
    pub complete: Stamp,
}

/// What the watchdog watches.
#[derive(Debug, Clone, Copy, Default)]
pub struct Inputs<'a> {
    /// Age of the newest usable set of camera frames; `None` where there is none.
    pub observation_age: Option<Duration>,
    /// Age of the newest usable joint sample; `None` where there is none.
    pub joint_age: Option<Duration>,
    /// Why there is no newer observation, where that is known.
    pub blocked: Option<&'a str>,
    /// How long the tick in progress has been running; `None` where there is none.
    pub in_flight: Option<Duration>,
    /// Why the last tick failed; `None` where it did not.
    pub failure: Option<&'a str>,
    /// The newest usable chunk.
    pub chunk: Option<Chunk>,
    /// Whether an e-stop is latched.
    pub estop: bool,
}

/// What is to be done now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Chunks are followed.
    Ok,
    /// The last safe pose is held.
    Hold {
        /// What is wrong, how old it is, what the limit is.
        reason: String,
    },
    /// Nothing is commanded.
    Stop {
        /// As above.
        reason: String,
    },
}

impl State {
    /// Why chunks are not followed.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Ok => None,
            Self::Hold { reason } | Self::Stop { reason } => Some(reason),
        }
    }

    /// `ok`, `hold` or `stop`.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Hold { .. } => "hold",
            Self::Stop { .. } => "stop",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reason() {
            None => f.write_str(self.label()),
            Some(reason) => write!(f, "{}: {reason}", self.label()),
        }
    }
}

/// What is worth a line in the log: another state, or a fault beside those reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// State before.
    pub from: State,
    /// State now.
    pub to: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    EStop,
    Observation,
    Joints,
    Inference,
    Failure,
    Chunk,
}

/// Watches over the freshness of what is commanded.
#[derive(Debug, Clone)]
pub struct Watchdog {
    config: WatchdogConfig,
    state: State,
    /// Faults of the last update.
    faults: Vec<Fault>,
    /// The last time of a fault; `None` until the first update, whose time it then is.
    faulty_until: Option<Stamp>,
    /// What was wrong last, for the time between the end of a fault and the chunk after it.
    last_fault: Option<String>,
    /// Whether a chunk was ever followed.
    started: bool,
}

impl Watchdog {
    /// A watchdog that waits for the first chunk.
    pub fn new(config: WatchdogConfig) -> Self {
        let state = acted(config.action, FIRST_CHUNK.to_owned());
        Self { config, state, faults: Vec::new(), faulty_until: None, last_fault: None, started: false }
    }

    /// Changes the limits; they count from the next update on.
    pub fn set_config(&mut self, config: WatchdogConfig) {
        self.config = config;
    }

    /// What is to be done, as of the last update.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Whether no chunk was followed yet.
    pub fn is_starting(&self) -> bool {
        !self.started
    }

    /// Judges the inputs at the time `now`. A change is returned once; the reason's figures go on changing in
    /// [`Watchdog::state`] without being one.
    pub fn update(&mut self, now: Stamp, inputs: &Inputs<'_>) -> Option<Change> {
        let found = self.find(now, inputs);
        let faults: Vec<Fault> = found.iter().map(|(fault, _)| *fault).collect();
        let reason = found.into_iter().map(|(_, reason)| reason).collect::<Vec<_>>().join("; ");
        let faulty_until = *self.faulty_until.get_or_insert(now);
        let next = if !faults.is_empty() {
            self.faulty_until = Some(now);
            self.last_fault = Some(reason.clone());
            acted(self.action(faults.contains(&Fault::EStop)), reason)
        } else if self.state == State::Ok {
            State::Ok
        } else {
            // A clock that was set back would otherwise keep the robot waiting until it has caught up.
            let faulty_until = faulty_until.min(now);
            self.faulty_until = Some(faulty_until);
            // The first chunk after the start may have been begun at the very moment of the first update.
            let fresh = |begun: Stamp| {
                if self.last_fault.is_some() { begun > faulty_until } else { begun >= faulty_until }
            };
            match (inputs.chunk, &self.last_fault) {
                (Some(chunk), _) if fresh(chunk.begun) && chunk.begun <= now => State::Ok,
                (_, Some(last)) => {
                    acted(self.action(false), format!("waiting for a fresh chunk after: {last}"))
                }
                (_, None) => acted(self.action(false), FIRST_CHUNK.to_owned()),
            }
        };
        if next == State::Ok {
            self.last_fault = None;
            self.started = true;
        }
        let new_fault = faults.iter().any(|fault| !self.faults.contains(fault));
        self.faults = faults;
        let from = std::mem::replace(&mut self.state, next);
        let changed = from.label() != self.state.label() || new_fault;
        changed.then(|| Change { from, to: self.state.clone() })
    }

    /// A stop does not soften into a hold before chunks are followed again.
    fn action(&self, estop: bool) -> Action {
        match self.state {
            State::Stop { .. } => Action::Stop,
            _ if estop => Action::Stop,
            _ => self.config.action,
        }
    }

    /// The faults and what to say of them, gravest first.
    fn find(&self, now: Stamp, inputs: &Inputs<'_>) -> Vec<(Fault, String)> {
        let config = &self.config;
        let mut found = Vec::new();
        if inputs.estop {
            found.push((Fault::EStop, "the e-stop is latched".to_owned()));
        }
        let because = inputs.blocked.map_or_else(String::new, |reason| format!(" ({reason})"));
        let inputs_watched = [
            (Fault::Observation, "usable observation", inputs.observation_age, config.max_observation_age),
            (Fault::Joints, "joint sample", inputs.joint_age, config.max_joint_age),
        ];
        for (fault, what, age, limit) in inputs_watched {
            match age {
                Some(age) if age <= limit => {}
                Some(age) => {
                    let text = format!(
                        "the newest {what} is {} old, at most {} are allowed{because}",
                        shown(age),
                        shown(limit)
                    );
                    found.push((fault, text));
                }
                None => found.push((fault, format!("there is no {what}{because}"))),
            }
        }
        if let Some(running) = inputs.in_flight.filter(|running| *running > config.max_inference) {
            let limit = shown(config.max_inference);
            let text =
                format!("the inference has been running for {}, at most {limit} are allowed", shown(running));
            found.push((Fault::Inference, text));
        }
        if let Some(failure) = inputs.failure {
            found.push((Fault::Failure, format!("the last tick failed: {failure}")));
        }
        if let Some(chunk) = inputs.chunk {
            let age = now.elapsed_since(chunk.complete);
            if age > config.max_chunk_age {
                let limit = shown(config.max_chunk_age);
                let text = format!("the last chunk came {} ago, at most {limit} are allowed", shown(age));
                found.push((Fault::Chunk, text));
            }
        }
        found
    }
}

const FIRST_CHUNK: &str = "waiting for the first chunk";

fn acted(action: Action, reason: String) -> State {
    match action {
        Action::Hold => State::Hold { reason },
        Action::Stop => State::Stop { reason },
    }
}

fn shown(span: Duration) -> String {
    format!("{} ms", span.as_millis())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: i64 = 1_000_000;

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    fn at(milliseconds: i64) -> Stamp {
        Stamp(milliseconds * MS)
    }

    fn config(action: Action) -> WatchdogConfig {
        WatchdogConfig {
            action,
            max_observation_age: ms(500),
            max_joint_age: ms(200),
            max_inference: ms(300),
            max_chunk_age: ms(1000),
        }
    }

    fn chunk(begun: i64) -> Option<Chunk> {
        Some(Chunk { begun: at(begun), complete: at(begun + 50) })
    }

    /// Inputs without a fault.
    fn good(begun: i64) -> Inputs<'static> {
        Inputs {
            observation_age: Some(ms(30)),
            joint_age: Some(ms(10)),
            chunk: chunk(begun),
            ..Inputs::default()
        }
    }

    /// A watchdog that follows chunks, at 100 ms.
    fn running(action: Action) -> Watchdog {
        let mut watchdog = Watchdog::new(config(action));
        watchdog.update(at(0), &Inputs { chunk: None, ..good(0) });
        watchdog.update(at(100), &good(10));
        assert_eq!(watchdog.state(), &State::Ok);
        watchdog
    }

    #[test]
    fn it_starts_by_waiting_for_the_first_chunk() {
        let mut watchdog = Watchdog::new(config(Action::Hold));
        let nothing_yet = Inputs { chunk: None, ..good(0) };
        assert_eq!(watchdog.update(at(0), &nothing_yet), None);
        assert_eq!(watchdog.state().to_string(), "hold: waiting for the first chunk");
        assert!(watchdog.is_starting());
        let change = watchdog.update(at(60), &good(0)).unwrap();
        assert_eq!(change.to, State::Ok);
        assert!(!watchdog.is_starting());
    }

    #[test]
    fn each_fault_is_told_with_its_figure_and_its_limit() {
        let ok = good(10);
        for (inputs, expected) in [
            (
                Inputs { observation_age: Some(ms(501)), blocked: Some("camera front is frozen"), ..ok },
                "the newest usable observation is 501 ms old, at most 500 ms are allowed (camera front is frozen)",
            ),
            (
                Inputs { joint_age: Some(ms(201)), ..ok },
                "the newest joint sample is 201 ms old, at most 200 ms are allowed",
            ),
            (Inputs { joint_age: None, ..ok }, "there is no joint sample"),
            (
                Inputs { in_flight: Some(ms(2500)), ..ok },
                "the inference has been running for 2500 ms, at most 300 ms are allowed",
            ),
            (
                Inputs { failure: Some("the action head produced NaN"), ..ok },
                "the last tick failed: the action head produced NaN",
            ),
            (
                Inputs { chunk: chunk(-1000), ..ok },
                "the last chunk came 1060 ms ago, at most 1000 ms are allowed",
            ),
        ] {
            for action in [Action::Hold, Action::Stop] {
                let mut watchdog = running(action);
                let change = watchdog.update(at(110), &inputs).unwrap();
                assert_eq!(change.from, State::Ok);
                assert_eq!(change.to, acted(action, expected.to_owned()));
            }
        }
    }

    #[test]
    fn at_the_limits_all_is_well() {
        let mut watchdog = running(Action::Hold);
        let inputs = Inputs {
            observation_age: Some(ms(500)),
            joint_age: Some(ms(200)),
            in_flight: Some(ms(300)),
            chunk: Some(Chunk { begun: at(0), complete: at(100) }),
            ..Inputs::default()
        };
        assert_eq!(watchdog.update(at(1100), &inputs), None);
        assert_eq!(watchdog.state(), &State::Ok);
    }

    #[test]
    fn a_fault_is_reported_once_and_a_further_one_beside_it_too() {
        let mut watchdog = running(Action::Hold);
        let stale = |age| Inputs { observation_age: Some(ms(age)), ..good(10) };
        assert!(watchdog.update(at(110), &stale(600)).is_some());
        assert_eq!(watchdog.update(at(120), &stale(610)), None);
        assert!(watchdog.state().reason().unwrap().contains("610 ms"), "the figure goes on");
        let both = Inputs { joint_age: None, ..stale(620) };
        let change = watchdog.update(at(130), &both).unwrap();
        assert!(
            change.to.reason().unwrap().contains("620 ms old, at most 500 ms are allowed; there is no joint")
        );
        assert_eq!(watchdog.update(at(140), &stale(630)), None);
    }

    #[test]
    fn it_recovers_with_the_first_chunk_that_was_begun_after_the_fault() {
        let mut watchdog = running(Action::Hold);
        watchdog.update(at(110), &Inputs { observation_age: None, ..good(10) });
        assert_eq!(watchdog.update(at(120), &good(10)), None, "the old chunk is none");
        assert!(
            watchdog
                .state()
                .reason()
                .unwrap()
                .starts_with("waiting for a fresh chunk after: there is no usable")
        );
        assert_eq!(watchdog.update(at(200), &good(110)), None, "nor one begun during the fault");
        let change = watchdog.update(at(300), &good(115)).unwrap();
        assert_eq!(change.to, State::Ok);
    }

    #[test]
    fn the_chunk_that_a_stalled_engine_delivers_at_last_is_not_followed() {
        let mut watchdog = running(Action::Hold);
        for (now, running) in [(500, 250), (600, 350), (900, 650)] {
            watchdog.update(at(now), &Inputs { in_flight: Some(ms(running)), ..good(200) });
        }
        let late = Inputs { chunk: Some(Chunk { begun: at(250), complete: at(950) }), ..good(0) };
        assert_eq!(watchdog.update(at(960), &late), None);
        assert_ne!(watchdog.state(), &State::Ok);
        assert_eq!(watchdog.update(at(1100), &good(1000)).unwrap().to, State::Ok);
    }

    #[test]
    fn an_e_stop_stops_even_where_faults_hold_and_until_a_fresh_chunk() {
        let mut watchdog = running(Action::Hold);
        let pressed = Inputs { estop: true, ..good(10) };
        let change = watchdog.update(at(110), &pressed).unwrap();
        assert_eq!(change.to, State::Stop { reason: "the e-stop is latched".into() });
        assert_eq!(watchdog.update(at(120), &good(10)), None);
        assert_eq!(watchdog.state().label(), "stop");
        watchdog.update(at(130), &Inputs { joint_age: None, ..good(10) });
        assert_eq!(watchdog.state().label(), "stop", "a milder fault does not soften it");
        assert_eq!(watchdog.update(at(300), &good(200)).unwrap().to, State::Ok);
    }

    #[test]
    fn a_clock_that_is_set_back_does_not_keep_it_from_recovering() {
        let mut watchdog = running(Action::Hold);
        watchdog.update(at(1_000_000), &Inputs { joint_age: None, ..good(999_990) });
        watchdog.update(at(50), &good(999_990));
        assert_ne!(watchdog.state(), &State::Ok, "a chunk from the future is not fresh");
        watchdog.update(at(200), &good(100));
        assert_eq!(watchdog.state(), &State::Ok);
    }

    #[test]
    fn limits_may_change_while_it_runs() {
        let mut watchdog = running(Action::Hold);
        watchdog.set_config(WatchdogConfig { max_joint_age: ms(5), ..config(Action::Stop) });
        assert_eq!(watchdog.update(at(110), &good(10)).unwrap().to.label(), "stop");
    }

    proptest! {
        #[test]
        fn it_is_ok_only_without_a_fault_and_follows_only_what_was_begun_after_the_last_one(
            steps in prop::collection::vec((0u64..900, 0u64..400, prop::option::of(0u64..600), any::<bool>(), 0i64..400), 1..60),
        ) {
            let mut watchdog = Watchdog::new(config(Action::Hold));
            let mut last_fault = i64::MIN;
            let mut before = State::Hold { reason: String::new() };
            for (index, (observation, joints, in_flight, estop, lag)) in steps.into_iter().enumerate() {
                let now = 1000 + 100 * index as i64;
                let begun = now - lag;
                let inputs = Inputs {
                    observation_age: Some(ms(observation)),
                    joint_age: Some(ms(joints)),
                    in_flight: in_flight.map(ms),
                    estop,
                    chunk: chunk(begun),
                    ..Inputs::default()
                };
                let faulty = observation > 500 || joints > 200 || in_flight.is_some_and(|t| t > 300) || estop;
                let change = watchdog.update(at(now), &inputs);
                let state = watchdog.state().clone();
                if faulty {
                    last_fault = now;
                    prop_assert_ne!(&state, &State::Ok);
                } else if before.label() != "ok" && state == State::Ok {
                    prop_assert!(begun > last_fault);
                }
                prop_assert_eq!(estop, state.reason().is_some_and(|r| r.contains("e-stop is latched") && !r.starts_with("waiting")));
                if before.label() != state.label() {
                    prop_assert!(change.is_some() || index == 0);
                }
                before = state;
            }
        }
    }
}
