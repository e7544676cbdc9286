//! Compares what the weight files hold with what the configuration needs.

use std::collections::BTreeSet;

use super::error::Problem;
use super::key_table::{Purpose, TensorSpec};
use super::scan::Scan;
use super::shape_text;

/// The outcome of the comparison.
pub(super) struct Verdict {
    /// Needed tensors that are absent, of another shape, or of an unreadable type.
    pub problems: Vec<Problem>,
    /// Tensors in the files that this model does not have, in alphabetical order.
    pub unknown: Vec<String>,
}

/// Looks at names, types and shapes only; no tensor's bytes are touched.
pub(super) fn validate(table: &[TensorSpec], scan: &Scan) -> Verdict {
    let mut problems = Vec::new();
    for spec in table.iter().filter(|spec| spec.purpose == Purpose::Inference) {
        let stored = match scan.tensors.get(&spec.name) {
            Some(Some(stored)) => stored,
            Some(None) => continue,
            None if scan.incomplete => continue,
            None => {
                let expected = format!("a tensor of shape {}", shape_text(&spec.shape));
                problems.push(Problem::item(scan.root, &spec.name, expected, "no such tensor"));
                continue;
            }
        };
        let file = scan.files.get(stored.file).map_or(scan.root, |file| file.name.as_str());
        if let Err(dtype) = &stored.kind {
            let found = format!("{dtype} {}", shape_text(&stored.shape));
            problems.push(Problem::item(file, &spec.name, "BF16, F16 or F32", found));
        }
        if stored.shape != spec.shape {
            let expected = format!("shape {}", shape_text(&spec.shape));
            problems.push(Problem::item(file, &spec.name, expected, shape_text(&stored.shape)));
        }
    }
    let known: BTreeSet<&str> = table.iter().map(|spec| spec.name.as_str()).collect();
    let unknown = scan.tensors.keys().filter(|name| !known.contains(name.as_str())).cloned().collect();
    Verdict { problems, unknown }
}
