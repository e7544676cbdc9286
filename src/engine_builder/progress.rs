//! How far a build is, for the log: each phase of the builder with the time, and a sign of life where one takes long.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::engine::activity;
use crate::tensorrt::{BuildProgress, ProgressFn};

/// What such lines are logged under, so that a program can let them through and nothing else.
pub const TARGET: &str = "groot_policy::progress";

/// Time between two signs of life.
const PERIOD: Duration = Duration::from_secs(15);

/// Logs a build's progress until it is dropped. Versions of TensorRT before 10 report no phases; time passes for them, too.
pub struct ProgressLog {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    started: Instant,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    phases: Phases,
    ended: bool,
}

impl Shared {
    /// Whole after every statement, so that a panic elsewhere has left it usable.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self, phases: &Phases) {
        let line = phases.line(self.started.elapsed());
        tracing::info!(target: TARGET, "{line}");
        activity::set(line);
    }
}

impl ProgressLog {
    /// Starts the clock.
    pub fn start() -> Self {
        let shared =
            Arc::new(Shared { started: Instant::now(), state: Mutex::default(), changed: Condvar::new() });
        let own = Arc::clone(&shared);
        // Without a thread there is no sign of life, and the build goes on all the same.
        let thread = std::thread::Builder::new().name("build-progress".to_owned()).spawn(move || {
            let mut state = own.lock();
            while !state.ended {
                let waited = own.changed.wait_timeout(state, PERIOD);
                let (next, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
                state = next;
                if timeout.timed_out() && !state.ended {
                    own.say(&state.phases);
                }
            }
        });
        shared.say(&Phases::default());
        Self { shared, thread: thread.ok() }
    }

    /// What the builder tells.
    pub fn monitor(&self) -> ProgressFn {
        let shared = Arc::clone(&self.shared);
        Arc::new(move |progress| {
            let mut state = shared.lock();
            if state.phases.follow(progress) {
                shared.say(&state.phases);
            }
            !activity::is_cancelled()
        })
    }
}

impl Drop for ProgressLog {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // It only waits and logs.
            let _ = thread.join();
        }
        activity::clear();
    }
}

/// The phases that a build is in, outermost first.
#[derive(Debug, Default, PartialEq, Eq)]
struct Phases(Vec<(String, usize, usize)>);

impl Phases {
    /// Takes a report in. Returns whether a phase began that is worth a line: those deep inside come by the hundred.
    fn follow(&mut self, progress: &BuildProgress) -> bool {
        let place = |phases: &Self, name: &str| phases.0.iter().position(|(phase, ..)| phase == name);
        match progress {
            BuildProgress::Started { phase, parent, steps } => {
                let depth = place(self, parent).map_or(0, |parent| parent + 1);
                self.0.truncate(depth);
                self.0.push((phase.clone(), 0, *steps));
                depth < 2
            }
            BuildProgress::Step { phase, step } => {
                if let Some(place) = place(self, phase) {
                    self.0[place].1 = *step;
                }
                false
            }
            BuildProgress::Finished { phase } => {
                if let Some(place) = place(self, phase) {
                    self.0.truncate(place);
                }
                false
            }
        }
    }

    fn line(&self, elapsed: Duration) -> String {
        let phases = self.0.iter().map(|(phase, done, steps)| match steps {
            0 => phase.clone(),
            steps => format!("{phase} ({done} of {steps})"),
        });
        let phases = phases.collect::<Vec<_>>().join(" > ");
        let phases = if phases.is_empty() { "at work".to_owned() } else { phases };
        format!("building the TensorRT engine: {phases}, {:.0} s", elapsed.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started(phase: &str, parent: &str, steps: usize) -> BuildProgress {
        BuildProgress::Started { phase: phase.to_owned(), parent: parent.to_owned(), steps }
    }

    #[test]
    fn a_line_names_the_phases_from_the_outermost_with_steps_and_seconds() {
        let mut phases = Phases::default();
        let line = |phases: &Phases| phases.line(Duration::from_secs(95));
        assert_eq!(line(&phases), "building the TensorRT engine: at work, 95 s");
        assert!(phases.follow(&started("Building Engine", "", 5)));
        assert!(phases.follow(&started("Tactic selection", "Building Engine", 140)));
        assert!(!phases.follow(&started("one of hundreds", "Tactic selection", 3)));
        assert!(!phases.follow(&BuildProgress::Finished { phase: "one of hundreds".to_owned() }));
        assert!(!phases.follow(&BuildProgress::Step { phase: "Tactic selection".to_owned(), step: 13 }));
        assert_eq!(
            line(&phases),
            "building the TensorRT engine: Building Engine (0 of 5) > Tactic selection (13 of 140), 95 s"
        );
        assert!(phases.follow(&started("Engine layout", "Building Engine", 0)));
        assert!(line(&phases).ends_with("Building Engine (0 of 5) > Engine layout, 95 s"));
        phases.follow(&BuildProgress::Finished { phase: "Building Engine".to_owned() });
        assert_eq!(phases, Phases::default());
        // Of a phase that nobody announced.
        phases.follow(&BuildProgress::Step { phase: "elsewhere".to_owned(), step: 1 });
        assert_eq!(phases, Phases::default());
    }

    #[test]
    fn what_is_being_built_is_known_to_others_who_may_end_it() {
        let log = ProgressLog::start();
        assert!((log.monitor())(&started("Building Engine", "", 5)));
        assert!(activity::current().expect("a build").contains("Building Engine"));
        activity::cancel();
        assert!(!(log.monitor())(&started("Engine layout", "Building Engine", 5)), "it goes on");
        drop(log);
        assert_eq!(activity::current(), None);
        // Where nothing is being built there is nothing to end: the next build is not affected.
        activity::cancel();
        assert!((ProgressLog::start().monitor())(&started("Building Engine", "", 5)));
    }
}
