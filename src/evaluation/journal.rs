//! Results of a long run on disk while it runs, so that a broken run goes on where it was.
//!
//! A JSON-lines file: the first line says what is measured (options, source, checkpoint, whatever decides the results) with
//! its hash; each further line is one finished piece of work with its name. A line counts when its line end is there: what
//! a crash tore is left out and cut off. A journal of something else is refused.

use std::{
    collections::HashSet,
    fs::{File, OpenOptions},
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};

use super::compare::{Difference, json_differences};

/// Longest line that is read; pieces of work are a thousand times smaller.
const MAX_LINE_BYTES: u64 = 256 << 20;
/// Format of the file.
const FORMAT: u32 = 1;
/// Differences that a message names.
const MAX_DIFFERENCES: usize = 8;

/// A journal that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The system refuses.
    #[error("cannot use the journal {path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The reason.
        error: io::Error,
    },
    /// Another process writes it.
    #[error("the journal {path} is in use by another process; wait for it or give this run another file")]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// Not a journal.
    #[error("expected a journal of format {FORMAT} in {path}, found {found}; give the run another file")]
    NotAJournal {
        /// The file.
        path: PathBuf,
        /// What is there.
        found: String,
    },
    /// A journal of another run.
    #[error(
        "the journal {path} belongs to another run (key {found}, this run has {expected}): {differences}; run with the same options or give this run another file"
    )]
    OtherRun {
        /// The file.
        path: PathBuf,
        /// This run's key.
        expected: String,
        /// The file's key.
        found: String,
        /// What differs, in words.
        differences: String,
    },
    /// A whole line that is no result.
    #[error("line {line} of the journal {path} is damaged: {reason}; remove it, or the file to begin anew")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
}

#[derive(Serialize, Deserialize)]
struct Head {
    journal: u32,
    key: String,
    describes: serde_json::Value,
}

#[derive(Serialize, Deserialize)]
struct Entry<T> {
    name: String,
    result: T,
}

/// Key of what a run measures: SHA-256 of its JSON, in hexadecimal.
///
/// `describes` holds everything that decides the results: options, source, checkpoint, modes. The order of fields counts.
///
/// # Errors
/// A description that JSON cannot express.
pub fn key(describes: &impl Serialize) -> Result<String, serde_json::Error> {
    let bytes = serde_json::to_vec(describes)?;
    Ok(Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect())
}

/// An open journal. The file is locked while it lives.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    done: HashSet<String>,
}

impl Journal {
    /// Opens the journal at `path`, or begins it, and gives the results that are in it in the order in which they were
    /// added. A torn last line is cut off.
    ///
    /// # Errors
    /// See [`JournalError`].
    pub fn open<T: DeserializeOwned>(
        path: &Path,
        describes: &impl Serialize,
    ) -> Result<(Self, Vec<T>), JournalError> {
        let io = |error: io::Error| JournalError::Io { path: path.to_owned(), error };
        let describes = serde_json::to_value(describes).map_err(|error| io(error.into()))?;
        let key = key(&describes).map_err(|error| io(error.into()))?;
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(path).map_err(io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                return Err(JournalError::InUse { path: path.to_owned() });
            }
            Err(std::fs::TryLockError::Error(error)) => return Err(io(error)),
        }
        let mut journal = Self { path: path.to_owned(), file, done: HashSet::new() };
        let results = journal.read(&key, &describes)?;
        Ok((journal, results))
    }

    fn io(&self, error: io::Error) -> JournalError {
        JournalError::Io { path: self.path.clone(), error }
    }

    fn read<T: DeserializeOwned>(
        &mut self,
        key: &str,
        describes: &serde_json::Value,
    ) -> Result<Vec<T>, JournalError> {
        let mut reader = BufReader::new(self.file.try_clone().map_err(|error| self.io(error))?);
        let (mut results, mut whole, mut number) = (Vec::new(), 0u64, 0usize);
        loop {
            let mut line = Vec::new();
            let limit = MAX_LINE_BYTES + 1;
            let read =
                reader.by_ref().take(limit).read_until(b'\n', &mut line).map_err(|error| self.io(error))?;
            number += 1;
            if line.last() != Some(&b'\n') {
                if read as u64 == limit {
                    return Err(
                        self.damaged(number, format!("expected at most {MAX_LINE_BYTES} bytes, found more"))
                    );
                }
                // A first line without an end is a journal torn at its very beginning, or a file of another kind.
                if number == 1 && !line.is_empty() && !line.starts_with(br#"{"journal":"#) {
                    return Err(self.not_a_journal(&line));
                }
                break;
            }
            if number == 1 {
                self.check(&line, key, describes)?;
            } else {
                let entry: Entry<T> =
                    serde_json::from_slice(&line).map_err(|error| self.damaged(number, error.to_string()))?;
                if self.done.insert(entry.name) {
                    results.push(entry.result);
                }
            }
            whole += read as u64;
        }
        self.file.set_len(whole).map_err(|error| self.io(error))?;
        self.file.seek(SeekFrom::End(0)).map_err(|error| self.io(error))?;
        if whole == 0 {
            let head = Head { journal: FORMAT, key: key.to_owned(), describes: describes.clone() };
            self.write(&head)?;
        }
        Ok(results)
    }

    fn check(&self, line: &[u8], key: &str, describes: &serde_json::Value) -> Result<(), JournalError> {
        let head: Head = serde_json::from_slice(line).map_err(|_| self.not_a_journal(line))?;
        if head.journal != FORMAT {
            return Err(JournalError::NotAJournal {
                path: self.path.clone(),
                found: format!("format {}", head.journal),
            });
        }
        if head.key == key {
            return Ok(());
        }
        let found = json_differences(&head.describes, describes);
        let one = |difference: &Difference| {
            let Difference { what, a, b } = difference;
            format!("{what} is {a} in the journal and {b} now")
        };
        let mut differences: Vec<String> = found.iter().take(MAX_DIFFERENCES).map(one).collect();
        if found.len() > MAX_DIFFERENCES {
            differences.push(format!("and {} more", found.len() - MAX_DIFFERENCES));
        }
        let short = |key: &str| key.chars().take(12).collect();
        Err(JournalError::OtherRun {
            path: self.path.clone(),
            expected: short(key),
            found: short(&head.key),
            differences: differences.join("; "),
        })
    }

    fn not_a_journal(&self, line: &[u8]) -> JournalError {
        let start = String::from_utf8_lossy(line.get(..60).unwrap_or(line)).trim_end().to_owned();
        JournalError::NotAJournal { path: self.path.clone(), found: format!("{start:?}") }
    }

    fn damaged(&self, line: usize, reason: String) -> JournalError {
        JournalError::Damaged { path: self.path.clone(), line, reason }
    }

    fn write(&mut self, value: &impl Serialize) -> Result<(), JournalError> {
        let mut line = serde_json::to_vec(value).map_err(|error| self.io(error.into()))?;
        line.push(b'\n');
        self.file.write_all(&line).and_then(|()| self.file.sync_data()).map_err(|error| self.io(error))
    }

    /// Whether the piece of work of this name is in the journal.
    pub fn has(&self, name: &str) -> bool {
        self.done.contains(name)
    }

    /// Number of pieces of work in the journal.
    pub fn len(&self) -> usize {
        self.done.len()
    }

    /// Whether nothing is in it yet.
    pub fn is_empty(&self) -> bool {
        self.done.is_empty()
    }

    /// Adds a finished piece of work; when this returns it is on the disk.
    ///
    /// # Errors
    /// The system refuses.
    pub fn append(&mut self, name: &str, result: &impl Serialize) -> Result<(), JournalError> {
        self.write(&Entry { name: name.to_owned(), result })?;
        self.done.insert(name.to_owned());
        Ok(())
    }
}

impl Drop for Journal {
    // Closing the file alone would leave the lock with any child process that another thread is just starting: until
    // its exec that child holds a copy of every open file.
    fn drop(&mut self) {
        // An error leaves what closing would have left.
        let _ = self.file.unlock();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn open(path: &Path, stride: u64) -> Result<(Journal, Vec<u64>), JournalError> {
        Journal::open(path, &json!({ "options": { "stride": stride }, "checkpoint": "c" }))
    }

    fn place() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.jsonl");
        (folder, path)
    }

    fn filled(path: &Path) {
        let (mut journal, results) = open(path, 8).unwrap();
        assert_eq!(results, Vec::<u64>::new());
        assert!(journal.is_empty());
        journal.append("one", &1).unwrap();
        journal.append("two", &2).unwrap();
    }

    #[test]
    fn a_resumed_run_finds_what_was_done() {
        let (_folder, path) = place();
        filled(&path);
        let (mut journal, results) = open(&path, 8).unwrap();
        assert_eq!((results, journal.len()), (vec![1, 2], 2));
        assert!(journal.has("one") && !journal.has("three"));
        journal.append("three", &3).unwrap();
        drop(journal);
        assert_eq!(open(&path, 8).unwrap().1, [1, 2, 3]);
    }

    #[test]
    fn a_journal_cut_anywhere_keeps_its_whole_lines() {
        let (_folder, path) = place();
        filled(&path);
        let whole = std::fs::read(&path).unwrap();
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            let lines = whole[..length].iter().filter(|&&byte| byte == b'\n').count();
            let expected: Vec<u64> = [1, 2].into_iter().take(lines.saturating_sub(1)).collect();
            match open(&path, 8) {
                Ok((mut journal, results)) => {
                    assert_eq!(results, expected, "{length}");
                    journal.append("new", &9).unwrap();
                    drop(journal);
                    assert_eq!(open(&path, 8).unwrap().1, [expected, vec![9]].concat(), "{length}");
                }
                // So little of the first line that it could be the start of any file.
                Err(JournalError::NotAJournal { .. }) => assert!(length < 11, "{length}"),
                Err(error) => panic!("{length}: {error}"),
            }
        }
    }

    #[test]
    fn a_closed_journal_is_free_while_other_threads_start_processes() {
        let (_folder, path) = place();
        filled(&path);
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while !done.load(std::sync::atomic::Ordering::Relaxed) {
                        std::process::Command::new("true").status().unwrap();
                    }
                });
            }
            let outcomes: Vec<_> = (0..2000).map(|_| open(&path, 8).map(drop)).collect();
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            outcomes.into_iter().for_each(|outcome| outcome.unwrap());
        });
    }

    #[test]
    fn a_journal_of_another_run_is_refused_with_both_sides() {
        let (_folder, path) = place();
        filled(&path);
        let before = std::fs::read(&path).unwrap();
        let error = open(&path, 16).unwrap_err().to_string();
        assert!(error.contains("options.stride is 8 in the journal and 16 now"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), before, "it is left as it was");
    }

    #[test]
    fn another_kind_of_file_is_refused_and_left_alone() {
        let (_folder, path) = place();
        for text in
            ["no journal\nat all\n", "no journal", "{\"journal\":99,\"key\":\"\",\"describes\":null}\n"]
        {
            std::fs::write(&path, text).unwrap();
            let error = open(&path, 8).unwrap_err();
            assert!(matches!(error, JournalError::NotAJournal { .. }), "{error}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
    }

    #[test]
    fn a_damaged_line_in_the_middle_is_named() {
        let (_folder, path) = place();
        filled(&path);
        let text = std::fs::read_to_string(&path).unwrap().replace("\"one\"", "\"one");
        std::fs::write(&path, text).unwrap();
        let error = open(&path, 8).unwrap_err().to_string();
        assert!(error.starts_with("line 2 of the journal"), "{error}");
    }

    #[test]
    fn two_runs_do_not_share_a_journal() {
        let (_folder, path) = place();
        let first = open(&path, 8).unwrap();
        assert!(matches!(open(&path, 8).unwrap_err(), JournalError::InUse { .. }));
        drop(first);
        open(&path, 8).unwrap();
    }

    #[test]
    fn a_result_that_is_there_twice_counts_once() {
        let (_folder, path) = place();
        filled(&path);
        let (mut journal, _) = open(&path, 8).unwrap();
        journal.append("one", &7).unwrap();
        drop(journal);
        assert_eq!(open(&path, 8).unwrap().1, [1, 2]);
    }

    #[test]
    fn keys_are_equal_for_equal_descriptions_only() {
        let key = |stride: u64| key(&json!({ "stride": stride })).unwrap();
        assert_eq!((key(1) == key(1), key(1) == key(2), key(1).len()), (true, false, 64));
    }
}
