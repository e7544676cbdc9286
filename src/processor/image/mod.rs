//! The evaluation image pipeline: a camera frame becomes the pixels that the vision tower reads.
//!
//! | step | what | arithmetic | 640x480, edge 256, crop 0.95 |
//! |---|---|---|---|
//! | 1 | shortest side to the edge | OpenCV `INTER_AREA` (`area`) | 341x256 |
//! | 2 | centre crop | | 323x243 |
//! | 3 | shortest side back to the edge | OpenCV `INTER_AREA`, here an enlargement (`linear`) | 340x256 |
//! | 4 | to whole image tokens of 28x28 pixels | Pillow bicubic (`bicubic`) | 336x252 |
//! | 5 | to -1..1, channels first | f32 ([`pixel_values`]) | |
//!
//! Steps 1 to 4 give the same bytes as the public reference with OpenCV 4.11 and Pillow 12.1 (Isaac-GR00T N1.6:
//! albumentations' `SmallestMaxSize`, a centre crop by fraction, and the vision processor's resize). `size` decides
//! all sizes before a pixel is touched, and with them refuses what would need too much memory. `simd` picks the
//! kernels that this processor has; `rows` lets them read whole machine words. [`tables`] hands the plan to other devices.

mod area;
#[cfg(target_arch = "x86_64")]
mod avx2;
mod bicubic;
mod linear;
mod rows;
mod simd;
mod size;
pub mod tables;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, PoisonError};

use image::RgbImage;
use ndarray::Array3;

use area::AreaResize;
use bicubic::Bicubic;
use rows::Pixels;
use simd::Simd;
pub use size::{MAX_ASPECT_RATIO, MAX_FRAME_SIDE, MAX_STAGE_PIXELS, SHORTEST_EDGE_RANGE};
use size::{Rect, Size, Sizes, TOKEN_SIDE};
use tables::FrameTables;

/// Why a frame, or a configuration, is refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    #[error("a frame has no pixels: {width}x{height}; check the camera's width and height")]
    EmptyFrame { width: u32, height: u32 },
    #[error(
        "a frame of {width}x{height} is too large: no side may exceed {MAX_FRAME_SIDE} pixels; send smaller frames"
    )]
    FrameTooLarge { width: u32, height: u32 },
    #[error(
        "a frame of {width}x{height}, resized to a shortest edge of {edge}, would exceed {MAX_STAGE_PIXELS} pixels; \
         send frames that are closer to square"
    )]
    ResizedTooLarge { width: u32, height: u32, edge: u32 },
    #[error(
        "a frame of {width}x{height} is too narrow: once cropped, its longest side may be at most {MAX_ASPECT_RATIO} \
         times its shortest; send frames that are closer to square"
    )]
    AspectRatio { width: u32, height: u32 },
    #[error(
        "the shortest image edge is {found}, expected {} to {} pixels; check processor_config.json",
        SHORTEST_EDGE_RANGE.start(),
        SHORTEST_EDGE_RANGE.end()
    )]
    ShortestEdge { found: u32 },
    #[error("the crop fraction is {found}, expected more than 0 and at most 1; check processor_config.json")]
    CropFraction { found: f64 },
}

/// Plans that are kept, one per frame size. Cameras seldom differ in more sizes than this.
const PLANS_KEPT: usize = 8;

/// The pipeline for one pair of parameters. Clones share what they have planned; [`ImageTransform::apply`] may run in
/// any number of threads at once.
#[derive(Debug, Clone)]
pub struct ImageTransform {
    edge: u32,
    crop_fraction: f64,
    simd: Simd,
    /// The most recently used plan comes first.
    plans: Arc<Mutex<Vec<Arc<Plan>>>>,
}

/// The result of every step, for tests and for looking at.
#[derive(Debug, Clone)]
pub struct ImageStages {
    /// Shortest side resized to the edge.
    pub s1: RgbImage,
    /// Centre crop.
    pub s2: RgbImage,
    /// Shortest side resized back to the edge.
    pub s3: RgbImage,
    /// Both sides multiples of 28; what [`ImageTransform::apply`] returns.
    pub s4: RgbImage,
}

impl ImageTransform {
    /// `shortest_edge` in pixels, within [`SHORTEST_EDGE_RANGE`]; `crop_fraction` of each side, in (0, 1].
    pub fn new(shortest_edge: u32, crop_fraction: f64) -> Result<Self, ImageError> {
        if !SHORTEST_EDGE_RANGE.contains(&shortest_edge) {
            return Err(ImageError::ShortestEdge { found: shortest_edge });
        }
        // Written so that NaN is refused too.
        if !(crop_fraction > 0.0 && crop_fraction <= 1.0) {
            return Err(ImageError::CropFraction { found: crop_fraction });
        }
        Ok(Self { edge: shortest_edge, crop_fraction, simd: Simd::detect(), plans: Arc::default() })
    }

    /// (width, height) of what [`ImageTransform::apply`] makes of a frame of this size.
    pub fn output_size(&self, width: u32, height: u32) -> Result<(u32, u32), ImageError> {
        let Size { width, height } = self.sizes(width, height)?.output;
        Ok((width, height))
    }

    /// (width, height) after step 3, where the reference demands the same size of all cameras of an observation.
    pub fn resized_size(&self, width: u32, height: u32) -> Result<(u32, u32), ImageError> {
        let Size { width, height } = self.sizes(width, height)?.restored;
        Ok((width, height))
    }

    /// Steps 1 to 4. Pixels that step 2 cuts away are never computed.
    ///
    /// # Errors
    /// A frame without pixels, or one whose size or aspect ratio is beyond [`MAX_FRAME_SIDE`],
    /// [`MAX_STAGE_PIXELS`] or [`MAX_ASPECT_RATIO`].
    pub fn apply(&self, frame: &RgbImage) -> Result<RgbImage, ImageError> {
        let plan = self.plan(frame.width(), frame.height())?;
        let Sizes { frame: size, crop, restored, output, .. } = plan.sizes;
        let pixels = Pixels::new(frame.as_raw(), size);

        let shrunk = plan.resize.as_ref().map(|resize| self.resize(resize, &pixels, crop.size));
        let cropped = match &shrunk {
            Some(bytes) => Pixels::new(bytes, crop.size),
            None => pixels.crop(crop),
        };
        let grown = plan.restore.as_ref().map(|resize| self.resize(resize, &cropped, restored));
        let square = match &grown {
            Some(bytes) => Pixels::new(bytes, restored),
            None => cropped,
        };
        let mut out = RgbImage::new(output.width, output.height);
        plan.tokens.run(self.simd, &square, &mut out);
        Ok(out)
    }

    /// Steps 1 to 4, with every intermediate result. Slower than [`ImageTransform::apply`] and plans anew each time.
    ///
    /// # Errors
    /// As [`ImageTransform::apply`].
    pub fn stages(&self, frame: &RgbImage) -> Result<ImageStages, ImageError> {
        let sizes = self.sizes(frame.width(), frame.height())?;
        let pixels = Pixels::new(frame.as_raw(), sizes.frame);
        let whole = |from: &Pixels, from_size: Size, to: Size| match plan_resize(
            from_size,
            to,
            to.whole(),
            self.edge,
        ) {
            Some(resize) => self.resize(&resize, from, to),
            None => from.to_vec(),
        };
        let s1 = whole(&pixels, sizes.frame, sizes.resized);
        let s2 = Pixels::new(&s1, sizes.resized).crop(sizes.crop).to_vec();
        let s3 = whole(&Pixels::new(&s2, sizes.crop.size), sizes.crop.size, sizes.restored);
        let mut s4 = RgbImage::new(sizes.output.width, sizes.output.height);
        Bicubic::new(sizes.restored, sizes.output).run(self.simd, &Pixels::new(&s3, sizes.restored), &mut s4);
        Ok(ImageStages {
            s1: to_image(s1, sizes.resized),
            s2: to_image(s2, sizes.crop.size),
            s3: to_image(s3, sizes.restored),
            s4,
        })
    }

    /// What steps 1 to 4 do with a frame of this size, for a device that does it itself.
    ///
    /// # Errors
    /// As [`ImageTransform::apply`].
    pub fn tables(&self, width: u32, height: u32) -> Result<FrameTables, ImageError> {
        Ok(FrameTables::new(&*self.plan(width, height)?))
    }

    fn sizes(&self, width: u32, height: u32) -> Result<Sizes, ImageError> {
        Sizes::new(Size { width, height }, self.edge, self.crop_fraction)
    }

    fn resize(&self, resize: &AreaResize, from: &Pixels, to: Size) -> Vec<u8> {
        let mut out = vec![0; to.width as usize * to.height as usize * 3];
        resize.run(self.simd, from, &mut out);
        out
    }

    /// The plan for this frame size, from the kept ones where it is there.
    fn plan(&self, width: u32, height: u32) -> Result<Arc<Plan>, ImageError> {
        let frame = Size { width, height };
        // A panic elsewhere cannot leave the list in a state that is wrong to read.
        let lock = || self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let mut plans = lock();
            if let Some(found) = plans.iter().position(|plan| plan.sizes.frame == frame) {
                plans[..=found].rotate_right(1);
                return Ok(Arc::clone(&plans[0]));
            }
        }
        // Planned outside the lock: two threads may plan the same size once, none waits for the other.
        let plan = Arc::new(Plan::new(self.sizes(width, height)?, self.edge));
        let mut plans = lock();
        plans.insert(0, Arc::clone(&plan));
        plans.truncate(PLANS_KEPT);
        Ok(plan)
    }
}

/// Everything that depends on the frame's size but not on its pixels.
struct Plan {
    sizes: Sizes,
    /// Steps 1 and 2.
    resize: Option<AreaResize>,
    /// Step 3.
    restore: Option<AreaResize>,
    /// Step 4.
    tokens: Bicubic,
}

impl Plan {
    fn new(sizes: Sizes, edge: u32) -> Self {
        let Sizes { frame, resized, crop, restored, output } = sizes;
        Self {
            sizes,
            resize: plan_resize(frame, resized, crop, edge),
            restore: plan_resize(crop.size, restored, restored.whole(), edge),
            tokens: Bicubic::new(restored, output),
        }
    }
}

impl std::fmt::Debug for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plan").field("sizes", &self.sizes).finish_non_exhaustive()
    }
}

/// The resize `from` → `to` inside `window`; none where the shortest side already is the edge.
fn plan_resize(from: Size, to: Size, window: Rect, edge: u32) -> Option<AreaResize> {
    (from.width.min(from.height) != edge).then(|| AreaResize::new(from, to, window))
}

fn to_image(bytes: Vec<u8>, size: Size) -> RgbImage {
    // Every caller has made 3 bytes for each pixel of `size`.
    RgbImage::from_raw(size.width, size.height, bytes).expect("3 bytes per pixel")
}

/// Step 5: bytes 0..255 to -1..1, shape (3, height, width), in f32.
pub fn pixel_values(image: &RgbImage) -> Array3<f32> {
    let (width, height) = (image.width() as usize, image.height() as usize);
    Array3::from_shape_fn((3, height, width), |(channel, y, x)| {
        (f32::from(image.as_raw()[(y * width + x) * 3 + channel]) - 127.5) / 127.5
    })
}

/// Image tokens that the vision tower makes of an image of this size (after step 4): one per 28x28 pixels.
pub fn image_tokens(width: u32, height: u32) -> usize {
    width as usize * height as usize / (TOKEN_SIDE * TOKEN_SIDE) as usize
}
