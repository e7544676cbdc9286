//! What whoever offers a service holds.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use super::backend;

/// What became of the calls of a service.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ServiceCounters {
    /// Calls that were answered.
    pub answered: u64,
    /// Requests that are not what the service takes. Nobody answers them.
    pub damaged: u64,
    /// Calls whose answer could not be sent.
    pub unsent: u64,
}

/// A service on offer. Dropping it withdraws the offer.
#[must_use = "dropping it withdraws the service"]
pub struct ServiceServer {
    name: String,
    counts: Arc<Counts>,
    // Its drop ends the task that answers.
    _end: backend::Server,
}

impl ServiceServer {
    pub(super) fn new(name: String, counts: Arc<Counts>, end: backend::Server) -> Self {
        Self { name, counts, _end: end }
    }

    /// The service's fully qualified name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What became of the calls so far.
    pub fn counters(&self) -> ServiceCounters {
        ServiceCounters {
            answered: self.counts.answered.load(Ordering::Relaxed),
            damaged: self.counts.damaged.load(Ordering::Relaxed),
            unsent: self.counts.unsent.load(Ordering::Relaxed),
        }
    }
}

/// The counters as the transport's task advances them.
#[derive(Default)]
pub(super) struct Counts {
    answered: AtomicU64,
    damaged: AtomicU64,
    unsent: AtomicU64,
}

impl Counts {
    pub(super) fn count_answered(&self) {
        self.answered.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns how many there have been.
    pub(super) fn count_damaged(&self) -> u64 {
        self.damaged.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(super) fn count_unsent(&self) {
        self.unsent.fetch_add(1, Ordering::Relaxed);
    }
}
