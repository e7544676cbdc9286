//! The header of a safetensors file.
//!
//! Eight bytes of length (little-endian), then JSON `{name: {dtype, shape, data_offsets}}`, then the tensors' bytes
//! without gaps. The `safetensors` crate reads this too, but stops at the first fault and names no tensor for most; here every
//! fault names the tensor, what the file should hold and what it holds.

use std::ops::Range;

use safetensors::Dtype;
use serde::Deserialize;
use serde::de::IntoDeserializer;
use serde_json::Value;

use super::entries::Entries;
use super::error::{Problem, quote};
use super::shape_text;
use super::side_file::is_lfs_pointer;

/// Bytes of the length field.
const LENGTH_BYTES: usize = 8;

/// Upper bound of the JSON. That of the 3B model takes some 150 kB.
const MAX_HEADER_BYTES: usize = 8 << 20;

/// The entry that holds free text instead of a tensor.
const METADATA_KEY: &str = "__metadata__";

const DOWNLOAD_AGAIN: &str = "the file is incomplete or damaged: download it again";

/// One tensor as its file describes it.
pub(super) struct HeaderEntry {
    pub name: String,
    /// Element type as written in the file; may be one that nobody knows.
    pub dtype: String,
    pub shape: Vec<usize>,
    /// Where its bytes lie in the file.
    pub bytes: Range<usize>,
}

/// What could be learnt of a file, and everything wrong with it.
#[derive(Default)]
pub(super) struct Header {
    /// The tensors; their ranges lie inside the file only if there are no problems.
    pub entries: Vec<HeaderEntry>,
    /// Tensors that the header names but does not describe well; each has its problem.
    pub broken: Vec<String>,
    /// The header as a whole could not be read, so its tensors are unknown.
    pub unreadable: bool,
    pub problems: Vec<Problem>,
}

#[derive(Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

/// Reads the header of a file of which `bytes` is the whole content. Touches no tensor's bytes.
pub(super) fn read_header(file: &str, bytes: &[u8]) -> Header {
    let json = match header_json(file, bytes) {
        Ok(json) => json,
        Err(problem) => return unreadable(problem),
    };
    let entries = match serde_json::from_slice::<Entries<Value>>(json) {
        Ok(Entries(entries)) => entries,
        Err(error) => {
            let expected = "a header of JSON {tensor: {dtype, shape, data_offsets}}";
            let problem = Problem::file(file, expected, format!("text that does not parse: {error}"));
            return unreadable(problem.with_advice(DOWNLOAD_AGAIN));
        }
    };
    let mut header = Header::default();
    for (name, value) in entries.into_iter().filter(|(name, _)| name != METADATA_KEY) {
        match read_entry(file, &name, value) {
            Ok(entry) => header.entries.push(HeaderEntry { name, ..entry }),
            Err(problem) => {
                header.problems.push(problem);
                header.broken.push(name);
            }
        }
    }
    // Both checks look at neighbours, so a fault already known would show again as its neighbours'.
    if header.problems.is_empty() {
        header.entries.sort_by(|a, b| a.name.cmp(&b.name));
        header.problems.extend(repeated_name(file, &header.entries));
    }
    if header.problems.is_empty() {
        header.entries.sort_by_key(|entry| (entry.bytes.start, entry.bytes.end));
        let start = LENGTH_BYTES + json.len();
        header.problems.extend(layout_fault(file, &header.entries, bytes.len() - start));
        for entry in &mut header.entries {
            entry.bytes = entry.bytes.start.saturating_add(start)..entry.bytes.end.saturating_add(start);
        }
    }
    header
}

fn unreadable(problem: Problem) -> Header {
    Header { unreadable: true, problems: vec![problem], ..Header::default() }
}

/// The bytes of the JSON text.
fn header_json<'a>(file: &str, bytes: &'a [u8]) -> Result<&'a [u8], Problem> {
    if is_lfs_pointer(bytes) {
        return Err(Problem::file(file, "the file itself", "a git-LFS pointer to it")
            .with_advice("run `git lfs pull` in the checkpoint's repository"));
    }
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() else {
        let expected = format!("a safetensors file, which begins with {LENGTH_BYTES} bytes of length");
        let found = format!("{} bytes in all", bytes.len());
        return Err(Problem::file(file, expected, found).with_advice(DOWNLOAD_AGAIN));
    };
    let length = u64::from_le_bytes(*length);
    let Some(length) = usize::try_from(length).ok().filter(|&length| length <= MAX_HEADER_BYTES) else {
        let expected = format!("a safetensors header of at most {MAX_HEADER_BYTES} bytes");
        let found = format!("a header length of {length}");
        return Err(Problem::file(file, expected, found).with_advice("this is no safetensors file"));
    };
    rest.get(..length).ok_or_else(|| {
        let expected = format!("a header of {length} bytes");
        let found = format!("a file that ends after {} of them", rest.len());
        Problem::file(file, expected, found).with_advice(DOWNLOAD_AGAIN)
    })
}

/// One entry, its byte count checked against type and shape. The name is left for the caller to fill in.
fn read_entry(file: &str, name: &str, value: Value) -> Result<HeaderEntry, Problem> {
    let text = value.to_string();
    let RawEntry { dtype, shape, data_offsets: (start, end) } =
        serde_json::from_value(value).map_err(|_| {
            Problem::item(file, name, "a header entry {dtype, shape, data_offsets: [start, end]}", text)
        })?;
    let found = end.checked_sub(start).ok_or_else(|| {
        let expected = "data_offsets that do not run backwards";
        Problem::item(file, name, expected, format!("[{start}, {end}]"))
    })?;
    // Of a type that nobody knows the size cannot be checked; it is refused later if the network needs the tensor.
    if let Some(bits) = dtype_bits(&dtype) {
        let bytes = shape
            .iter()
            .try_fold(bits, |product, &dim| product.checked_mul(dim))
            .map(|bits| bits.div_ceil(8))
            .filter(|&bytes| bytes == found);
        if bytes.is_none() {
            let expected = format!("the bytes of {} {}", quote(&dtype), shape_text(&shape));
            let found = format!("data_offsets [{start}, {end}], which are {found} bytes");
            return Err(Problem::item(file, name, expected, found));
        }
    }
    Ok(HeaderEntry { name: String::new(), dtype, shape, bytes: start..end })
}

/// Bits of one element of a type that the format defines.
fn dtype_bits(name: &str) -> Option<usize> {
    let deserializer = IntoDeserializer::<serde::de::value::Error>::into_deserializer(name);
    Dtype::deserialize(deserializer).ok().map(|dtype| dtype.bitsize())
}

/// The first name that occurs twice among entries ordered by name.
fn repeated_name(file: &str, by_name: &[HeaderEntry]) -> Option<Problem> {
    let twice = by_name.windows(2).find(|pair| pair[0].name == pair[1].name)?;
    Some(Problem::item(file, &twice[0].name, "one entry in the header", "two"))
}

/// The first fault of the layout of entries ordered by position: the tensors lie back to back and fill the `available`
/// bytes exactly. Only the first is told, since one wrong offset displaces all that follow.
fn layout_fault(file: &str, by_position: &[HeaderEntry], available: usize) -> Option<Problem> {
    let mut previous = "the header";
    let mut end = 0;
    for entry in by_position {
        if entry.bytes.start != end {
            // A tensor sent out of the file leaves a hole before another one: it is the culprit, not the other.
            if let Some(outside) = by_position.iter().find(|entry| entry.bytes.end > available) {
                let expected = format!("data within the file's {available} bytes of tensors");
                let found = format!("data_offsets [{}, {}]", outside.bytes.start, outside.bytes.end);
                return Some(Problem::item(file, &outside.name, expected, found));
            }
            let expected = format!("data from byte {end}, where {} ends", quote(previous));
            let found = format!("data_offsets [{}, {}]", entry.bytes.start, entry.bytes.end);
            return Some(Problem::item(file, &entry.name, expected, found));
        }
        (previous, end) = (&entry.name, entry.bytes.end);
    }
    if let Some(cut) = by_position.iter().find(|entry| entry.bytes.end > available) {
        let expected = format!("{end} bytes of tensors, of which this one ends at {}", cut.bytes.end);
        let found = format!("{available} bytes");
        return Some(Problem::item(file, &cut.name, expected, found).with_advice(DOWNLOAD_AGAIN));
    }
    (end < available).then(|| {
        let expected = format!("{end} bytes of tensors, as its header says");
        Problem::file(file, expected, format!("{available} bytes")).with_advice(DOWNLOAD_AGAIN)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn file_of(header: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(data);
        bytes
    }

    fn entry(dtype: &str, shape: &[usize], offsets: [usize; 2]) -> Value {
        json!({"dtype": dtype, "shape": shape, "data_offsets": offsets})
    }

    /// The only problem of a file, in words.
    fn complaint(header: &str, data: &[u8]) -> String {
        let problems = read_header("w.safetensors", &file_of(header, data)).problems;
        assert_eq!(problems.len(), 1, "{problems:?}");
        problems[0].to_string()
    }

    #[test]
    fn ranges_point_at_the_tensors_bytes_in_the_file() {
        let header = json!({
            "__metadata__": {"format": "pt"}, "b": entry("F32", &[], [4, 8]), "a": entry("BF16", &[2], [0, 4]),
        });
        let bytes = file_of(&header.to_string(), &[1, 2, 3, 4, 5, 6, 7, 8]);
        let header = read_header("w", &bytes);
        assert!(header.problems.is_empty(), "{:?}", header.problems);
        let data: Vec<_> =
            header.entries.iter().map(|e| (e.name.as_str(), &bytes[e.bytes.clone()])).collect();
        assert_eq!(data, [("a", &[1, 2, 3, 4][..]), ("b", &[5, 6, 7, 8][..])]);
    }

    #[test]
    fn a_size_that_overflows_is_a_wrong_byte_count() {
        let huge = usize::MAX / 3;
        let header = json!({"a": entry("F32", &[huge, huge], [0, 4])}).to_string();
        let text = complaint(&header, &[0; 4]);
        assert!(
            text.contains(&format!(
                "a: expected the bytes of F32 ({huge}, {huge}), found data_offsets [0, 4]"
            ))
        );
    }

    #[test]
    fn offsets_beyond_the_file_are_refused_even_for_an_unknown_type() {
        let header = json!({"a": entry("X9", &[1], [0, usize::MAX])}).to_string();
        let text = complaint(&header, &[0; 4]);
        assert!(
            text.contains("a: expected 18446744073709551615 bytes") && text.contains("found 4 bytes"),
            "{text}"
        );
    }

    #[test]
    fn backward_offsets_gaps_and_repeated_names_are_refused() {
        let text = complaint(&json!({"a": entry("U8", &[2], [2, 0])}).to_string(), &[0; 2]);
        assert!(text.contains("a: expected data_offsets that do not run backwards, found [2, 0]"), "{text}");
        let gap = json!({"a": entry("U8", &[1], [0, 1]), "b": entry("U8", &[1], [2, 3])});
        let text = complaint(&gap.to_string(), &[0; 3]);
        assert!(
            text.contains("b: expected data from byte 1, where a ends, found data_offsets [2, 3]"),
            "{text}"
        );
        let one = entry("U8", &[1], [0, 1]);
        let text = complaint(&format!("{{\"a\": {one}, \"a\": {one}}}"), &[0; 1]);
        assert!(text.contains("a: expected one entry in the header, found two"), "{text}");
    }

    #[test]
    fn an_empty_header_needs_an_empty_file() {
        assert!(read_header("w", &file_of("{}", &[])).problems.is_empty());
        assert!(
            complaint("{}", &[1]).contains("expected 0 bytes of tensors, as its header says, found 1 bytes")
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            read_header("w", &bytes);
        }

        #[test]
        fn sound_headers_only_give_ranges_inside_the_file(
            a in (0..6usize, 0..6usize), b in (0..6usize, 0..6usize), n in 0..6usize, m in 0..6usize, size in 0..12usize,
        ) {
            let header = json!({"a": entry("U8", &[n], [a.0, a.1]), "b": entry("X9", &[m], [b.0, b.1])});
            let bytes = file_of(&header.to_string(), &vec![0; size]);
            let header = read_header("w", &bytes);
            if header.problems.is_empty() {
                for entry in header.entries {
                    prop_assert!(bytes.get(entry.bytes).is_some());
                }
            }
        }
    }
}
