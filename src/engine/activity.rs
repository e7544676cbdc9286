//! The build in progress, of which a process has one: read, and ended, by whoever waits for it.

use std::sync::{Mutex, MutexGuard, PoisonError};

struct Activity {
    line: String,
    cancelled: bool,
}

static ACTIVITY: Mutex<Option<Activity>> = Mutex::new(None);

/// Whole after every statement, so that a panic elsewhere has left it usable.
fn lock() -> MutexGuard<'static, Option<Activity>> {
    ACTIVITY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How far it is, in words; None where nothing is being built.
pub fn current() -> Option<String> {
    lock().as_ref().map(|activity| activity.line.clone())
}

/// Asks it to end early. TensorRT 10 and newer does so within seconds; before, it cannot be told.
pub fn cancel() {
    if let Some(activity) = lock().as_mut() {
        activity.cancelled = true;
    }
}

/// Says how far it is.
pub fn set(line: String) {
    let mut activity = lock();
    let cancelled = activity.as_ref().is_some_and(|activity| activity.cancelled);
    *activity = Some(Activity { line, cancelled });
}

/// Whether it is to end.
pub fn is_cancelled() -> bool {
    lock().as_ref().is_some_and(|activity| activity.cancelled)
}

/// Nothing is being built any more.
pub fn clear() {
    *lock() = None;
}
