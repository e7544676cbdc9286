//! When camera frames come: a tick waits for the next frame of each camera, so that what the policy sees is new, and belongs
//! together where the cameras are synchronised.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use tokio::sync::Notify;

/// Counts the frames of each camera.
#[derive(Debug)]
pub(super) struct Arrivals {
    frames: Mutex<Frames>,
    arrived: Notify,
}

/// How many frames had come of each camera, and when the last one came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frames {
    counts: Vec<u64>,
    last: Option<Instant>,
}

impl Frames {
    /// When the last frame came.
    pub(super) fn last(&self) -> Option<Instant> {
        self.last
    }

    fn all_newer_than(&self, before: &Self) -> bool {
        self.counts.iter().zip(&before.counts).all(|(now, before)| now > before)
    }
}

impl Arrivals {
    pub(super) fn new(cameras: usize) -> Self {
        let frames = Frames { counts: vec![0; cameras], last: None };
        Self { frames: Mutex::new(frames), arrived: Notify::new() }
    }

    /// A frame of a camera came off the network at `at`.
    pub(super) fn note(&self, camera: usize, at: Instant) {
        let mut frames = self.lock();
        if let Some(count) = frames.counts.get_mut(camera) {
            *count += 1;
        }
        frames.last = frames.last.max(Some(at));
        drop(frames);
        self.arrived.notify_one();
    }

    /// What has come so far.
    pub(super) fn frames(&self) -> Frames {
        self.lock().clone()
    }

    /// Waits until each camera has a newer frame than it had `before`, but not beyond `end`. For one waiting task.
    pub(super) async fn wait_for_all(&self, before: &Frames, end: Instant) {
        let all = async {
            while !self.lock().all_newer_than(before) {
                self.arrived.notified().await;
            }
        };
        // A camera that is slow or stopped is judged by its age.
        let _ = tokio::time::timeout_at(end.into(), all).await;
    }

    fn lock(&self) -> MutexGuard<'_, Frames> {
        // Whole after every statement.
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn the_wait_ends_with_the_last_cameras_new_frame() {
        let arrivals = Arrivals::new(2);
        let start = Instant::now();
        arrivals.note(0, start);
        let before = arrivals.frames();
        let end = start + Duration::from_secs(10);
        let wait = arrivals.wait_for_all(&before, end);
        let frames = async {
            for (camera, seconds) in [(0, 1), (0, 2), (1, 3)] {
                tokio::time::sleep(Duration::from_secs(1)).await;
                arrivals.note(camera, start + Duration::from_secs(seconds));
            }
            tokio::time::Instant::now()
        };
        let (ended, sent) =
            tokio::join!(async { (wait.await, tokio::time::Instant::now()).1 }, frames);
        assert_eq!(ended, sent);
        assert_eq!(arrivals.frames().last(), Some(start + Duration::from_secs(3)));
    }

    #[tokio::test(start_paused = true)]
    async fn the_wait_for_a_stopped_camera_ends_in_time() {
        let arrivals = Arrivals::new(2);
        let before = arrivals.frames();
        arrivals.note(0, Instant::now());
        let start = tokio::time::Instant::now();
        arrivals.wait_for_all(&before, (start + Duration::from_millis(25)).into_std()).await;
        assert!(start.elapsed() >= Duration::from_millis(25) && start.elapsed() < Duration::from_millis(30));
    }
}
