//! Captures of CUDA graphs and waits for a whole GPU keep clear of each other.
//!
//! Every capture of this program is in thread-local mode and on a stream that does not wait for the default one. What other
//! threads do meanwhile:
//!
//! | another thread | while a stream is captured |
//! |---|---|
//! | allocates, frees, copies, queues kernels | may |
//! | waits for a stream that is not captured, or for an event on one | may |
//! | waits for the whole GPU (`cuCtxSynchronize`, `cudaDeviceSynchronize`) | must not, whatever the mode: CUDA refuses, and the capture is lost too |
//!
//! So whoever captures holds [`begin`]'s guard, and whoever waits for a GPU does it in [`clear_of_captures`]. What only needs
//! one stream's work to be done waits for that stream.

use std::{
    cell::Cell,
    sync::{PoisonError, RwLock, RwLockReadGuard},
};

/// Read by those who capture, written by those who wait.
static CAPTURES: RwLock<()> = RwLock::new(());

thread_local! {
    /// Captures that this thread is in the middle of.
    static OWN: Cell<usize> = const { Cell::new(0) };
}

/// A capture of this thread, until it is dropped.
#[must_use]
pub(crate) struct Capturing {
    /// None in a capture within one, which CUDA will refuse by itself. Of this thread: the guard cannot be sent.
    _captures: Option<RwLockReadGuard<'static, ()>>,
}

/// To be called before a capture begins: waits until nobody waits for a GPU.
pub(crate) fn begin() -> Capturing {
    let nested = OWN.get() > 0;
    // Nothing is kept under the lock, so a panic elsewhere cannot have spoilt it.
    let captures = (!nested).then(|| CAPTURES.read().unwrap_or_else(PoisonError::into_inner));
    OWN.set(OWN.get() + 1);
    Capturing { _captures: captures }
}

impl Drop for Capturing {
    fn drop(&mut self) {
        OWN.set(OWN.get().saturating_sub(1));
    }
}

/// Does `wait`, which waits for a whole GPU, when no other thread captures. Where this thread does, it is CUDA that refuses.
pub(crate) fn clear_of_captures<T>(wait: impl FnOnce() -> T) -> T {
    let _alone = (OWN.get() == 0).then(|| CAPTURES.write().unwrap_or_else(PoisonError::into_inner));
    wait()
}

#[cfg(test)]
mod tests {
    use std::sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    };

    use super::*;

    #[test]
    fn a_wait_for_the_gpu_begins_when_the_captures_of_other_threads_have_ended() {
        let captured = &AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (begun, begins) = mpsc::channel();
            let capturing = begin();
            let waiter = scope.spawn(move || {
                begun.send(()).unwrap();
                clear_of_captures(|| captured.load(Ordering::SeqCst))
            });
            begins.recv().unwrap();
            captured.store(true, Ordering::SeqCst);
            drop(capturing);
            assert!(waiter.join().unwrap());
        });
    }

    #[test]
    fn who_waits_or_captures_within_a_capture_of_its_own_is_left_to_cuda() {
        let outer = begin();
        drop(begin());
        assert_eq!(clear_of_captures(|| 7), 7);
        drop(outer);
        assert_eq!(OWN.get(), 0);
        assert_eq!(clear_of_captures(|| 8), 8);
    }
}
