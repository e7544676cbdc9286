//! The node's clock: the system's, or that of a simulation or recording, which tells the time on `/clock`.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use crate::ros::msg::Time;

/// A clock; clones show the same time.
#[derive(Debug, Clone)]
pub(super) struct NodeClock {
    /// Nanoseconds as `/clock` told them last; 0 before the first time. `None` for the system's clock.
    simulated: Option<Arc<AtomicI64>>,
}

impl NodeClock {
    pub(super) fn system() -> Self {
        Self { simulated: None }
    }

    /// A clock that shows what it is [set](Self::set) to, and nothing before that.
    pub(super) fn simulated() -> Self {
        Self { simulated: Some(Arc::default()) }
    }

    /// What time it is; `None` where nobody has said so yet. Zero on `/clock` says "not yet" as well.
    pub(super) fn now(&self) -> Option<Time> {
        let Some(simulated) = &self.simulated else { return Some(Time::now()) };
        match simulated.load(Ordering::Relaxed) {
            0 => None,
            nanoseconds => Some(Time::from_nanoseconds(nanoseconds)),
        }
    }

    /// Sets a simulated clock, forwards or backwards.
    pub(super) fn set(&self, time: &Time) {
        if let Some(simulated) = &self.simulated {
            simulated.store(time.nanoseconds(), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_simulated_clock_shows_nothing_before_its_first_time_and_may_jump_back() {
        let clock = NodeClock::simulated();
        let shown = clock.clone();
        assert_eq!(shown.now(), None);
        clock.set(&Time::default());
        assert_eq!(shown.now(), None);
        for time in [Time { sec: 5, nanosec: 7 }, Time { sec: 1, nanosec: 0 }] {
            clock.set(&time);
            assert_eq!(shown.now(), Some(time));
        }
    }

    #[test]
    fn the_systems_clock_cannot_be_set() {
        let clock = NodeClock::system();
        clock.set(&Time { sec: 1, nanosec: 0 });
        assert!(clock.now().is_some_and(|now| now.sec > 1_600_000_000));
    }
}
