//! The prompts and images that an engine is for.

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

    /// Both together.
    ///
    /// # Errors
    /// More than any prompt has.
    pub fn and(self, other: Self) -> Result<Self, String> {
        Self::new(self.min + other.min, self.opt + other.opt, self.max + other.max)
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

/// Height and width of an image in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageSize {
    pub height: usize,
    pub width: usize,
}

impl fmt::Display for ImageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.height, self.width)
    }
}

impl FromStr for ImageSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refused =
            || format!("expected HEIGHTxWIDTH in pixels, 1 to {MOST} each, such as 252x336, found {text:?}");
        let (height, width) = text.split_once('x').ok_or_else(refused)?;
        let number =
            |part: &str| part.trim().parse().ok().filter(|n| (1..=MOST).contains(n)).ok_or_else(refused);
        Ok(Self { height: number(height)?, width: number(width)? })
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

    #[test]
    fn an_image_size_is_height_first_and_anything_else_is_refused() {
        let size: ImageSize = "252x336".parse().unwrap();
        assert_eq!((size.height, size.width, size.to_string().as_str()), (252, 336, "252x336"));
        for text in ["", "252", "0x336", "252x", "252x336x3", "252,336", "-1x5", "99999999x1"] {
            assert!(text.parse::<ImageSize>().unwrap_err().contains("252x336"), "{text:?}");
        }
    }

    #[test]
    fn a_prompt_is_as_long_as_its_text_and_images_together() {
        let sum = Lengths::new(16, 40, 160).unwrap().and(Lengths::fixed(100)).unwrap();
        assert_eq!(sum.all(), [116, 140, 260]);
        assert!(Lengths::fixed(MOST).and(Lengths::fixed(1)).is_err());
    }
}
