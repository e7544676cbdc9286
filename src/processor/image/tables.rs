//! A planned pipeline as plain numbers, for a device that runs it with a program of its own.
//!
//! Everything that depends on floating-point arithmetic in f64 is decided here, by the same code that the CPU's own loops
//! are planned with: a device only sums up. What it has to do is written down at each type; where the order of a sum in f32
//! matters, it is the one that is told, each product and each sum rounded by itself.

use super::Plan;
use super::area::{AreaAxis, AreaResize, Blocks};
use super::bicubic::{BicubicAxis, PRECISION};
use super::linear::LinearAxis;
use super::size::{Size, Sizes};

/// Fractional bits of the weights of [`FrameTables::tokens`].
pub const TOKEN_WEIGHT_BITS: u32 = PRECISION;

/// The taps of one axis. Destination `d` is made from `counts[d]` neighbouring source values from `starts[d]` on, all of which
/// exist, with the weights `weights[d * taps ..]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AxisTable {
    /// First source value of each destination. Never falls.
    pub starts: Vec<u32>,
    /// Number of source values of each destination, at least 1. Where they end never falls either.
    pub counts: Vec<u32>,
    /// Weights, or pairs of them, of each destination.
    pub taps: u32,
    /// As bits; the type is told by who uses the table.
    pub weights: Vec<u32>,
}

/// How a rectangle of pixels becomes another one.
#[derive(Debug, Clone, PartialEq)]
pub enum ResizeTables {
    /// Pixel (x, y) is the source's (x + `left`, y + `top`).
    Copy { left: u32, top: u32 },
    /// Pixel (x, y) is the mean of the `across` x `down` source pixels whose first one is ((x + `left`) · `across`,
    /// (y + `top`) · `down`): the sum as an integer, in f32, times `factor`, rounded half to even. Of 2x2 pixels it is
    /// (sum + 2) / 4, rounded down.
    Blocks { left: u32, top: u32, across: u32, down: u32, factor: f32 },
    /// The weights are f32. Each source row is summed up in the order of its taps, from zero; then the rows' sums in the order of
    /// theirs, the first one times its weight to begin with; and the result is rounded half to even and clamped to a byte.
    Shrink { x: AxisTable, y: AxisTable },
    /// The weights are pairs of i16, the first one in the low half; where there is one source value alone, the second weight is
    /// zero. A source row's value is a · w0 + b · w1, divided by 16 and
    /// rounded down, in 32 bits; of two rows each is multiplied by its weight, divided by 65536 and rounded down; their
    /// sum plus 2 is divided by 4, rounded down.
    Enlarge { x: AxisTable, y: AxisTable },
}

/// All that the pixels of one frame size go through.
#[derive(Debug, Clone, PartialEq)]
pub struct FrameTables {
    /// (width, height) of the frame.
    pub frame: (u32, u32),
    /// (width, height) after `resize`.
    pub cropped: (u32, u32),
    /// (width, height) after `restore`.
    pub restored: (u32, u32),
    /// (width, height) of the result.
    pub output: (u32, u32),
    /// From the frame to the crop of the resized frame.
    pub resize: ResizeTables,
    /// From there back to the shortest edge.
    pub restore: ResizeTables,
    /// x, then y: to whole image tokens; none where the axis stays. The weights are i32 with [`TOKEN_WEIGHT_BITS`] fractional bits:
    /// the sum in 32 bits, from a half on, is rounded down and clamped to a byte, after each axis.
    pub tokens: [Option<AxisTable>; 2],
}

impl FrameTables {
    pub(super) fn new(plan: &Plan) -> Self {
        let Sizes { frame, crop, restored, output, .. } = plan.sizes;
        let pair = |size: Size| (size.width, size.height);
        let token =
            |axis: &Option<BicubicAxis>, from| axis.as_ref().map(|axis| AxisTable::bicubic(axis, from));
        Self {
            frame: pair(frame),
            cropped: pair(crop.size),
            restored: pair(restored),
            output: pair(output),
            // What is not resized is cut out of the frame as it is.
            resize: ResizeTables::new(plan.resize.as_ref(), (crop.left, crop.top), frame),
            restore: ResizeTables::new(plan.restore.as_ref(), (0, 0), crop.size),
            tokens: [token(&plan.tokens.x, restored.width), token(&plan.tokens.y, restored.height)],
        }
    }
}

impl ResizeTables {
    fn new(resize: Option<&AreaResize>, (left, top): (u32, u32), from: Size) -> Self {
        match resize {
            None => Self::Copy { left, top },
            Some(AreaResize::Blocks(Blocks { block: [across, down], columns, rows })) => Self::Blocks {
                // Sides of images, all of which are u32.
                left: columns.start as u32,
                top: rows.start as u32,
                across: *across as u32,
                down: *down as u32,
                factor: Blocks::factor([*across, *down]),
            },
            Some(AreaResize::Shrink(resize)) => {
                Self::Shrink { x: AxisTable::area(&resize.x), y: AxisTable::area(&resize.y) }
            }
            Some(AreaResize::Enlarge(resize)) => Self::Enlarge {
                x: AxisTable::linear(&resize.x, resize.width, from.width),
                y: AxisTable::linear(&resize.y, resize.y.starts.len(), from.height),
            },
        }
    }
}

impl AxisTable {
    fn area(axis: &AreaAxis) -> Self {
        Self {
            starts: axis.starts.clone(),
            counts: axis.counts.clone(),
            taps: axis.taps as u32,
            weights: axis.weights.iter().map(|weight| weight.to_bits()).collect(),
        }
    }

    /// The first `length` destinations; those after them are padding.
    fn linear(axis: &LinearAxis, length: usize, from: u32) -> Self {
        let starts = axis.starts.iter().take(length).copied();
        let weights = axis.weights.iter().take(length);
        Self {
            counts: starts.clone().map(|start| (from - start).min(2)).collect(),
            starts: starts.collect(),
            taps: 1,
            weights: weights
                .map(|&[a, b]| u32::from(a.cast_unsigned()) | u32::from(b.cast_unsigned()) << 16)
                .collect(),
        }
    }

    fn bicubic(axis: &BicubicAxis, from: u32) -> Self {
        let taps = axis.taps as u32;
        Self {
            starts: axis.starts.clone(),
            // The weights of pixels beyond the last one are zero.
            counts: axis.starts.iter().map(|&start| (from - start).min(taps)).collect(),
            taps,
            weights: axis.weights.iter().map(|weight| weight.cast_unsigned()).collect(),
        }
    }

    /// Number of destinations.
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// Whether there is no destination: never, of a planned frame.
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::processor::image::ImageTransform;

    #[test]
    fn tables_name_source_values_that_exist_and_never_go_back() {
        let check = |axis: &AxisTable, length: u32, from: u32, weights: usize| {
            assert_eq!((axis.len(), axis.counts.len()), (length as usize, length as usize));
            assert_eq!(axis.weights.len(), weights);
            let ends: Vec<u32> =
                axis.starts.iter().zip(&axis.counts).map(|(start, count)| start + count).collect();
            assert!(axis.counts.iter().all(|&count| count >= 1) && ends.iter().all(|&end| end <= from));
            assert!(axis.starts.is_sorted() && ends.is_sorted());
        };
        for (width, height) in
            [(640, 480), (300, 257), (1, 1), (100, 30), (33, 6000), (1920, 1080), (512, 1024)]
        {
            for (edge, fraction) in [(256, 0.95), (28, 0.3), (300, 1.0)] {
                let transform = ImageTransform::new(edge, fraction).unwrap();
                let tables = transform.tables(width, height).unwrap();
                let FrameTables { frame, cropped, restored, output, .. } = tables;
                assert_eq!((frame, output), ((width, height), transform.output_size(width, height).unwrap()));
                for (resize, from, to) in
                    [(&tables.resize, frame, cropped), (&tables.restore, cropped, restored)]
                {
                    match resize {
                        ResizeTables::Copy { left, top } => {
                            assert!(left + to.0 <= from.0 && top + to.1 <= from.1);
                        }
                        ResizeTables::Blocks { left, top, across, down, .. } => {
                            assert!((left + to.0) * across <= from.0 && (top + to.1) * down <= from.1);
                        }
                        ResizeTables::Shrink { x, y } => {
                            check(x, to.0, from.0, x.len() * x.taps as usize);
                            check(y, to.1, from.1, y.len() * y.taps as usize);
                        }
                        ResizeTables::Enlarge { x, y } => {
                            check(x, to.0, from.0, x.len());
                            check(y, to.1, from.1, y.len());
                        }
                    }
                }
                for (axis, from, to) in [(0, restored.0, output.0), (1, restored.1, output.1)] {
                    match &tables.tokens[axis] {
                        Some(axis) => check(axis, to, from, axis.len() * axis.taps as usize),
                        None => assert_eq!(from, to),
                    }
                }
            }
        }
    }
}
