//! The transport of robots: `r2r`, on the client library (`rcl`) and the middleware of the ROS 2 that is sourced.
//!
//! Where it departs from how the crate is commonly used:
//!
//! - A thread owns the node and spins it; all else reaches the node by jobs that this thread does between two spins.
//! - Topics carry serialised messages, read and written by [`cdr`](crate::ros::cdr): one copy less for an image, and damaged
//!   payloads are counted instead of lost. The message's type support must be in what was sourced at build time.
//! - The crate's streams keep the oldest ten messages and drop newer ones. A spin takes at most one message of a topic, and
//!   the same thread empties the stream before it spins again, so a stream never holds a second one. What comes too fast waits
//!   in the middleware, which keeps the newest.
//! - The crate has no serialised services. Theirs are typed, and converted by way of their serialised form.
//! - `rcl` reads the command line of the process by itself and remaps names once more; see [`Node::name_for_rcl`].
//!
//! What it cannot do: tell how many messages were lost, join another domain than that of the environment, and withdraw a
//! single subscription or service at once (both go with the next message, or with the node).

mod server;
mod spinner;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::Duration,
};

use r2r::{PublisherUntyped, QosProfile};
use tokio::{runtime::Handle, sync::watch, time::timeout};

use super::{
    error::RosError,
    name::NodeName,
    options::{Network, NodeOptions},
    qos::Qos,
    subscription::Inbox,
};
use crate::ros::{cdr, msg::Message};
pub(super) use server::Server;
use spinner::{Job, Spinner, Tap};

/// How long a shutdown waits for the node's thread; what is not done by then is left to the end of the process.
const THREAD_END: Duration = Duration::from_millis(700);

/// What this transport is, for the log.
pub(super) fn description() -> String {
    let middleware = std::env::var("RMW_IMPLEMENTATION").unwrap_or_default();
    let middleware = if middleware.is_empty() { "its default middleware" } else { &middleware };
    format!("r2r on ROS 2 {}, {middleware}", r2r::ROS_DISTRO)
}

/// The node's handle: its thread ends when this is dropped or closed.
pub(super) struct Node {
    name: NodeName,
    /// Whether `rcl` was given the same remappings as we, by the command line.
    rcl_remaps: bool,
    jobs: mpsc::Sender<Job>,
    stop: watch::Sender<bool>,
    thread: Mutex<Option<JoinHandle<()>>>,
    runtime: Handle,
}

impl Node {
    pub(super) fn open(
        name: &NodeName,
        network: Network,
        _socket_receive_buffer: usize,
        runtime: Handle,
    ) -> Result<Self, RosError> {
        let action = || format!("create node {}", name.qualified());
        check_environment(network).map_err(|problem| middleware(action(), problem))?;
        let (jobs, queue) = mpsc::channel();
        let (ready, opened) = mpsc::sync_channel(1);
        let stop = watch::Sender::new(false);
        let (base, namespace, stopping) =
            (name.base().to_owned(), name.namespace().to_owned(), stop.subscribe());
        let thread = std::thread::Builder::new()
            .name("ros".to_owned())
            .spawn(move || match Spinner::open(&base, &namespace) {
                Ok(spinner) => {
                    // Nobody waits for the answer any more where the opener has given up.
                    let _ = ready.send(Ok(()));
                    spinner.run(&queue, &stopping);
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                }
            })
            .map_err(|e| middleware(action(), e))?;
        match opened.recv() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(middleware(action(), error)),
            // The crate panics, with rcl's words, where rcl does not like the command line or the environment.
            Err(_) => {
                return Err(middleware(
                    action(),
                    "ROS 2 refused the command line or the environment, see above",
                ));
            }
        }
        Ok(Self {
            name: name.clone(),
            rcl_remaps: std::env::args_os().any(|argument| argument == "--ros-args"),
            jobs,
            stop,
            thread: Mutex::new(Some(thread)),
            runtime,
        })
    }

    pub(super) fn subscribe<M: Message>(
        self: &Arc<Self>,
        topic: &str,
        qos: Qos,
        inbox: Arc<Inbox<M>>,
    ) -> Result<Reader<M>, RosError> {
        let state = Arc::<TapState>::default();
        let tap = Tap::new(topic.to_owned(), type_name::<M>(), inbox, Arc::clone(&state));
        let name = self.name_for_rcl(topic);
        self.call(move |spinner| spinner.subscribe(&name, &type_name::<M>(), reader_profile(qos), tap))?
            .map_err(|e| middleware(format!("subscribe to {topic} ({})", type_name::<M>()), e))?;
        Ok(Reader { state, message: std::marker::PhantomData })
    }

    pub(super) fn advertise<M: Message>(
        self: &Arc<Self>,
        topic: &str,
        qos: Qos,
    ) -> Result<Writer<M>, RosError> {
        let name = self.name_for_rcl(topic);
        let publisher = self
            .call(move |spinner| spinner.advertise(&name, &type_name::<M>(), profile(qos, qos.depth)))?
            .map_err(|e| middleware(format!("publish {topic} ({})", type_name::<M>()), e))?;
        Ok(Writer {
            node: Arc::downgrade(self),
            topic: topic.to_owned(),
            publisher: Mutex::new(Some(publisher)),
            message: std::marker::PhantomData,
        })
    }

    /// Leaves the network: streams and node are gone when the thread has ended.
    pub(super) async fn close(&self) {
        self.stop.send_replace(true);
        let Some(thread) = lock(&self.thread).take() else { return };
        let end = tokio::task::spawn_blocking(move || thread.join());
        match timeout(THREAD_END, end).await {
            Ok(Ok(Ok(()))) => {}
            Ok(_) => tracing::error!("the node's thread has crashed"),
            Err(_) => tracing::debug!("the middleware still says good-bye at shutdown"),
        }
    }

    /// Has the node's thread do a job and waits for its result, a few milliseconds.
    fn call<R: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Spinner) -> R + Send + 'static,
    ) -> Result<R, RosError> {
        let (reply, answer) = mpsc::sync_channel(1);
        let job: Job = Box::new(move |spinner| {
            // The one who asked waits below.
            let _ = reply.send(job(spinner));
        });
        self.jobs.send(job).map_err(|_| RosError::ShutDown)?;
        answer.recv().map_err(|_| RosError::ShutDown)
    }

    /// The name that `rcl` turns into `resolved`. Where it was given the same remappings as we it applies them to every
    /// name, ours included, which by then are remapped: two cameras that swap their names would swap them twice.
    fn name_for_rcl(&self, resolved: &str) -> String {
        if self.rcl_remaps { self.name.before_remapping(resolved).to_owned() } else { resolved.to_owned() }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        // Some milliseconds. A thread that still takes its node apart while the process ends crashes in what the middleware
        // has already destroyed.
        if let Some(thread) = lock(&self.thread).take() {
            // A panic has been reported when it came.
            let _ = thread.join();
        }
    }
}

/// The sending end of a topic.
pub(super) struct Writer<M> {
    node: Weak<Node>,
    topic: String,
    /// `None` only while it is dropped.
    publisher: Mutex<Option<PublisherUntyped>>,
    message: std::marker::PhantomData<fn(M)>,
}

impl<M: Message> Writer<M> {
    pub(super) fn write(&self, message: M) -> Result<(), RosError> {
        if self.node.upgrade().is_none_or(|node| *node.stop.borrow()) {
            return Err(RosError::ShutDown);
        }
        let action = || format!("publish on {}", self.topic);
        let bytes = cdr::encode(&message).map_err(|e| middleware(action(), e))?;
        let publisher = lock(&self.publisher);
        let publisher = publisher.as_ref().ok_or(RosError::ShutDown)?;
        publisher.publish_raw(&bytes).map_err(|error| match error {
            r2r::Error::RCL_RET_TIMEOUT => RosError::Congested { topic: self.topic.clone() },
            // Its node is gone.
            r2r::Error::RCL_RET_PUBLISHER_INVALID => RosError::ShutDown,
            other => middleware(action(), other),
        })
    }

    pub(super) fn subscriber_count(&self) -> usize {
        let publisher = lock(&self.publisher);
        publisher.as_ref().and_then(|p| p.get_inter_process_subscription_count().ok()).unwrap_or(0)
    }
}

impl<M> Drop for Writer<M> {
    fn drop(&mut self) {
        if let (Some(node), Some(publisher)) = (self.node.upgrade(), lock(&self.publisher).take()) {
            // A thread that has ended took its publishers along.
            let _ = node.jobs.send(Box::new(move |spinner| spinner.withdraw(publisher)));
        }
    }
}

/// The receiving end of a topic.
pub(super) struct Reader<M> {
    state: Arc<TapState>,
    message: std::marker::PhantomData<fn() -> M>,
}

/// What a reader and the node's thread share.
#[derive(Default)]
struct TapState {
    publishers: AtomicUsize,
    dropped: AtomicBool,
}

impl<M: Message> Reader<M> {
    /// As of the last tenth of a second.
    pub(super) fn publisher_count(&self) -> usize {
        self.state.publishers.load(Ordering::Relaxed)
    }
}

impl<M> Drop for Reader<M> {
    fn drop(&mut self) {
        self.state.dropped.store(true, Ordering::Relaxed);
    }
}

/// The crate's context reads domain and reach from the environment and takes no others.
fn check_environment(network: Network) -> Result<(), String> {
    let lookup = |name: &str| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
    let environment = NodeOptions::new("").network(lookup).map_err(|e| e.to_string())?;
    if environment == network {
        return Ok(());
    }
    Err(format!(
        "this transport takes domain and reach from the environment, which says {environment:?}; expected {network:?}: set \
         ROS_DOMAIN_ID={} and ROS_LOCALHOST_ONLY={}",
        network.domain_id,
        u8::from(network.localhost_only)
    ))
}

fn type_name<M: Message>() -> String {
    format!("{}/msg/{}", M::PACKAGE, M::NAME)
}

fn reader_profile(qos: Qos) -> QosProfile {
    profile(qos, qos.max_samples.map_or(qos.depth, |samples| samples.min(qos.depth)))
}

fn profile(qos: Qos, depth: usize) -> QosProfile {
    let profile = QosProfile::default().keep_last(depth.max(1));
    let profile = if qos.reliable { profile.reliable() } else { profile.best_effort() };
    if qos.latched { profile.transient_local() } else { profile.volatile() }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is under these locks is taken or left whole, so a panic elsewhere has not broken it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn middleware(action: String, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> RosError {
    RosError::Middleware { action, source: source.into() }
}
