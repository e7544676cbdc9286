//! Files that are there whole or not at all.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Writes `bytes` to `path` so that a reader, or a machine that loses power, finds the old file or the new one: into a file
/// beside it, to the disk, and then under its name. The folder must exist.
///
/// # Errors
/// Those of the file system; the file beside it is removed as far as possible.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = beside(path)?;
    let written = write_through(&temporary, bytes).and_then(|()| fs::rename(&temporary, path));
    if let Err(error) = written {
        // What is left would only take room; the first error is the one to report.
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    // The rename itself is in the folder.
    File::open(folder(path))?.sync_all()
}

fn write_through(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// A name in the same folder that no other writer takes, in this process or another.
fn beside(path: &Path) -> io::Result<PathBuf> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let name = path.file_name().ok_or_else(|| io::Error::other("the path names no file"))?;
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{}-{}.partial", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
    Ok(folder(path).join(temporary))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_nothing_is_left_beside_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("engine");
        write_atomically(&path, b"old").expect("written");
        write_atomically(&path, b"newer").expect("replaced");
        assert_eq!(fs::read(&path).expect("read"), b"newer");
        assert_eq!(fs::read_dir(folder.path()).expect("listed").count(), 1);
    }

    #[test]
    fn a_write_that_fails_leaves_the_old_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("engine");
        // A folder under the file's name cannot be replaced by a file.
        fs::create_dir(&path).expect("made");
        write_atomically(&path, b"bytes").expect_err("a folder is in the way");
        assert!(path.is_dir());
        assert_eq!(fs::read_dir(folder.path()).expect("listed").count(), 1, "the partial file is gone");
    }

    #[test]
    fn many_writers_of_one_file_leave_one_whole_version() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("engine");
        std::thread::scope(|scope| {
            for value in 0..8_u8 {
                let path = &path;
                scope.spawn(move || write_atomically(path, &vec![value; 100_000]).expect("written"));
            }
        });
        let bytes = fs::read(&path).expect("read");
        assert_eq!(bytes.len(), 100_000);
        assert!(bytes.iter().all(|&byte| byte == bytes[0]), "versions are mixed");
    }
}
