//! The one OS thread that owns a policy.
//!
//! libtorch and CUDA are never touched from the async side: it sends observations and gets predictions back over
//! channels. Of the observations that wait, only the newest is answered. Dropping the [`PolicyThread`] stops the
//! thread after the prediction in progress and joins it; one that hangs is left behind, so that the node still ends.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tokio::sync::{oneshot, watch};

use super::policy::{PolicyError, PredictRequest, Prediction};

/// What the thread does with each request.
pub type Predict = Box<dyn FnMut(&PredictRequest) -> Result<Prediction, PolicyError>>;

/// How long the end waits for the prediction in progress.
const LAST_PREDICTION: Duration = Duration::from_millis(800);

/// How far the policy is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness<T> {
    /// Weights are being read.
    Loading,
    /// Predictions are made; what the loader said of itself.
    Ready(T),
    /// Loading failed: why.
    Failed(String),
}

struct Waiting {
    request: PredictRequest,
    reply: oneshot::Sender<Result<Prediction, PolicyError>>,
}

#[derive(Default)]
struct Mailbox {
    waiting: Option<Waiting>,
    stopped: bool,
}

#[derive(Default)]
struct Shared {
    mailbox: Mutex<Mailbox>,
    changed: Condvar,
}

impl Shared {
    /// The mailbox holds no invariant that a panic could break, so a poisoned lock is as good as any.
    fn lock(&self) -> MutexGuard<'_, Mailbox> {
        self.mailbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop(&self) {
        let mut mailbox = self.lock();
        mailbox.stopped = true;
        if let Some(waiting) = mailbox.waiting.take() {
            // The asker may be gone already.
            let _ = waiting.reply.send(Err(PolicyError::Stopped));
        }
        self.changed.notify_all();
    }

    /// The next request, or None when it is time to stop.
    fn next(&self) -> Option<Waiting> {
        let mut mailbox = self.lock();
        loop {
            if mailbox.stopped {
                return None;
            }
            if let Some(waiting) = mailbox.waiting.take() {
                return Some(waiting);
            }
            mailbox = self.changed.wait(mailbox).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Owner of the thread.
pub struct PolicyThread<T> {
    shared: Arc<Shared>,
    readiness: watch::Receiver<Readiness<T>>,
    thread: Option<JoinHandle<()>>,
}

impl<T: Clone + Send + Sync + 'static> PolicyThread<T> {
    /// Starts the thread; `load` runs on it and returns the predictor and what is to be known of it.
    ///
    /// # Errors
    /// Where the system gives no thread.
    pub fn spawn(
        load: impl FnOnce() -> Result<(Predict, T), PolicyError> + Send + 'static,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let (state, readiness) = watch::channel(Readiness::Loading);
        let own = shared.clone();
        let thread = std::thread::Builder::new().name("policy".to_owned()).spawn(move || {
            match catch(load) {
                Ok((predict, about)) => {
                    state.send_replace(Readiness::Ready(about));
                    serve(&own, predict);
                }
                Err(error) => {
                    tracing::error!("the policy cannot be loaded: {error}");
                    state.send_replace(Readiness::Failed(error.to_string()));
                }
            }
            own.stop();
        })?;
        Ok(Self { shared, readiness, thread: Some(thread) })
    }

    /// Follows the loading.
    pub fn readiness(&self) -> watch::Receiver<Readiness<T>> {
        self.readiness.clone()
    }

    /// Asks for a prediction. A request that still waits is answered [`PolicyError::Superseded`].
    ///
    /// # Errors
    /// What [`Policy::predict`](super::policy::Policy::predict) returns, and [`PolicyError::Stopped`].
    pub async fn predict(&self, request: PredictRequest) -> Result<Prediction, PolicyError> {
        let (reply, answer) = oneshot::channel();
        {
            let mut mailbox = self.shared.lock();
            if mailbox.stopped {
                return Err(PolicyError::Stopped);
            }
            if let Some(old) = mailbox.waiting.replace(Waiting { request, reply }) {
                // The asker may be gone already.
                let _ = old.reply.send(Err(PolicyError::Superseded));
            }
            self.shared.changed.notify_one();
        }
        answer.await.unwrap_or(Err(PolicyError::Stopped))
    }
}

impl<T> Drop for PolicyThread<T> {
    fn drop(&mut self) {
        self.shared.stop();
        let Some(thread) = self.thread.take() else { return };
        let deadline = Instant::now() + LAST_PREDICTION;
        while !thread.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        if !thread.is_finished() {
            tracing::warn!("the prediction in progress does not end; it is left behind");
        } else if thread.join().is_err() {
            tracing::error!("the policy's thread ended by a panic");
        }
    }
}

fn serve(shared: &Shared, mut predict: Predict) {
    while let Some(Waiting { request, reply }) = shared.next() {
        let answer = catch(|| predict(&request));
        // The asker may be gone already.
        let _ = reply.send(answer);
    }
}

/// Turns a panic into an error: a running node outlives a defect in one prediction.
fn catch<R>(work: impl FnOnce() -> Result<R, PolicyError>) -> Result<R, PolicyError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "no message".to_owned());
        Err(PolicyError::Panicked(text))
    })
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::{
        model::policy::{Noise, Timing},
        observation::Observation,
    };

    fn prediction(seed: u64) -> Prediction {
        Prediction {
            actions: Vec::new(),
            normalised: Default::default(),
            seed: Some(seed),
            timing: Timing::default(),
        }
    }

    fn request(seed: u64) -> PredictRequest {
        PredictRequest::new(Observation::default(), Noise::Seed(seed))
    }

    fn seed_of(request: &PredictRequest) -> u64 {
        match request.noise {
            Noise::Seed(seed) => seed,
            Noise::Given(_) => 0,
        }
    }

    /// A predictor that says when it begins and goes on when it is told to.
    fn gated() -> (mpsc::Receiver<u64>, mpsc::Sender<()>, PolicyThread<()>) {
        let (begun, begins) = mpsc::channel();
        let (gate, open) = mpsc::channel::<()>();
        let thread = PolicyThread::spawn(move || {
            let predict: Predict = Box::new(move |request| {
                let seed = seed_of(request);
                begun.send(seed).ok();
                open.recv().ok();
                Ok(prediction(seed))
            });
            Ok((predict, ()))
        })
        .unwrap();
        (begins, gate, thread)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn only_the_newest_waiting_observation_is_answered() {
        let (begins, gate, thread) = gated();
        let thread = Arc::new(thread);
        let ask = |seed| {
            let thread = thread.clone();
            tokio::spawn(async move { thread.predict(request(seed)).await })
        };
        let first = ask(1);
        assert_eq!(begins.recv().unwrap(), 1);
        let second = ask(2);
        while thread.shared.lock().waiting.is_none() {
            tokio::task::yield_now().await;
        }
        let third = ask(3);
        assert!(matches!(second.await.unwrap(), Err(PolicyError::Superseded)));
        gate.send(()).unwrap();
        gate.send(()).unwrap();
        assert_eq!(first.await.unwrap().unwrap().seed, Some(1));
        assert_eq!(third.await.unwrap().unwrap().seed, Some(3));
    }

    #[tokio::test]
    async fn a_panic_in_one_prediction_is_an_error_and_the_next_one_works() {
        let thread = PolicyThread::spawn(|| {
            let predict: Predict = Box::new(|request| match seed_of(request) {
                0 => panic!("division by zero"),
                seed => Ok(prediction(seed)),
            });
            Ok((predict, ()))
        })
        .unwrap();
        let first = thread.predict(request(0)).await;
        assert!(first.unwrap_err().to_string().contains("division by zero"));
        assert_eq!(thread.predict(request(7)).await.unwrap().seed, Some(7));
    }

    #[tokio::test]
    async fn a_failed_load_is_reported_and_requests_are_refused() {
        let thread = PolicyThread::<()>::spawn(|| Err(PolicyError::Panicked("no such file".into()))).unwrap();
        let mut readiness = thread.readiness();
        let state = readiness.wait_for(|state| *state != Readiness::Loading).await.unwrap().clone();
        assert!(matches!(state, Readiness::Failed(reason) if reason.contains("no such file")));
        let answer = thread.predict(request(0)).await;
        assert!(matches!(answer, Err(PolicyError::Stopped)));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn dropping_the_owner_stops_the_thread_and_joins_it() {
        let (begins, gate, thread) = gated();
        let shared = Arc::downgrade(&thread.shared);
        drop((begins, gate));
        drop(thread);
        assert!(shared.upgrade().is_none(), "the thread still holds its mailbox");
    }
}
