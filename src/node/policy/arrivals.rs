//! When camera frames come: a tick waits for the next frame of each camera, so that what the policy sees is new, and belongs
//! together where the cameras are synchronised.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::Notify;

/// Counts the frames of each camera.
#[derive(Debug)]
pub(super) struct Arrivals {
    frames: Mutex<Frames>,
    arrived: Notify,
}

/// What had come of each camera.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frames(Vec<Camera>);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Camera {
    frames: u64,
    last: Option<Instant>,
    /// Time between the last two frames.
    interval: Option<Duration>,
}

impl Frames {
    /// When the last frame came.
    pub(super) fn last(&self) -> Option<Instant> {
        self.0.iter().filter_map(|camera| camera.last).max()
    }

    /// When there will be a new frame of each camera, if they go on as before.
    pub(super) fn expected(&self) -> Option<Instant> {
        let expected: Option<Vec<Instant>> =
            self.0.iter().map(|camera| Some(camera.last? + camera.interval?)).collect();
        expected?.into_iter().max()
    }

    fn all_newer_than(&self, before: &Self) -> bool {
        self.0.iter().zip(&before.0).all(|(now, before)| now.frames > before.frames)
    }
}

impl Arrivals {
    pub(super) fn new(cameras: usize) -> Self {
        Self { frames: Mutex::new(Frames(vec![Camera::default(); cameras])), arrived: Notify::new() }
    }

    /// A frame of a camera came off the network at `at`.
    pub(super) fn note(&self, camera: usize, at: Instant) {
        if let Some(camera) = self.lock().0.get_mut(camera) {
            camera.frames += 1;
            camera.interval = camera.last.map(|last| at.saturating_duration_since(last));
            camera.last = Some(at);
        }
        self.arrived.notify_one();
    }

    /// What has come so far.
    pub(super) fn frames(&self) -> Frames {
        self.lock().clone()
    }

    /// Waits until each camera has a newer frame than it had `before`, but not beyond `end`. For one waiting task.
    pub(super) async fn wait_for_all(&self, before: &Frames, end: Instant) {
        // A camera that is slow or stopped is judged by its age.
        let _ = tokio::time::timeout_at(end.into(), self.all_newer(before)).await;
    }

    /// Waits until each camera has a newer frame than it had `before`. For one waiting task.
    pub(super) async fn all_newer(&self, before: &Frames) {
        while !self.lock().all_newer_than(before) {
            self.arrived.notified().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Frames> {
        // Whole after every statement.
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn the_wait_ends_with_the_last_cameras_new_frame() {
        let arrivals = Arrivals::new(2);
        let start = Instant::now();
        arrivals.note(0, start);
        let before = arrivals.frames();
        let wait = async {
            arrivals.wait_for_all(&before, start + 2 * PATIENCE).await;
            arrivals.frames().0.iter().map(|camera| camera.frames).collect::<Vec<_>>()
        };
        let frames = async {
            for (camera, seconds) in [(0, 1), (0, 2), (1, 3)] {
                tokio::task::yield_now().await;
                arrivals.note(camera, start + Duration::from_secs(seconds));
            }
        };
        let both = tokio::time::timeout(PATIENCE, async { tokio::join!(wait, frames) });
        assert_eq!(both.await.expect("the wait ends").0, [3, 1]);
        assert_eq!(arrivals.frames().last(), Some(start + Duration::from_secs(3)));
    }

    #[test]
    fn the_next_frames_are_expected_after_the_slowest_cameras_interval() {
        let arrivals = Arrivals::new(2);
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        [(0, 0), (1, 5), (0, 30)].into_iter().for_each(|(camera, time)| arrivals.note(camera, at(time)));
        assert_eq!(arrivals.frames().expected(), None, "nobody knows how fast the second one is");
        arrivals.note(1, at(65));
        assert_eq!(arrivals.frames().expected(), Some(at(125)));
        assert_eq!(arrivals.frames().last(), Some(at(65)));
    }

    #[tokio::test]
    async fn the_wait_for_a_stopped_camera_ends_without_it() {
        let arrivals = Arrivals::new(2);
        let before = arrivals.frames();
        arrivals.note(0, Instant::now());
        let end = Instant::now() + Duration::from_millis(25);
        let wait = arrivals.wait_for_all(&before, end);
        tokio::time::timeout(PATIENCE, wait).await.expect("the wait ends");
        assert!(Instant::now() >= end);
    }
}
