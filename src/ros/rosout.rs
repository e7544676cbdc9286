//! The log on `/rosout`, where `rqt_console` and `ros2 topic echo /rosout` find it.
//!
//! [`layer`] takes lines from the first moment on, into a queue of bounded length; [`RosoutQueue::publish`] sends them once
//! there is a node. Writing a line never waits: what finds the queue full is dropped and counted. Sending may wait for a
//! subscriber that is slow, so a thread of its own does it. The middleware's own lines are left out, since sending them could
//! cause further ones.

use std::{
    fmt::{self, Write as _},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::mpsc;
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{Layer, layer::Context};

use super::{
    msg::{Log, Time},
    transport::{Publisher, Qos, RosError, RosNode},
};

/// Lines that wait for being sent.
const QUEUE: usize = 1024;

/// Longest text of a line, in bytes.
const MAX_TEXT: usize = 8 << 10;

/// What must not be sent, by the beginning of its target.
const OWN_TRANSPORT: [&str; 4] = ["rustdds", "ros2_client", "r2r", "mio"];

/// What both ends of the queue count.
#[derive(Debug, Default)]
struct Counts {
    /// Lines that were taken.
    taken: AtomicU64,
    /// Lines of these that were sent, or tried to.
    done: AtomicU64,
    /// Lines that are lost and nobody was told of yet.
    dropped: AtomicU64,
}

/// The two ends of the queue: a layer for `tracing_subscriber`, and what sends the lines.
pub fn layer() -> (RosoutLayer, RosoutQueue) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let counts = Arc::<Counts>::default();
    (RosoutLayer { sender, counts: Arc::clone(&counts) }, RosoutQueue { receiver, counts })
}

/// Takes the lines of the log.
#[derive(Debug)]
pub struct RosoutLayer {
    sender: mpsc::Sender<Log>,
    counts: Arc<Counts>,
}

/// The lines that wait for being sent.
#[derive(Debug)]
pub struct RosoutQueue {
    receiver: mpsc::Receiver<Log>,
    counts: Arc<Counts>,
}

/// What sends the lines.
#[derive(Debug)]
pub struct RosoutSender {
    counts: Arc<Counts>,
}

impl RosoutSender {
    /// Waits until the lines that were written before are on their way, but not longer than `patience`.
    pub async fn flush(&self, patience: Duration) {
        let taken = self.counts.taken.load(Ordering::Relaxed);
        let start = Instant::now();
        while self.counts.done.load(Ordering::Relaxed) < taken && start.elapsed() < patience {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

impl<S: Subscriber> Layer<S> for RosoutLayer {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let mut line = Line::default();
        event.record(&mut line);
        // Records of the `log` crate come with their target as a field.
        let target = line.log_target.as_deref().unwrap_or(metadata.target());
        if is_own(target) {
            return;
        }
        let log = Log {
            stamp: Time::now(),
            level: severity_of(metadata.level()),
            name: String::new(), // the node's, which is not known yet
            msg: line.text,
            file: metadata.file().unwrap_or_default().to_owned(),
            function: target.to_owned(),
            line: metadata.line().unwrap_or_default(),
        };
        let counter =
            if self.sender.try_send(log).is_ok() { &self.counts.taken } else { &self.counts.dropped };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

impl RosoutQueue {
    /// Sends what waits and whatever comes, in a thread that ends with the first line after the node.
    ///
    /// # Errors
    /// A refusal of the transport or, as [`RosError::Middleware`], of the system that gives no thread.
    pub fn publish(mut self, node: &RosNode) -> Result<RosoutSender, RosError> {
        let publisher = node.publisher::<Log>("/rosout", Qos::rosout())?;
        // As `rcl` names loggers: namespace and name with dots.
        let name = node.name().qualified().trim_start_matches('/').replace('/', ".");
        let sender = RosoutSender { counts: Arc::clone(&self.counts) };
        let run = move || {
            while let Some(log) = self.receiver.blocking_recv() {
                let sent = self.send(&publisher, &name, log);
                self.counts.done.fetch_add(1, Ordering::Relaxed);
                if let Err(RosError::ShutDown) = sent {
                    break;
                }
            }
        };
        std::thread::Builder::new().name("rosout".to_owned()).spawn(run).map_err(|e| {
            RosError::Middleware { action: "start the thread of /rosout".to_owned(), source: e.into() }
        })?;
        Ok(sender)
    }

    /// Nothing here may write to the log.
    fn send(&self, publisher: &Publisher<Log>, name: &str, log: Log) -> Result<(), RosError> {
        let dropped = &self.counts.dropped;
        let lost = dropped.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let notice = Log {
                name: name.to_owned(),
                level: Log::WARN,
                msg: format!(
                    "{lost} lines of the log were dropped: they came faster than they could be sent"
                ),
                ..log.clone()
            };
            if let Err(error) = publisher.publish(notice) {
                dropped.fetch_add(lost + 1, Ordering::Relaxed);
                return Err(error);
            }
        }
        let sent = publisher.publish(Log { name: name.to_owned(), ..log });
        if sent.is_err() {
            dropped.fetch_add(1, Ordering::Relaxed);
        }
        sent
    }
}

fn is_own(target: &str) -> bool {
    let root = target.split("::").next().unwrap_or(target);
    OWN_TRANSPORT.contains(&root)
}

fn severity_of(level: &Level) -> u8 {
    match *level {
        Level::ERROR => Log::ERROR,
        Level::WARN => Log::WARN,
        Level::INFO => Log::INFO,
        Level::DEBUG | Level::TRACE => Log::DEBUG,
    }
}

/// The text of an event: its message, then its other fields.
#[derive(Default)]
struct Line {
    text: String,
    log_target: Option<String>,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "message" => {
                let rest = std::mem::take(&mut self.text);
                self.append(format_args!("{value:?}{rest}"));
            }
            name if name.starts_with("log.") => {}
            name => self.append(format_args!(" {name}={value:?}")),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "log.target" => self.log_target = Some(value.to_owned()),
            _ => self.record_debug(field, &value),
        }
    }
}

impl Line {
    fn append(&mut self, text: fmt::Arguments<'_>) {
        // Writing to a string cannot fail, and the other end of a cut is not missed.
        let _ = self.text.write_fmt(text);
        if self.text.len() > MAX_TEXT {
            let end = (0..=MAX_TEXT).rev().find(|&end| self.text.is_char_boundary(end)).unwrap_or(0);
            self.text.truncate(end);
            self.text.push('…');
        }
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    fn lines(write: impl FnOnce()) -> (Vec<Log>, u64) {
        let (layer, mut queue) = layer();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), write);
        let lines = std::iter::from_fn(|| queue.receiver.try_recv().ok()).collect();
        (lines, queue.counts.dropped.load(Ordering::Relaxed))
    }

    #[test]
    fn lines_keep_their_severity_text_and_origin() {
        let (lines, _) = lines(|| {
            tracing::error!("no {}", "engine");
            tracing::warn!(camera = "front", age = 5, "stale");
            tracing::info!("ready");
            tracing::debug!("details");
            tracing::trace!("more details");
        });
        let told: Vec<(u8, &str)> = lines.iter().map(|line| (line.level, line.msg.as_str())).collect();
        assert_eq!(
            told,
            [
                (40, "no engine"),
                (30, "stale camera=\"front\" age=5"),
                (20, "ready"),
                (10, "details"),
                (10, "more details")
            ]
        );
        assert!(
            lines[0].file.ends_with("rosout.rs") && lines[0].line > 0 && lines[0].function.contains("rosout")
        );
        assert!(lines[0].stamp.sec > 1_600_000_000);
    }

    #[test]
    fn the_middlewares_lines_are_left_out() {
        let (lines, _) = lines(|| {
            tracing::error!(target: "rustdds::rtps::writer", "a");
            tracing::error!(target: "ros2_client::node", "b");
            tracing::error!(target: "log", { log.target = "rustdds::network" }, "c");
            tracing::error!(target: "rustdds_like", "d");
        });
        let told: Vec<&str> = lines.iter().map(|line| line.msg.as_str()).collect();
        assert_eq!(told, ["d"]);
    }

    #[test]
    fn a_full_queue_drops_and_counts() {
        let (lines, dropped) = lines(|| (0..QUEUE + 7).for_each(|i| tracing::info!("{i}")));
        assert_eq!((lines.len(), dropped), (QUEUE, 7));
        assert_eq!(lines[0].msg, "0");
    }

    #[test]
    fn an_endless_line_is_cut_between_characters() {
        let (lines, _) = lines(|| tracing::info!("{}", "é".repeat(MAX_TEXT)));
        assert!(lines[0].msg.len() <= MAX_TEXT + '…'.len_utf8() && lines[0].msg.ends_with("é…"));
    }
}
