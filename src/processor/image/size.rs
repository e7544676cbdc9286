//! The size rules: which size a frame has after each step of the pipeline, decided before a pixel is touched.

use super::ImageError;

/// Side of the square of pixels behind one image token: patches of 14 pixels, merged 2 by 2.
pub(super) const TOKEN_SIDE: u32 = 28;

/// Shortest edges that [`super::ImageTransform`] accepts, in pixels.
pub const SHORTEST_EDGE_RANGE: std::ops::RangeInclusive<u32> = TOKEN_SIDE..=2048;
/// Longest side of a frame, in pixels.
pub const MAX_FRAME_SIDE: u32 = 16_384;
/// Most pixels that a resized frame may have. Only frames of an extreme aspect ratio come near.
pub const MAX_STAGE_PIXELS: u64 = 1 << 24;
/// Longest side divided by shortest side; the reference refuses more.
pub const MAX_ASPECT_RATIO: f64 = 200.0;

/// Fewest and most pixels of the last step's result, as the reference's vision processor has them.
const OUTPUT_PIXELS: (f64, f64) = (4.0 * 784.0, 4096.0 * 784.0);
/// Longest side of the last step's result before that rule, likewise.
const MAX_OUTPUT_SIDE: f64 = 7000.0;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    pub width: u32,
    pub height: u32,
}

/// A rectangle inside an image, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rect {
    pub left: u32,
    pub top: u32,
    pub size: Size,
}

impl Size {
    pub fn whole(self) -> Rect {
        Rect { left: 0, top: 0, size: self }
    }
}

/// The sizes of one frame on its way through the pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sizes {
    pub frame: Size,
    pub resized: Size,
    pub crop: Rect,
    pub restored: Size,
    pub output: Size,
}

impl Sizes {
    pub fn new(frame: Size, edge: u32, crop_fraction: f64) -> Result<Self, ImageError> {
        let Size { width, height } = frame;
        if width == 0 || height == 0 {
            return Err(ImageError::EmptyFrame { width, height });
        }
        if width.max(height) > MAX_FRAME_SIDE {
            return Err(ImageError::FrameTooLarge { width, height });
        }
        let resized = with_shortest_edge(frame, edge, frame)?;
        let crop = centre_crop(resized, crop_fraction);
        let restored = with_shortest_edge(crop.size, edge, frame)?;
        let (long, short) = (restored.width.max(restored.height), restored.width.min(restored.height));
        if f64::from(long) / f64::from(short) > MAX_ASPECT_RATIO {
            return Err(ImageError::AspectRatio { width, height });
        }
        Ok(Self { frame, resized, crop, restored, output: whole_tokens(restored) })
    }
}

/// Scales both sides by edge / shortest side, rounding half to even. `frame` is what an error names.
fn with_shortest_edge(size: Size, edge: u32, frame: Size) -> Result<Size, ImageError> {
    let scale = f64::from(edge) / f64::from(size.width.min(size.height));
    let side = |side: u32| (f64::from(side) * scale).round_ties_even();
    let (width, height) = (side(size.width), side(size.height));
    if width * height > MAX_STAGE_PIXELS as f64 {
        return Err(ImageError::ResizedTooLarge { width: frame.width, height: frame.height, edge });
    }
    // Both are at least 1 and, with the bound above, far below u32::MAX.
    Ok(Size { width: width as u32, height: height as u32 })
}

/// The middle part of the image: `fraction` of each side, truncated, at least one pixel.
fn centre_crop(size: Size, fraction: f64) -> Rect {
    let side = |side: u32| ((f64::from(side) * fraction) as u32).max(1);
    let crop = Size { width: side(size.width), height: side(size.height) };
    Rect { left: (size.width - crop.width) / 2, top: (size.height - crop.height) / 2, size: crop }
}

/// The nearest size made of whole image tokens, with the reference's limits on the number of pixels.
fn whole_tokens(size: Size) -> Size {
    let factor = f64::from(TOKEN_SIDE);
    let (width, height) = (f64::from(size.width), f64::from(size.height));
    let side = |side: f64| ((side / factor).round_ties_even() * factor).clamp(factor, MAX_OUTPUT_SIDE);
    let (w, h) = (side(width), side(height));
    let (fewest, most) = OUTPUT_PIXELS;
    let (w, h) = if w * h > most {
        let shrink = (w * h / most).sqrt();
        let side = |side: f64| (side / shrink / factor).floor() * factor;
        (side(w), side(h))
    } else if w * h < fewest {
        let grow = (fewest / (width * height)).sqrt();
        let side = |side: f64| (side * grow / factor).ceil() * factor;
        (side(width), side(height))
    } else {
        (w, h)
    };
    Size { width: w as u32, height: h as u32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(width: u32, height: u32) -> (u32, u32) {
        let size = whole_tokens(Size { width, height });
        (size.width, size.height)
    }

    #[test]
    fn a_side_halfway_between_two_multiples_goes_to_the_even_one() {
        assert_eq!(tokens(70, 98), (56, 112));
    }

    #[test]
    fn too_few_pixels_are_scaled_up_to_four_tokens() {
        assert_eq!(tokens(28, 28), (56, 56));
        assert_eq!(tokens(40, 56), (56, 84));
    }

    #[test]
    fn too_many_pixels_are_scaled_down_to_4096_tokens() {
        assert_eq!(tokens(2048, 2048), (1792, 1792));
        assert_eq!(tokens(51_200, 256), (7000, 252));
    }

    #[test]
    fn the_crop_keeps_at_least_one_pixel() {
        let crop = centre_crop(Size { width: 28, height: 300 }, 0.01);
        assert_eq!(crop, Rect { left: 13, top: 148, size: Size { width: 1, height: 3 } });
    }
}
