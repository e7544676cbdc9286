//! Changes of the lifecycle's state as `lifecycle_msgs/TransitionEvent`, for `~/transition_event`.
//!
//! Listeners such as `launch_ros` wait for the states that a lifecycle node passes on its way: `inactive` to `activating`, then
//! `activating` to `active`. Ours passes them in no time, and tells of both steps.

use crate::{
    ros::{
        Stamp,
        srv::{State, Transition, TransitionEvent},
    },
    safety::gate::{self, StateChange},
};

/// Label of the second step.
const SUCCESS: &str = "transition_success";

/// Ids and labels of the way and of the step that ends it, as `lifecycle_msgs` numbers them.
fn on_the_way(transition: gate::Transition) -> (State, u8) {
    let (id, label, success) = match transition {
        gate::Transition::Configure => (10, "configuring", 10),
        gate::Transition::Cleanup => (11, "cleaningup", 20),
        gate::Transition::Shutdown => (12, "shuttingdown", 50),
        gate::Transition::Activate => (13, "activating", 30),
        gate::Transition::Deactivate => (14, "deactivating", 40),
    };
    (State { id, label: label.to_owned() }, success)
}

fn primary(state: gate::State) -> State {
    State { id: state.id(), label: state.label().to_owned() }
}

/// The two steps of a change that took place at `now`.
pub fn transition_events(change: StateChange, now: Stamp) -> [TransitionEvent; 2] {
    // A time before the epoch is none.
    let timestamp = u64::try_from(now.0).unwrap_or(0);
    let (way, success) = on_the_way(change.transition);
    let begin = TransitionEvent {
        timestamp,
        transition: Transition { id: change.id, label: change.transition.label().to_owned() },
        start_state: primary(change.from),
        goal_state: way.clone(),
    };
    let end = TransitionEvent {
        timestamp,
        transition: Transition { id: success, label: SUCCESS.to_owned() },
        start_state: way,
        goal_state: primary(change.to),
    };
    [begin, end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_told_in_two_steps_that_meet() {
        for from in gate::State::ALL {
            for transition in gate::Transition::ALL {
                let Some((id, to)) = transition.from_state(from) else { continue };
                let [begin, end] = transition_events(StateChange { transition, id, from, to }, Stamp(7));
                assert_eq!((begin.timestamp, begin.transition.id), (7, id));
                assert_eq!(begin.transition.label, transition.label());
                assert_eq!((begin.start_state.id, end.goal_state.id), (from.id(), to.id()));
                assert_eq!(begin.goal_state, end.start_state);
                assert!((10..=14).contains(&begin.goal_state.id), "{begin:?}");
            }
        }
    }
}
