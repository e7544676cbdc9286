//! Version numbers of TensorRT.

use std::fmt;

/// A version of TensorRT's library or headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    pub major: u32,
    pub minor: u32,
    pub patch: u32,
}

impl Version {
    /// From the one number that `getInferLibVersion` returns: 8601 is 8.6.1 and 100300 is 10.3.0. The minor version got two
    /// digits more with version 10.
    pub(super) fn from_library(number: i32) -> Self {
        let number = number.max(0).unsigned_abs();
        let per_major = if number < 10_000 { 1_000 } else { 10_000 };
        Self { major: number / per_major, minor: number % per_major / 100, patch: number % 100 }
    }

    /// Whether this is `major.minor` or newer.
    pub fn at_least(self, major: u32, minor: u32) -> bool {
        (self.major, self.minor) >= (major, minor)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::Version;

    #[test]
    fn both_forms_of_the_librarys_number_are_read() {
        for (number, text) in [
            (8503, "8.5.3"),
            (8600, "8.6.0"),
            (8601, "8.6.1"),
            (100_300, "10.3.0"),
            (101_501, "10.15.1"),
            (110_400, "11.4.0"),
        ] {
            assert_eq!(Version::from_library(number).to_string(), text);
        }
    }

    #[test]
    fn versions_compare_by_number_and_not_by_text() {
        assert!(Version::from_library(100_300).at_least(8, 6));
        assert!(!Version::from_library(8503).at_least(8, 6));
        assert!(Version::from_library(8600).at_least(8, 6));
    }
}
