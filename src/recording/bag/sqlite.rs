//! SQLite files, in the order of log time and in bounded memory.
//!
//! Messages are read some at a time through the recorder's index of timestamps. Where a page of it or of the table is
//! damaged, the rest is read by row instead, over the damaged rows; rows stand nearly in the order of time, and what is
//! not is brought into it by a small heap. The same way serves a file without the index.
//!
//! Databases have no checksums: a message whose bytes were changed on the disk is given as it stands there.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, VecDeque},
    path::Path,
    sync::Arc,
};

use rusqlite::{Connection, OpenFlags, limits::Limit, types::ValueRef};

use super::{
    BagError, BagReport, Fault, Limits, Topic,
    limits::{NAME_BYTES, RECORD_BYTES},
    message::{Channel, RawMessage},
    qos::Profiles,
    waiting::Waiting,
};
use crate::ros::Stamp;

/// How a database begins.
pub(super) const MAGIC: &[u8] = b"SQLite format 3\0";

/// Messages and bytes that are read at a time.
const BATCH: usize = 256;
const BATCH_BYTES: usize = 4 << 20;
/// Messages that wait for earlier ones where rows are read in their own order.
const WINDOW: usize = 1024;
/// Most steps of the database's machine: so many, and so many more per byte of the file; counted some at a time.
const STEPS: u64 = 5_000_000;
const STEPS_PER_BYTE: u64 = 8;
const STEPS_AT_ONCE: u16 = 10_000;
/// Most topics that are read.
const TOPICS: usize = 65_536;

/// An open database.
pub(super) struct SqliteFile {
    connection: Connection,
    name: String,
    topics: HashMap<i64, Arc<Channel>>,
    qos: HashMap<i64, Profiles>,
    /// Whether timestamps are indexed.
    indexed: bool,
}

impl SqliteFile {
    /// Opens the database. `name` is what it is called in the report.
    pub fn open(path: &Path, name: &str, limits: &Limits, report: &mut BagReport) -> Result<Self, BagError> {
        let not_a_bag = |error: rusqlite::Error| BagError::NotABag {
            path: path.to_owned(),
            expected: "a rosbag2 database with the tables topics and messages",
            found: error.to_string(),
        };
        let connection = connect(path).map_err(not_a_bag)?;
        let length = limits.message.saturating_add(RECORD_BYTES).min(i32::MAX as u64) as i32;
        connection.set_limit(Limit::SQLITE_LIMIT_LENGTH, length).map_err(not_a_bag)?;
        // Pages that refer to each other in circles would be read for ever. All that is read here takes some steps per
        // row, and a row takes more bytes than steps.
        let size = std::fs::metadata(path).map_err(BagError::io(path))?.len();
        let most = STEPS.saturating_add(size.saturating_mul(STEPS_PER_BYTE)) / u64::from(STEPS_AT_ONCE);
        let mut taken = 0_u64;
        let spent = move || {
            taken += 1;
            taken > most
        };
        connection.progress_handler(STEPS_AT_ONCE.into(), Some(spent)).map_err(not_a_bag)?;
        // What the file says is data, not a program.
        connection
            .execute_batch(
                "PRAGMA trusted_schema = OFF; PRAGMA query_only = ON; PRAGMA cell_size_check = ON;",
            )
            .map_err(not_a_bag)?;
        let tables =
            "SELECT COUNT(*) FROM sqlite_master WHERE type = 'table' AND name IN ('topics', 'messages')";
        let count = || connection.query_row(tables, [], |row| row.get::<_, i64>(0));
        let found = match count() {
            Ok(found) => found,
            Err(error) => {
                // A file that was cut off is refused as a whole, unless one asks for what is left of it. Nothing is
                // written: the connection cannot.
                connection.execute_batch("PRAGMA writable_schema = ON").map_err(not_a_bag)?;
                let found = count().map_err(not_a_bag)?;
                report.file(name, Fault::Truncated, error);
                found
            }
        };
        if found != 2 {
            return Err(not_a_bag(rusqlite::Error::QueryReturnedNoRows));
        }
        let mut file = Self {
            indexed: is_indexed(&connection),
            connection,
            name: name.to_owned(),
            topics: HashMap::new(),
            qos: HashMap::new(),
        };
        if let Err(error) = file.read_topics() {
            report.file(name, Fault::Storage, format!("topics: {error}"));
        }
        Ok(file)
    }

    fn read_topics(&mut self) -> rusqlite::Result<()> {
        let mut statement =
            self.connection.prepare("SELECT id, name, type, serialization_format FROM topics ORDER BY id")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let text = |column| -> rusqlite::Result<String> {
                let text: String = row.get(column)?;
                if text.len() > NAME_BYTES { Err(rusqlite::Error::InvalidQuery) } else { Ok(text) }
            };
            if self.topics.len() == TOPICS {
                break;
            }
            let channel = Channel { topic: text(1)?, kind: text(2)?, encoding: text(3)? };
            self.topics.insert(row.get(0)?, Arc::new(channel));
        }
        // The column came with Foxy.
        if let Ok(mut statement) = self.connection.prepare("SELECT id, offered_qos_profiles FROM topics") {
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                self.qos.insert(row.get(0)?, Profiles::Text(row.get(1).unwrap_or_default()));
            }
        }
        Ok(())
    }

    /// Times of the first and the last message; `None` without messages.
    pub fn span(&self, report: &mut BagReport) -> Option<(Stamp, Stamp)> {
        let one = |query: &str| -> rusqlite::Result<Option<i64>> {
            self.connection.query_row(query, [], |row| row.get(0))
        };
        // Two queries: with the index, each takes one look.
        let both = one("SELECT MIN(timestamp) FROM messages")
            .and_then(|first| Ok(first.zip(one("SELECT MAX(timestamp) FROM messages")?)));
        match both {
            Ok(span) => span.map(|(first, last)| (Stamp(first), Stamp(last))),
            Err(error) => {
                report.file(&self.name, Fault::Storage, format!("first and last message: {error}"));
                None
            }
        }
    }

    /// Topics in the order of their ids. `count` reads the whole table once.
    pub fn topics(&self, count: bool, report: &mut BagReport) -> Vec<Topic> {
        let mut counts = None;
        if count {
            match self.counts() {
                Ok(found) => counts = Some(found),
                Err(error) => report.file(&self.name, Fault::Storage, format!("counting messages: {error}")),
            }
        }
        let mut ids: Vec<i64> = self.topics.keys().copied().collect();
        ids.sort_unstable();
        ids.iter()
            .filter_map(|id| {
                let Channel { topic, kind, encoding } = self.topics.get(id)?.as_ref().clone();
                let count = counts.as_ref().map(|counts| counts.get(id).copied().unwrap_or(0));
                let qos = self.qos.get(id).map(Profiles::parse).unwrap_or_default();
                Some(Topic { name: topic, kind, encoding, count, qos })
            })
            .collect()
    }

    fn counts(&self) -> rusqlite::Result<HashMap<i64, u64>> {
        let mut statement =
            self.connection.prepare("SELECT topic_id, COUNT(*) FROM messages GROUP BY topic_id")?;
        let mut rows = statement.query([])?;
        let mut counts = HashMap::new();
        while let Some(row) = rows.next()? {
            counts.insert(row.get(0)?, row.get::<_, i64>(1)?.unsigned_abs());
        }
        Ok(counts)
    }

    /// The messages of the topics that `wanted` names.
    pub fn stream(self, wanted: &dyn Fn(&str) -> bool) -> SqliteStream {
        let mut ids: Vec<i64> =
            self.topics.iter().filter(|(_, channel)| wanted(&channel.topic)).map(|(id, _)| *id).collect();
        ids.sort_unstable();
        let ids = ids.iter().map(i64::to_string).collect::<Vec<_>>().join(",");
        let by_time = self.indexed;
        SqliteStream {
            file: self,
            ids,
            by_time,
            last: None,
            row: i64::MIN,
            step: 1,
            batch: VecDeque::new(),
            waiting: BinaryHeap::new(),
            ended: false,
        }
    }
}

/// Opens a file to read. Nothing is written beside it: a recording may lie where nothing can be written, and an archive
/// should not change by being read. Only where the recorder left a log of unfinished writes is it taken up.
fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags =
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    let log = std::fs::metadata(log).is_ok_and(|log| log.len() > 0);
    if log && let Ok(connection) = Connection::open_with_flags(path, flags) {
        let works =
            connection.query_row("SELECT COUNT(*) FROM sqlite_master", [], |row| row.get::<_, i64>(0));
        if works.is_ok() {
            return Ok(connection);
        }
    }
    let mut uri = String::from("file:");
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'_' | b'-' => {
                uri.push(char::from(*byte))
            }
            _ => uri.push_str(&format!("%{byte:02X}")),
        }
    }
    uri.push_str("?immutable=1");
    Connection::open_with_flags(uri, flags)
}

fn is_indexed(connection: &Connection) -> bool {
    let indexes = "SELECT COUNT(*) FROM pragma_index_list('messages') AS list \
                   JOIN pragma_index_info(list.name) AS info WHERE info.seqno = 0 AND info.name = 'timestamp'";
    connection.query_row(indexes, [], |row| row.get::<_, i64>(0)).is_ok_and(|count| count > 0)
}

/// The messages of a database.
pub(super) struct SqliteStream {
    file: SqliteFile,
    /// Ids of the wanted topics.
    ids: String,
    /// Whether messages are read through the index of timestamps.
    by_time: bool,
    /// Time and row of the last message that was read through the index.
    last: Option<(i64, i64)>,
    /// Last row that was read in the order of rows.
    row: i64,
    /// Rows that are skipped when the next one cannot be read.
    step: i64,
    batch: VecDeque<RawMessage>,
    /// By time and row.
    waiting: BinaryHeap<Reverse<Waiting<(Stamp, i64)>>>,
    ended: bool,
}

/// Some messages.
struct Batch {
    /// With their rows.
    messages: Vec<(i64, RawMessage)>,
    /// Time and row of the last one that was looked at.
    last: Option<(i64, i64)>,
    end: End,
}

/// How a batch ended.
enum End {
    /// More may follow.
    More,
    /// Nothing follows.
    Nothing,
    /// At a row that cannot be read.
    Broken(String),
}

impl SqliteStream {
    pub fn next(&mut self, report: &mut BagReport) -> Option<RawMessage> {
        if self.ids.is_empty() {
            return None;
        }
        loop {
            if self.by_time {
                if let Some(message) = self.batch.pop_front() {
                    return Some(message);
                }
            } else if self.waiting.len() >= WINDOW || self.ended {
                // After a change of order, what the index gave first is still there.
                return self.batch.pop_front().or_else(|| Some(self.waiting.pop()?.0.message));
            }
            if self.ended {
                if self.by_time {
                    return None;
                }
                continue;
            }
            let end = if self.by_time { self.read_by_time(report) } else { self.read_by_row(report) };
            match end {
                End::More => self.step = 1,
                End::Nothing => self.ended = true,
                End::Broken(error) if self.by_time => {
                    report.file(
                        &self.file.name,
                        Fault::Storage,
                        format!("reading by time: {error}; the rest is read by row"),
                    );
                    self.by_time = false;
                }
                End::Broken(error) => {
                    // Once for all rows that are skipped.
                    if self.step == 1 {
                        let text = format!("behind row {}: {error}", self.row);
                        report.file(&self.file.name, Fault::Storage, text);
                    }
                    // A damaged page holds some rows or thousands: skip ever more until one can be read.
                    self.row = self.row.max(0).saturating_add(self.step);
                    self.step = self.step.saturating_mul(2);
                    self.ended = self.row == i64::MAX;
                }
            }
        }
    }

    fn read_by_time(&mut self, report: &mut BagReport) -> End {
        let ids = &self.ids;
        let (time, row) = self.last.unwrap_or((i64::MIN, i64::MIN));
        let query = format!(
            "SELECT id, topic_id, timestamp, data FROM messages WHERE timestamp >= ?1 AND (timestamp > ?1 OR id > ?2) \
             AND topic_id IN ({ids}) ORDER BY timestamp, id LIMIT {BATCH}"
        );
        let Batch { messages, last, end } = self.query(&query, [time, row], |last| last, report);
        self.last = last.or(self.last);
        self.batch.extend(messages.into_iter().map(|(_, message)| message));
        end
    }

    fn read_by_row(&mut self, report: &mut BagReport) -> End {
        let ids = &self.ids;
        // `+` keeps the topic from being looked up in an index, which may be what is damaged.
        let query = format!(
            "SELECT id, topic_id, timestamp, data FROM messages NOT INDEXED WHERE id > ?1 AND ?2 = 0 \
             AND +topic_id IN ({ids}) ORDER BY id LIMIT {BATCH}"
        );
        let Batch { messages, last, end } = self.query(&query, [self.row, 0], |(_, row)| (row, 0), report);
        if let Some((_, row)) = last {
            self.row = row;
            self.step = 1;
        }
        for (row, message) in messages {
            // What the index gave is not given again.
            if self.last.is_none_or(|last| (message.log_time.0, row) > last) {
                self.waiting.push(Reverse(Waiting { key: (message.log_time, row), message }));
            }
        }
        end
    }

    /// Messages of a query behind the key `after`, in rising order of their keys.
    fn query(
        &self,
        query: &str,
        after: [i64; 2],
        key: fn((i64, i64)) -> (i64, i64),
        report: &mut BagReport,
    ) -> Batch {
        let (mut messages, mut last, mut bytes, mut count) = (Vec::new(), None, 0, 0);
        let mut run = || -> rusqlite::Result<End> {
            let mut statement = self.file.connection.prepare(query)?;
            let mut rows = statement.query(after)?;
            while let Some(row) = rows.next()? {
                count += 1;
                let (id, time): (i64, i64) = (row.get(0)?, row.get(2)?);
                // A damaged tree may lead back to where we were, and for ever.
                let before = last.map_or((after[0], after[1]), key);
                if key((time, id)) <= before {
                    return Ok(End::Broken(format!("row {id} of time {time} stands behind a later one")));
                }
                last = Some((time, id));
                let topic: i64 = row.get(1)?;
                let Some(channel) = self.file.topics.get(&topic) else { continue };
                match row.get_ref(3)? {
                    ValueRef::Blob(data) => {
                        bytes += data.len();
                        let (channel, data) = (channel.clone(), data.to_vec().into());
                        let (log_time, publish_time) = (Stamp(time), Stamp(time));
                        messages.push((id, RawMessage { channel, log_time, publish_time, data }));
                    }
                    other => {
                        let text = format!("row {id}: expected a blob, found {}", other.data_type());
                        report.topic(&channel.topic, Fault::Structure, text);
                    }
                }
                if bytes >= BATCH_BYTES {
                    return Ok(End::More);
                }
            }
            Ok(if count == BATCH { End::More } else { End::Nothing })
        };
        let end = run().unwrap_or_else(|error| End::Broken(error.to_string()));
        Batch { messages, last, end }
    }
}
