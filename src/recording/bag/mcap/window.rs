//! Reads from anywhere in a file, a few KiB at a time, so that walking over headers costs few system calls and little
//! memory.

use std::{fs::File, io, os::unix::fs::FileExt};

/// Bytes that are read at a time where fewer are asked for.
const AHEAD: usize = 4096;

pub(super) struct Window<'a> {
    file: &'a File,
    start: u64,
    bytes: Vec<u8>,
}

impl<'a> Window<'a> {
    pub fn new(file: &'a File) -> Self {
        Self { file, start: 0, bytes: Vec::new() }
    }

    /// At most `count` bytes from `offset` on; fewer only where the file ends.
    pub fn get(&mut self, offset: u64, count: usize) -> io::Result<&[u8]> {
        let held = offset.checked_sub(self.start).and_then(|skip| usize::try_from(skip).ok());
        let held = held.filter(|skip| skip.saturating_add(count) <= self.bytes.len());
        let skip = match held {
            Some(skip) => skip,
            None => {
                self.bytes = read_at(self.file, offset, count.max(AHEAD))?;
                self.start = offset;
                0
            }
        };
        let end = skip.saturating_add(count).min(self.bytes.len());
        Ok(self.bytes.get(skip..end).unwrap_or_default())
    }
}

/// `count` bytes from `offset` on, fewer where the file ends. The caller bounds `count`.
pub(super) fn read_at(file: &File, offset: u64, count: usize) -> io::Result<Vec<u8>> {
    // The system would refuse to look there, and no file is so large.
    if offset.saturating_add(count as u64) > i64::MAX as u64 {
        return Ok(Vec::new());
    }
    let mut bytes = vec![0; count];
    let mut filled = 0;
    while filled < count {
        match file.read_at(&mut bytes[filled..], offset.saturating_add(filled as u64)) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn any_part_of_a_file_is_given_and_its_end_cuts() {
        let mut file = tempfile::tempfile().unwrap();
        let data: Vec<u8> = (0..20_000_u32).map(|i| (i % 251) as u8).collect();
        file.write_all(&data).unwrap();
        let mut window = Window::new(&file);
        for (offset, count) in
            [(0, 9), (9, 100), (4090, 10), (4096, 8000), (5, 1), (19_990, 50), (20_000, 1), (u64::MAX, 9)]
        {
            let start = usize::try_from(offset).unwrap_or(usize::MAX).min(data.len());
            let expected = &data[start..(start + count).min(data.len())];
            assert_eq!(window.get(offset, count).unwrap(), expected, "{offset} {count}");
        }
    }
}
