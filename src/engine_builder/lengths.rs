//! The prompts that an engine is for.

use std::{fmt, str::FromStr};

use crate::onnx::dit::Extent;

/// Least, usual and greatest number of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lengths {
    min: usize,
    opt: usize,
    max: usize,
}

/// Longer prompts do not exist: the language model was trained on fewer positions.
const MOST: usize = 32_768;

impl Lengths {
    /// One number of tokens.
    pub fn fixed(tokens: usize) -> Self {
        Self { min: tokens, opt: tokens, max: tokens }
    }

    /// Whatever a prompt may have.
    pub fn any() -> Self {
        Self { min: 1, opt: 1, max: MOST }
    }

    /// A range with the number that the engine is made fast for.
    ///
    /// # Errors
    /// Numbers that are not in this order, zero, or beyond every prompt.
    pub fn new(min: usize, opt: usize, max: usize) -> Result<Self, String> {
        if 1 <= min && min <= opt && opt <= max && max <= MOST {
            return Ok(Self { min, opt, max });
        }
        Err(format!("expected 1 <= MIN <= OPT <= MAX <= {MOST}, found {min},{opt},{max}"))
    }

    /// The dimension of the graph.
    pub fn extent(self) -> Extent {
        if self.min == self.max { Extent::Fixed(self.min) } else { Extent::Dynamic }
    }

    /// Least, usual, greatest.
    pub fn all(self) -> [usize; 3] {
        [self.min, self.opt, self.max]
    }

    /// The usual number.
    pub fn usual(self) -> usize {
        self.opt
    }
}

impl fmt::Display for Lengths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{},{}", self.min, self.opt, self.max)
    }
}

impl FromStr for Lengths {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |part: &str| {
            part.trim()
                .parse::<usize>()
                .map_err(|_| format!("expected MIN,OPT,MAX or one number, found {text:?}"))
        };
        match text.split(',').map(number).collect::<Result<Vec<_>, _>>()?.as_slice() {
            [one] => Self::new(*one, *one, *one),
            [min, opt, max] => Self::new(*min, *opt, *max),
            _ => Err(format!("expected MIN,OPT,MAX or one number, found {text:?}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_number_fixes_the_graph_and_three_leave_it_open() {
        assert_eq!("40".parse::<Lengths>().unwrap().extent(), Extent::Fixed(40));
        let range: Lengths = "24, 48,128".parse().unwrap();
        assert_eq!((range.all(), range.extent()), ([24, 48, 128], Extent::Dynamic));
        assert_eq!(range.to_string().parse(), Ok(range));
    }

    #[test]
    fn what_is_no_range_is_refused_with_what_was_found() {
        for text in ["", "0", "5,4,6", "1,2", "1,2,3,4", "a,b,c", "1,2,99999999", "-1"] {
            assert!(text.parse::<Lengths>().is_err(), "{text:?}");
        }
    }
}
