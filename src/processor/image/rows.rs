//! Packed 8-bit RGB rows, read in whole machine words.

use super::size::{Rect, Size};

/// A rectangle of packed RGB pixels inside a larger buffer.
#[derive(Clone, Copy)]
pub(super) struct Pixels<'a> {
    /// From the first pixel of the rectangle to the end of the buffer.
    bytes: &'a [u8],
    stride: usize,
    pub width: usize,
    pub height: usize,
}

impl<'a> Pixels<'a> {
    /// `bytes` holds at least the `size.height` rows of 3 * `size.width` bytes.
    pub fn new(bytes: &'a [u8], size: Size) -> Self {
        let (width, height) = (size.width as usize, size.height as usize);
        assert!(bytes.len() >= width * height * 3, "{} bytes for {width}x{height} pixels", bytes.len());
        Self { bytes, stride: width * 3, width, height }
    }

    /// The part inside `rect`, which lies within these pixels.
    pub fn crop(self, rect: Rect) -> Self {
        let (left, top) = (rect.left as usize, rect.top as usize);
        let (width, height) = (rect.size.width as usize, rect.size.height as usize);
        assert!(left + width <= self.width && top + height <= self.height, "{rect:?} lies outside");
        Self { bytes: &self.bytes[top * self.stride + left * 3..], width, height, ..self }
    }

    /// The pixels of row `y`.
    pub fn row(&self, y: usize) -> &'a [u8] {
        &self.bytes[y * self.stride..][..self.width * 3]
    }

    /// `reach` bytes from the start of row `y` on, so that a row can be read in words that run past its end. What
    /// lies past the end is unspecified. Near the end of the buffer the row is copied to `spare`.
    pub fn row_with_reach<'s>(&'s self, y: usize, reach: usize, spare: &'s mut Vec<u8>) -> &'s [u8] {
        let start = y * self.stride;
        if let Some(row) = self.bytes.get(start..start + reach) {
            return row;
        }
        spare.clear();
        spare.extend_from_slice(self.row(y));
        spare.resize(reach.max(spare.len()), 0);
        &spare[..reach]
    }

    /// A copy without gaps.
    pub fn to_vec(self) -> Vec<u8> {
        (0..self.height).flat_map(|y| self.row(y)).copied().collect()
    }
}

/// Runs `pass` over rows `y` and `y + 1` at once: one set of weights then serves both. Past the last row the last
/// one takes its place.
#[inline(always)]
pub(super) fn for_row_pair(
    pixels: &Pixels,
    y: usize,
    reach: usize,
    spare: &mut [Vec<u8>; 2],
    pass: impl FnOnce(&[u8], &[u8]),
) {
    let [spare_a, spare_b] = spare;
    let a = pixels.row_with_reach(y, reach, spare_a);
    let b = pixels.row_with_reach((y + 1).min(pixels.height - 1), reach, spare_b);
    pass(a, b);
}

/// Pixel `start` of a row and those after it, each with the byte that follows it: compilers make one vector of four
/// lanes, where they would work on three one by one.
#[inline(always)]
pub(super) fn pixels_from(row: &[u8], start: u32) -> impl Iterator<Item = [u8; 4]> + '_ {
    let mut rest = &row[start as usize * 3..];
    std::iter::from_fn(move || {
        let &pixel = rest.first_chunk()?;
        rest = &rest[3..];
        Some(pixel)
    })
}
