//! The node's life on the network: the four services of `lifecycle_msgs`, and three triggers for people.
//!
//! | service | type | does |
//! |---|---|---|
//! | `~/get_state` | `GetState` | the state |
//! | `~/change_state` | `ChangeState` | a transition, by label or number |
//! | `~/get_available_states` | `GetAvailableStates` | all states |
//! | `~/get_available_transitions` | `GetAvailableTransitions` | what is possible from the present state |
//! | `~/activate`, `~/deactivate` | `Trigger` | the transition of that name |
//! | `~/reset` | `Trigger` | what the node latched, an emergency stop for one, is lifted |
//!
//! Numbers and labels are those of `lifecycle_msgs`. Which way leads where is known here; whether the node goes it, only the
//! node knows.

use std::{
    future::{Ready, ready},
    sync::Arc,
};

use crate::ros::{
    srv::{
        self, ChangeState, ChangeStateResponse, GetAvailableStates, GetAvailableStatesResponse,
        GetAvailableTransitions, GetAvailableTransitionsResponse, GetState, GetStateResponse, Service,
        TransitionDescription, Trigger, TriggerResponse,
    },
    transport::{RosError, RosNode, ServiceServer},
};
use crate::safety::gate::{State, Transition};

/// The state machine behind the services. Its methods are called from several tasks and must not wait long.
pub trait Lifecycle: Send + Sync + 'static {
    /// The present state.
    fn state(&self) -> State;

    /// Goes from the present state to another; only asked for what the table of transitions allows there. Gives back what
    /// to tell people.
    ///
    /// # Errors
    /// Why the node stays where it is.
    fn change(&self, transition: Transition) -> Result<String, String>;

    /// Lifts what is latched. Gives back what to tell people.
    ///
    /// # Errors
    /// Why it stays.
    fn reset(&self) -> Result<String, String>;
}

const STATES: [State; 4] = [State::Unconfigured, State::Inactive, State::Active, State::Finalized];

/// Every transition with its number, where it begins and where it leads.
fn transitions() -> impl Iterator<Item = (u8, Transition, State, State)> {
    STATES.into_iter().flat_map(|start| {
        Transition::ALL.into_iter().filter_map(move |transition| {
            let (id, goal) = transition.from_state(start)?;
            Some((id, transition, start, goal))
        })
    })
}

fn message(state: State) -> srv::State {
    srv::State { id: state.id(), label: state.label().to_owned() }
}

/// Offers the services for as long as they are kept.
///
/// # Errors
/// A refusal of the transport.
pub fn serve(node: &RosNode, lifecycle: Arc<dyn Lifecycle>) -> Result<Vec<ServiceServer>, RosError> {
    let offer = Offer { node, lifecycle };
    Ok(vec![
        offer.of::<GetState>("~/get_state", |lifecycle, _| GetStateResponse {
            current_state: message(lifecycle.state()),
        })?,
        offer.of::<ChangeState>("~/change_state", |lifecycle, request| {
            let outcome = asked_for(lifecycle.state(), &request.transition)
                .and_then(|transition| lifecycle.change(transition));
            ChangeStateResponse { success: told("change_state", outcome).success }
        })?,
        offer.of::<GetAvailableStates>("~/get_available_states", |_, _| GetAvailableStatesResponse {
            available_states: STATES.map(message).to_vec(),
        })?,
        offer.of::<GetAvailableTransitions>("~/get_available_transitions", |lifecycle, _| {
            GetAvailableTransitionsResponse { available_transitions: available(lifecycle.state()) }
        })?,
        offer.of::<Trigger>("~/activate", |lifecycle, _| {
            told("activate", change(lifecycle, Transition::Activate, State::Active))
        })?,
        offer.of::<Trigger>("~/deactivate", |lifecycle, _| {
            told("deactivate", change(lifecycle, Transition::Deactivate, State::Inactive))
        })?,
        offer.of::<Trigger>("~/reset", |lifecycle, _| told("reset", lifecycle.reset()))?,
    ])
}

struct Offer<'a> {
    node: &'a RosNode,
    lifecycle: Arc<dyn Lifecycle>,
}

impl Offer<'_> {
    fn of<S: Service>(
        &self,
        name: &str,
        answer: impl Fn(&dyn Lifecycle, S::Request) -> S::Response + Send + 'static,
    ) -> Result<ServiceServer, RosError> {
        let lifecycle = Arc::clone(&self.lifecycle);
        self.node.serve::<S, Ready<S::Response>>(name, move |request| ready(answer(&*lifecycle, request)))
    }
}

/// The transition that a trigger asks for. Being there already is no fault.
fn change(lifecycle: &dyn Lifecycle, transition: Transition, goal: State) -> Result<String, String> {
    let state = lifecycle.state();
    if state == goal {
        return Ok(format!("the node is {} already", goal.label()));
    }
    possible(state, transition)?;
    lifecycle.change(transition)
}

fn told(service: &str, outcome: Result<String, String>) -> TriggerResponse {
    let (success, message) = match outcome {
        Ok(message) => (true, message),
        Err(reason) => (false, reason),
    };
    tracing::info!("{service}: {}{message}", if success { "" } else { "refused, " });
    TriggerResponse { success, message }
}

/// What a request of `ChangeState` means: its label where it has one, else its number, as in `rcl_lifecycle`.
fn asked_for(state: State, request: &srv::Transition) -> Result<Transition, String> {
    let named = transitions().find(|(id, transition, ..)| {
        if request.label.is_empty() { *id == request.id } else { transition.label() == request.label }
    });
    let Some((_, transition, start, _)) = named else {
        return Err(format!("there is no transition {} {:?}", request.id, shortened(&request.label)));
    };
    // A number stands for one way only, a label for all of that name.
    if request.label.is_empty() && start != state {
        return Err(impossible(state, transition));
    }
    possible(state, transition)?;
    Ok(transition)
}

fn possible(state: State, transition: Transition) -> Result<(), String> {
    let known = transitions().any(|(_, other, start, _)| (other, start) == (transition, state));
    if known { Ok(()) } else { Err(impossible(state, transition)) }
}

fn impossible(state: State, transition: Transition) -> String {
    format!("{} is not possible while the node is {}", transition.label(), state.label())
}

fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

fn available(state: State) -> Vec<TransitionDescription> {
    transitions()
        .filter(|(_, _, start, _)| *start == state)
        .map(|(id, transition, start, goal)| TransitionDescription {
            transition: srv::Transition { id, label: transition.label().to_owned() },
            start_state: message(start),
            goal_state: message(goal),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(id: u8, label: &str) -> srv::Transition {
        srv::Transition { id, label: label.to_owned() }
    }

    #[test]
    fn a_transition_is_asked_for_by_label_or_number() {
        for (state, id, label, expected) in [
            (State::Inactive, 3, "", Ok(Transition::Activate)),
            (State::Inactive, 0, "activate", Ok(Transition::Activate)),
            // The label counts.
            (State::Inactive, 4, "activate", Ok(Transition::Activate)),
            (State::Active, 0, "shutdown", Ok(Transition::Shutdown)),
            (State::Active, 7, "", Ok(Transition::Shutdown)),
            (State::Active, 6, "", Err("shutdown is not possible while the node is active")),
            (State::Unconfigured, 3, "", Err("activate is not possible while the node is unconfigured")),
            (State::Finalized, 0, "shutdown", Err("shutdown is not possible while the node is finalized")),
            (State::Active, 99, "", Err("there is no transition 99 \"\"")),
            (State::Active, 0, "fly", Err("there is no transition 0 \"fly\"")),
        ] {
            assert_eq!(
                asked_for(state, &request(id, label)),
                expected.map_err(str::to_owned),
                "{state:?} {id}"
            );
        }
    }

    #[test]
    fn whatever_is_available_can_be_asked_for() {
        for state in STATES {
            for description in available(state) {
                assert!(asked_for(state, &request(description.transition.id, "")).is_ok());
                assert!(asked_for(state, &request(0, &description.transition.label)).is_ok());
                assert_eq!(description.start_state, message(state));
            }
        }
        assert_eq!(available(State::Finalized), []);
    }
}
