//! A life that does as it is told, until it is told to refuse.

use std::sync::Mutex;

use groot_policy::{
    node::lifecycle_services::Lifecycle,
    safety::gate::{State as LifecycleState, Transition as LifecycleTransition},
};

pub struct Life {
    state: Mutex<LifecycleState>,
    refusal: Mutex<Option<String>>,
}

impl Default for Life {
    fn default() -> Self {
        Self { state: Mutex::new(LifecycleState::Inactive), refusal: Mutex::default() }
    }
}

impl Life {
    /// From now on, and until a reset, nothing is done.
    pub fn refuse(&self, reason: &str) {
        *self.refusal.lock().unwrap() = Some(reason.to_owned());
    }
}

impl Lifecycle for Life {
    fn state(&self) -> LifecycleState {
        *self.state.lock().unwrap()
    }

    fn change(&self, transition: LifecycleTransition) -> Result<String, String> {
        if let Some(reason) = &*self.refusal.lock().unwrap() {
            return Err(reason.clone());
        }
        *self.state.lock().unwrap() = match transition {
            LifecycleTransition::Cleanup => LifecycleState::Unconfigured,
            LifecycleTransition::Configure | LifecycleTransition::Deactivate => LifecycleState::Inactive,
            LifecycleTransition::Activate => LifecycleState::Active,
            LifecycleTransition::Shutdown => LifecycleState::Finalized,
        };
        Ok(transition.label().to_owned())
    }

    fn reset(&self) -> Result<String, String> {
        *self.refusal.lock().unwrap() = None;
        Ok("reset".to_owned())
    }
}
