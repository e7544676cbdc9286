//! Whether the robot may be commanded: lifecycle, dry run and e-stop.
//!
//! The states and transitions are those of `lifecycle_msgs`, with their ids and labels:
//!
//! ```text
//!              configure            activate
//! unconfigured ────────▶ inactive ────────────▶ active
//!              ◀────────          ◀────────────
//!               cleanup    deactivate, e-stop          shutdown from each of the three ▶ finalized
//! ```
//!
//! **Dry run** sends everything to the dry-run topics only. It can be switched on at any time, but off only while the node
//! is not active: the robot starts to move when somebody activates, and at no other time.
//!
//! **The e-stop latches.** `true` deactivates the node and latches; `false` releases nothing. `reset` releases the latch, if
//! the button's last message is not `true`; it does not activate. So two deliberate acts lie between an e-stop and motion.
//!
//! [`Gate::may_command`] is the one place that decides.

use std::fmt;

/// A primary state of a lifecycle node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The policy is not loaded yet, or was given back.
    Unconfigured,
    /// Loaded and warm; nothing is published for the robot.
    Inactive,
    /// Commands are published, to the dry-run topics or to the robot.
    Active,
    /// Shut down for good.
    Finalized,
}

impl State {
    /// The id in `lifecycle_msgs/State`.
    pub fn id(self) -> u8 {
        match self {
            Self::Unconfigured => 1,
            Self::Inactive => 2,
            Self::Active => 3,
            Self::Finalized => 4,
        }
    }

    /// The label in `lifecycle_msgs/State`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Unconfigured => "unconfigured",
            Self::Inactive => "inactive",
            Self::Active => "active",
            Self::Finalized => "finalized",
        }
    }

    /// All primary states.
    pub const ALL: [Self; 4] = [Self::Unconfigured, Self::Inactive, Self::Active, Self::Finalized];
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// A transition that can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transition {
    /// Unconfigured to inactive.
    Configure,
    /// Inactive to unconfigured.
    Cleanup,
    /// Inactive to active.
    Activate,
    /// Active to inactive.
    Deactivate,
    /// Anything to finalized.
    Shutdown,
}

impl Transition {
    /// The label in `lifecycle_msgs/Transition`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Configure => "configure",
            Self::Cleanup => "cleanup",
            Self::Activate => "activate",
            Self::Deactivate => "deactivate",
            Self::Shutdown => "shutdown",
        }
    }

    /// The id in `lifecycle_msgs/Transition` and the goal, where the transition starts from `state`.
    pub fn from_state(self, state: State) -> Option<(u8, State)> {
        match (self, state) {
            (Self::Configure, State::Unconfigured) => Some((1, State::Inactive)),
            (Self::Cleanup, State::Inactive) => Some((2, State::Unconfigured)),
            (Self::Activate, State::Inactive) => Some((3, State::Active)),
            (Self::Deactivate, State::Active) => Some((4, State::Inactive)),
            (Self::Shutdown, State::Unconfigured) => Some((5, State::Finalized)),
            (Self::Shutdown, State::Inactive) => Some((6, State::Finalized)),
            (Self::Shutdown, State::Active) => Some((7, State::Finalized)),
            _ => None,
        }
    }

    /// All transitions.
    pub const ALL: [Self; 5] =
        [Self::Configure, Self::Cleanup, Self::Activate, Self::Deactivate, Self::Shutdown];
}

/// A transition that took place, as `lifecycle_msgs/TransitionEvent` tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StateChange {
    /// What was done.
    pub transition: Transition,
    /// Its id.
    pub id: u8,
    /// State before.
    pub from: State,
    /// State now.
    pub to: State,
}

/// What became of a request; `success` and `message` are those of `std_srvs/Trigger`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Whether what was asked for is now so.
    pub success: bool,
    /// Why, or why not.
    pub message: String,
    /// The transition, where one took place.
    pub change: Option<StateChange>,
}

impl Outcome {
    fn done(message: impl Into<String>) -> Self {
        Self { success: true, message: message.into(), change: None }
    }

    fn refused(message: impl Into<String>) -> Self {
        Self { success: false, message: message.into(), change: None }
    }
}

/// Where commands go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// To the robot.
    Robot,
    /// To the dry-run topics.
    DryRun,
    /// Nowhere.
    Nowhere,
}

/// The state of activation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gate {
    state: State,
    dry_run: bool,
    latched: bool,
    /// The e-stop's last message; `None` where there was none.
    pressed: Option<bool>,
    stops: u64,
}

impl Gate {
    /// An unconfigured gate.
    pub fn new(dry_run: bool) -> Self {
        Self { state: State::Unconfigured, dry_run, latched: false, pressed: None, stops: 0 }
    }

    /// Whether the robot may be commanded now: active, no dry run, no e-stop. Nothing else may decide this.
    pub fn may_command(&self) -> bool {
        self.state == State::Active && !self.dry_run && !self.latched
    }

    /// Where commands go now.
    pub fn route(&self) -> Route {
        if self.may_command() {
            Route::Robot
        } else if self.state == State::Active && !self.latched {
            Route::DryRun
        } else {
            Route::Nowhere
        }
    }

    /// The lifecycle state.
    pub fn state(&self) -> State {
        self.state
    }

    /// Whether everything goes to the dry-run topics.
    pub fn dry_run(&self) -> bool {
        self.dry_run
    }

    /// Whether an e-stop is latched.
    pub fn estop(&self) -> bool {
        self.latched
    }

    /// How often the e-stop latched.
    pub fn stops(&self) -> u64 {
        self.stops
    }

    /// Makes a transition. `blockers` are reasons against configuring and activating, e.g. limits that are missing.
    pub fn request(&mut self, transition: Transition, blockers: &[String]) -> Outcome {
        let Some((id, to)) = transition.from_state(self.state) else {
            let hint = match (transition, self.state) {
                (Transition::Activate, State::Unconfigured) => "; the policy is not loaded",
                _ => "",
            };
            return Outcome::refused(format!("cannot {} while {}{hint}", transition.label(), self.state));
        };
        let moves_on = matches!(transition, Transition::Configure | Transition::Activate);
        if moves_on && !blockers.is_empty() {
            return Outcome::refused(format!("cannot {}: {}", transition.label(), blockers.join("; ")));
        }
        if transition == Transition::Activate && self.latched {
            return Outcome::refused("cannot activate: the e-stop is latched; release it and call reset");
        }
        let from = std::mem::replace(&mut self.state, to);
        Outcome {
            success: true,
            message: format!("{to}{}", self.aside()),
            change: Some(StateChange { transition, id, from, to }),
        }
    }

    /// A message of the e-stop. `true` latches and deactivates; the change, where there was one.
    pub fn on_estop(&mut self, pressed: bool) -> Option<StateChange> {
        self.pressed = Some(pressed);
        if !pressed {
            return None;
        }
        if !self.latched {
            self.stops += 1;
        }
        self.latched = true;
        (self.state == State::Active).then(|| self.request(Transition::Deactivate, &[]).change).flatten()
    }

    /// `~/reset`: releases the e-stop's latch, if the e-stop is not pressed any more. It never activates.
    pub fn reset(&mut self) -> Outcome {
        if !self.latched {
            return Outcome::done("no e-stop is latched");
        }
        if self.pressed == Some(true) {
            return Outcome::refused("the e-stop is still pressed: its last message is true");
        }
        self.latched = false;
        Outcome::done("the e-stop is released; call activate to go on")
    }

    /// Switches dry run on or off.
    pub fn set_dry_run(&mut self, dry_run: bool) -> Outcome {
        if self.dry_run && !dry_run && self.state == State::Active {
            return Outcome::refused("dry_run cannot be switched off while active: call deactivate first");
        }
        self.dry_run = dry_run;
        Outcome::done(format!("dry_run is {}", if dry_run { "on" } else { "off" }))
    }

    /// What a caller may not expect of the state.
    fn aside(&self) -> &'static str {
        match self.state {
            State::Active if self.dry_run => ", in dry run: the robot is not commanded",
            _ => "",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn active(dry_run: bool) -> Gate {
        let mut gate = Gate::new(dry_run);
        assert!(gate.request(Transition::Configure, &[]).success);
        assert!(gate.request(Transition::Activate, &[]).success);
        gate
    }

    #[test]
    fn only_an_active_node_without_dry_run_and_e_stop_may_command() {
        let mut gate = Gate::new(false);
        assert_eq!((gate.may_command(), gate.route()), (false, Route::Nowhere));
        gate.request(Transition::Configure, &[]);
        assert_eq!((gate.may_command(), gate.route()), (false, Route::Nowhere));
        gate.request(Transition::Activate, &[]);
        assert_eq!((gate.may_command(), gate.route()), (true, Route::Robot));
        gate.request(Transition::Deactivate, &[]);
        assert_eq!((gate.may_command(), gate.route()), (false, Route::Nowhere));
        assert_eq!((active(true).may_command(), active(true).route()), (false, Route::DryRun));
    }

    #[test]
    fn ids_and_labels_are_those_of_lifecycle_msgs() {
        let states: Vec<_> = State::ALL.map(|state| (state.id(), state.label())).to_vec();
        assert_eq!(states, [(1, "unconfigured"), (2, "inactive"), (3, "active"), (4, "finalized")]);
        let mut found = Vec::new();
        for state in State::ALL {
            found.extend(Transition::ALL.into_iter().filter_map(|transition| {
                let (id, goal) = transition.from_state(state)?;
                Some((state.label(), id, transition.label(), goal.label()))
            }));
        }
        assert_eq!(
            found,
            [
                ("unconfigured", 1, "configure", "inactive"),
                ("unconfigured", 5, "shutdown", "finalized"),
                ("inactive", 2, "cleanup", "unconfigured"),
                ("inactive", 3, "activate", "active"),
                ("inactive", 6, "shutdown", "finalized"),
                ("active", 4, "deactivate", "inactive"),
                ("active", 7, "shutdown", "finalized"),
            ]
        );
    }

    #[test]
    fn activation_tells_why_it_is_refused() {
        let mut gate = Gate::new(false);
        assert_eq!(
            gate.request(Transition::Activate, &[]).message,
            "cannot activate while unconfigured; the policy is not loaded"
        );
        gate.request(Transition::Configure, &[]);
        let refused = gate
            .request(Transition::Activate, &["no position limits for elbow".into(), "no frames yet".into()]);
        assert!(!refused.success);
        assert_eq!(refused.message, "cannot activate: no position limits for elbow; no frames yet");
        assert_eq!(gate.state(), State::Inactive);
    }

    #[test]
    fn an_e_stop_deactivates_and_stays_latched_until_it_is_released_and_reset() {
        let mut gate = active(false);
        let change = gate.on_estop(true).unwrap();
        assert_eq!((change.from, change.to), (State::Active, State::Inactive));
        assert_eq!(gate.on_estop(true), None);
        assert!(!gate.may_command() && gate.estop());
        assert_eq!(gate.reset().message, "the e-stop is still pressed: its last message is true");
        assert_eq!(gate.on_estop(false), None);
        assert!(gate.estop(), "false does not release");
        assert!(!gate.request(Transition::Activate, &[]).success);
        assert!(gate.reset().success);
        assert!(!gate.estop() && !gate.may_command(), "a reset does not move the robot");
        assert!(gate.request(Transition::Activate, &[]).success && gate.may_command());
        assert_eq!(gate.stops(), 1);
    }

    #[test]
    fn an_e_stop_before_activation_counts() {
        let mut gate = Gate::new(false);
        gate.on_estop(true);
        gate.request(Transition::Configure, &[]);
        assert!(!gate.request(Transition::Activate, &[]).success);
        assert_eq!(gate.state(), State::Inactive);
        assert!(!gate.reset().success);
    }

    #[test]
    fn dry_run_ends_only_while_nothing_moves() {
        let mut gate = active(true);
        let refused = gate.set_dry_run(false);
        assert!(!refused.success && gate.dry_run(), "{}", refused.message);
        gate.request(Transition::Deactivate, &[]);
        assert!(gate.set_dry_run(false).success);
        gate.request(Transition::Activate, &[]);
        assert!(gate.may_command());
        assert!(gate.set_dry_run(true).success && !gate.may_command());
    }

    #[derive(Debug, Clone)]
    enum Event {
        Ask(Transition),
        EStop(bool),
        Reset,
        DryRun(bool),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            prop::sample::select(&Transition::ALL[..]).prop_map(Event::Ask),
            any::<bool>().prop_map(Event::EStop),
            Just(Event::Reset),
            any::<bool>().prop_map(Event::DryRun),
        ]
    }

    proptest! {
        #[test]
        fn commands_begin_only_with_an_activation_and_never_during_an_e_stop(
            events in prop::collection::vec(event(), 0..60),
        ) {
            let mut gate = Gate::new(true);
            let mut pressed = false;
            for event in events {
                let before = gate.may_command();
                let activating = matches!(event, Event::Ask(Transition::Activate));
                match event {
                    Event::Ask(transition) => { gate.request(transition, &[]); }
                    Event::EStop(now) => { pressed = now; gate.on_estop(now); }
                    Event::Reset => { gate.reset(); }
                    Event::DryRun(on) => { gate.set_dry_run(on); }
                }
                prop_assert!(!gate.may_command() || before || activating);
                prop_assert!(!(gate.may_command() && (pressed || gate.estop() || gate.dry_run())));
                prop_assert!(!(gate.state() == State::Active && gate.estop()));
            }
        }
    }
}
