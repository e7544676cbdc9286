//! TensorRT's own log lines: into `tracing`, and into the errors of what failed.

use std::collections::VecDeque;
use std::ffi::{c_char, c_void};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::ffi;

/// Warnings and errors that are kept for the next error to quote.
const KEPT: usize = 64;

/// How grave TensorRT holds a line to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    InternalError,
    Error,
    Warning,
    Info,
    Verbose,
}

impl Severity {
    fn from_number(number: i32) -> Self {
        match number {
            0 => Self::InternalError,
            1 => Self::Error,
            2 => Self::Warning,
            3 => Self::Info,
            _ => Self::Verbose,
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InternalError => "internal error",
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Info => "info",
            Self::Verbose => "verbose",
        })
    }
}

/// What TensorRT wrote while an operation failed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogLines(pub Vec<(Severity, String)>);

impl LogLines {
    /// What is known to help against the errors in these lines.
    fn advice(&self) -> Option<&'static str> {
        // Text that TensorRT writes, and what it means.
        const KNOWN: [(&str, &str); 6] = [
            (
                "CUDA initialization failure with error: 35",
                "TensorRT and CUDA do not match: the NVIDIA driver is older than the CUDA that this TensorRT was built for; \
                 update the driver or install the TensorRT of the driver's CUDA",
            ),
            (
                "CUDA initialization failure with error: 100",
                "no NVIDIA GPU is visible: see `nvidia-smi` and CUDA_VISIBLE_DEVICES",
            ),
            (
                "CUDA initialization failure",
                "CUDA cannot be used: see that `nvidia-smi` works and that the driver fits the CUDA of this TensorRT",
            ),
            (
                "ersion tag does not match",
                "the engine was built by another version of TensorRT: build it again with this one",
            ),
            (
                "not compatible with this version of TensorRT",
                "the engine was built by another version of TensorRT: build it again with this one",
            ),
            (
                "different compute capability",
                "an engine runs only on the kind of GPU that it was built on: build it again on this one",
            ),
        ];
        KNOWN
            .iter()
            .find(|(text, _)| self.0.iter().any(|(_, line)| line.contains(text)))
            .map(|(_, advice)| *advice)
    }
}

impl fmt::Display for LogLines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("TensorRT wrote nothing about it");
        }
        f.write_str("TensorRT wrote:")?;
        for (severity, line) in &self.0 {
            write!(f, "\n  {severity}: {}", line.trim_end())?;
        }
        match self.advice() {
            Some(advice) => write!(f, "\n{advice}"),
            None => Ok(()),
        }
    }
}

#[derive(Default)]
struct Kept {
    /// How many lines were ever kept; the last of `lines` has this number.
    count: u64,
    lines: VecDeque<(Severity, String)>,
}

static KEPT_LINES: Mutex<Option<Kept>> = Mutex::new(None);

fn kept() -> MutexGuard<'static, Option<Kept>> {
    // Nothing that holds the lock leaves it half done.
    KEPT_LINES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A point in the log.
///
/// The log is one for the process, as TensorRT wants it: lines of two operations that run at the same time mix.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark(u64);

impl Mark {
    pub(super) fn now() -> Self {
        Self(kept().as_ref().map_or(0, |kept| kept.count))
    }

    /// Warnings and errors since this point, the last 64 at most.
    pub(super) fn lines(self) -> LogLines {
        let guard = kept();
        let Some(kept) = guard.as_ref() else {
            return LogLines::default();
        };
        let new = usize::try_from(kept.count - self.0).unwrap_or(usize::MAX).min(kept.lines.len());
        LogLines(kept.lines.iter().skip(kept.lines.len() - new).cloned().collect())
    }
}

/// Takes one line.
fn receive(severity: Severity, text: &str) {
    match severity {
        Severity::InternalError | Severity::Error => tracing::error!(target: "tensorrt", "{text}"),
        Severity::Warning => tracing::warn!(target: "tensorrt", "{text}"),
        // What TensorRT calls information is of interest to those who look for a fault.
        Severity::Info => tracing::debug!(target: "tensorrt", "{text}"),
        Severity::Verbose => tracing::trace!(target: "tensorrt", "{text}"),
    }
    if severity <= Severity::Warning {
        let mut guard = kept();
        let kept = guard.get_or_insert_with(Kept::default);
        if kept.lines.len() == KEPT {
            kept.lines.pop_front();
        }
        kept.count += 1;
        kept.lines.push_back((severity, text.to_owned()));
    }
}

/// The function that the shim's logger calls, from any thread.
pub(super) unsafe extern "C" fn callback(_user: *mut c_void, severity: i32, text: *const c_char) {
    // A subscriber of `tracing` may panic; a panic must not unwind into C++.
    let _ = std::panic::catch_unwind(|| {
        // SAFETY: the shim passes a C string.
        let text = unsafe { ffi::text_at(text) };
        receive(Severity::from_number(severity), &text);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_quotes_the_warnings_since_its_operation_began_and_says_what_helps() {
        let mark = Mark::now();
        receive(Severity::Info, "chatter");
        receive(
            Severity::Error,
            "CUDA initialization failure with error: 35. Please check your CUDA installation",
        );
        let text = mark.lines().to_string();
        assert!(text.contains("error: CUDA initialization failure with error: 35"), "{text}");
        assert!(text.contains("driver is older"), "{text}");
        assert!(!text.contains("chatter"), "{text}");
    }

    #[test]
    fn the_log_keeps_a_bounded_number_of_lines() {
        let mark = Mark::now();
        for i in 0..10 * KEPT {
            receive(Severity::Warning, &format!("line {i}"));
        }
        let lines = mark.lines().0;
        assert!(lines.len() <= KEPT);
        assert!(lines.iter().any(|(_, line)| line == &format!("line {}", 10 * KEPT - 1)));
    }
}
