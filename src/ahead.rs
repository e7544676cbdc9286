//! Work that is done ahead, on a thread of its own, so that its result is there when it is asked for.
//!
//! Of what is offered only the newest counts:
//!
//! | when | what happens |
//! |---|---|
//! | an offer comes while an older one waits | the older one is dropped and never worked on |
//! | a result is there and a newer one comes | the older one is dropped |
//! | a result is asked for while work is under way | that is waited for: it is newer than what is there, and sooner ready than what begins now |
//! | meanwhile something newer is offered | it is not waited for, but for the next time |

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
};

/// What the thread is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doing {
    Nothing,
    Working,
    /// Working on what nobody wants any more.
    Void,
}

struct State<I, P> {
    waiting: Option<I>,
    doing: Doing,
    ready: Option<P>,
    /// How often work ended.
    finished: u64,
    superseded: u64,
    stopped: bool,
}

struct Shared<I, P> {
    state: Mutex<State<I, P>>,
    changed: Condvar,
}

impl<I, P> Shared<I, P> {
    /// Whole after every statement, so a poisoned lock is as good as any.
    fn lock(&self) -> MutexGuard<'_, State<I, P>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State<I, P>>) -> MutexGuard<'a, State<I, P>> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self, mut prepare: impl FnMut(I) -> P) {
        let mut state = self.lock();
        while !state.stopped {
            let Some(item) = state.waiting.take() else {
                state = self.wait(state);
                continue;
            };
            state.doing = Doing::Working;
            drop(state);
            let product = catch_unwind(AssertUnwindSafe(|| prepare(item)));
            state = self.lock();
            let wanted = state.doing == Doing::Working;
            state.doing = Doing::Nothing;
            state.finished += 1;
            let dropped = match product {
                Ok(product) if wanted => state.ready.replace(product).is_some(),
                Ok(_) => true,
                Err(_) => {
                    // Its message was printed by the panic itself.
                    tracing::error!("work that was done ahead panicked; it will be done when its turn comes");
                    false
                }
            };
            state.superseded += u64::from(dropped);
            self.changed.notify_all();
        }
    }
}

/// Makes `P` out of `I` ahead. Dropping it waits for the work in progress.
pub struct Ahead<I, P> {
    shared: Arc<Shared<I, P>>,
    thread: Option<JoinHandle<()>>,
}

impl<I: Send + 'static, P: Send + 'static> Ahead<I, P> {
    /// Starts the thread, which does `prepare` with what is offered.
    ///
    /// # Errors
    /// Where the system gives no thread.
    pub fn spawn(name: &str, prepare: impl FnMut(I) -> P + Send + 'static) -> std::io::Result<Self> {
        let state = State {
            waiting: None,
            doing: Doing::Nothing,
            ready: None,
            finished: 0,
            superseded: 0,
            stopped: false,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let own = shared.clone();
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || own.work(prepare))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Offers something newer than all before. Returns at once.
    pub fn offer(&self, item: I) {
        let mut state = self.shared.lock();
        state.superseded += u64::from(state.waiting.replace(item).is_some());
        self.shared.changed.notify_all();
    }

    /// The newest result that was not taken yet, once the work under way has ended; None where there is none.
    pub fn take(&self) -> Option<P> {
        let mut state = self.shared.lock();
        // What was offered last is under way as well where the thread is about to begin with it.
        let next = match state.doing {
            Doing::Working => 1,
            Doing::Nothing => u64::from(state.waiting.is_some()),
            Doing::Void => 2 * u64::from(state.waiting.is_some()),
        };
        let end = state.finished + next;
        while state.finished < end && (state.waiting.is_some() || state.doing == Doing::Working) {
            state = self.shared.wait(state);
        }
        state.ready.take()
    }

    /// Forgets all that was offered before. Returns at once.
    pub fn forget(&self) {
        let mut state = self.shared.lock();
        let dropped = u64::from(state.waiting.take().is_some()) + u64::from(state.ready.take().is_some());
        state.superseded += dropped;
        if state.doing == Doing::Working {
            state.doing = Doing::Void;
        }
        // Whoever waits has nothing to wait for.
        self.shared.changed.notify_all();
    }

    /// How many offers were dropped, worked on or not.
    pub fn superseded(&self) -> u64 {
        self.shared.lock().superseded
    }
}

impl<I, P> Drop for Ahead<I, P> {
    fn drop(&mut self) {
        self.shared.lock().stopped = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that works ahead ended by a panic");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Says what it begins, and ends with it when it is told to.
    fn gated() -> (mpsc::Receiver<u32>, mpsc::Sender<()>, Ahead<u32, u32>) {
        let (begun, begins) = mpsc::channel();
        let (gate, open) = mpsc::channel::<()>();
        let ahead = Ahead::spawn("ahead", move |item| {
            begun.send(item).ok();
            open.recv().ok();
            item
        })
        .unwrap();
        (begins, gate, ahead)
    }

    fn wait_until_idle(ahead: &Ahead<u32, u32>) {
        let mut state = ahead.shared.lock();
        while state.waiting.is_some() || state.doing != Doing::Nothing {
            state = ahead.shared.wait(state);
        }
    }

    #[test]
    fn nothing_offered_is_nothing_taken() {
        let (_begins, _gate, ahead) = gated();
        assert_eq!(ahead.take(), None);
        assert_eq!(ahead.superseded(), 0);
    }

    #[test]
    fn an_offer_that_gave_way_to_a_newer_one_is_never_worked_on() {
        let (begins, gate, ahead) = gated();
        ahead.offer(1);
        assert_eq!(begins.recv(), Ok(1));
        ahead.offer(2);
        ahead.offer(3);
        assert_eq!(ahead.superseded(), 1);
        gate.send(()).unwrap();
        assert_eq!(begins.recv(), Ok(3));
        gate.send(()).unwrap();
        wait_until_idle(&ahead);
        // The result of the first was there, and gave way to the newer one.
        assert_eq!(ahead.take(), Some(3));
        assert_eq!(ahead.superseded(), 2);
        assert_eq!(ahead.take(), None);
        drop(gate);
        assert_eq!(begins.try_iter().next(), None, "nothing is worked on twice");
    }

    /// Takes on a thread of its own.
    fn taker(ahead: &Arc<Ahead<u32, u32>>) -> std::thread::JoinHandle<Option<u32>> {
        let own = ahead.clone();
        std::thread::spawn(move || own.take())
    }

    #[test]
    fn work_under_way_is_waited_for_though_an_older_result_is_there() {
        let (begins, gate, ahead) = gated();
        let ahead = Arc::new(ahead);
        ahead.offer(1);
        assert_eq!(begins.recv(), Ok(1));
        gate.send(()).unwrap();
        wait_until_idle(&ahead);
        ahead.offer(2);
        let taker = taker(&ahead);
        assert_eq!(begins.recv(), Ok(2));
        gate.send(()).unwrap();
        assert_eq!(taker.join().unwrap(), Some(2));
        assert_eq!(ahead.superseded(), 1);
    }

    #[test]
    fn what_waits_behind_the_work_under_way_is_for_the_next_time() {
        let (begins, gate, ahead) = gated();
        let ahead = Arc::new(ahead);
        ahead.offer(1);
        assert_eq!(begins.recv(), Ok(1));
        ahead.offer(2);
        let first = taker(&ahead);
        gate.send(()).unwrap();
        assert_eq!(begins.recv(), Ok(2));
        // The first may have come to take only now, and then waits for the second.
        gate.send(()).unwrap();
        let first = first.join().unwrap();
        let second = ahead.take();
        assert!(
            matches!((first, second), (Some(1), Some(2)) | (Some(2), None)),
            "{first:?} and then {second:?}"
        );
    }

    #[test]
    fn what_was_forgotten_never_comes_and_what_is_offered_afterwards_does() {
        let (begins, gate, ahead) = gated();
        ahead.offer(1);
        assert_eq!(begins.recv(), Ok(1));
        ahead.offer(2);
        ahead.forget();
        assert_eq!(ahead.take(), None, "the one under way is nobody's");
        ahead.offer(3);
        gate.send(()).unwrap();
        assert_eq!(begins.recv(), Ok(3));
        gate.send(()).unwrap();
        assert_eq!(ahead.take(), Some(3));
        assert_eq!(ahead.superseded(), 2);
    }

    #[test]
    fn a_panic_loses_its_own_result_alone() {
        let ahead = Ahead::spawn("ahead", |item: u32| 100 / item).unwrap();
        ahead.offer(0);
        assert_eq!(ahead.take(), None);
        ahead.offer(4);
        assert_eq!(ahead.take(), Some(25));
    }

    #[test]
    fn dropping_the_owner_ends_the_thread() {
        let (begins, gate, ahead) = gated();
        ahead.offer(1);
        assert_eq!(begins.recv(), Ok(1));
        let shared = Arc::downgrade(&ahead.shared);
        drop(gate);
        drop(ahead);
        assert!(shared.upgrade().is_none(), "the thread still holds what it shares");
    }
}
