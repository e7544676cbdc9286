//! What must hold of the pipeline whatever the frame; exact numbers are the golden suite's.

use image::{Rgb, RgbImage};
use proptest::prelude::*;

use super::*;

/// Frames worth processing in a test: any shape, noise from a seed.
fn frames() -> impl Strategy<Value = RgbImage> {
    (1_u32..=400, 1_u32..=400, any::<u64>()).prop_map(|(width, height, seed)| noise(width, height, seed))
}

fn noise(width: u32, height: u32, seed: u64) -> RgbImage {
    let mut state = seed;
    RgbImage::from_fn(width, height, |_, _| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let [.., a, b, c] = state.to_le_bytes();
        Rgb([a, b, c])
    })
}

fn edges_and_fractions() -> impl Strategy<Value = (u32, f64)> {
    prop_oneof![
        Just((256, 0.95)),
        (28_u32..=300, 0.01_f64..=1.0),
        (28_u32..=300).prop_map(|edge| (edge, 1.0)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn apply_gives_the_last_stage_and_the_announced_sizes(
        frame in frames(),
        (edge, fraction) in edges_and_fractions(),
    ) {
        let transform = ImageTransform::new(edge, fraction).unwrap();
        let (width, height) = frame.dimensions();
        match transform.stages(&frame) {
            Ok(stages) => {
                prop_assert_eq!(stages.s1.width().min(stages.s1.height()), edge);
                prop_assert_eq!(transform.resized_size(width, height).unwrap(), stages.s3.dimensions());
                prop_assert_eq!(transform.output_size(width, height).unwrap(), stages.s4.dimensions());
                prop_assert_eq!(stages.s4.width() % 28, 0);
                prop_assert_eq!(stages.s4.height() % 28, 0);
                prop_assert!(transform.apply(&frame).unwrap() == stages.s4);
            }
            Err(error) => prop_assert_eq!(transform.apply(&frame).unwrap_err(), error),
        }
    }

    #[test]
    fn a_constant_frame_stays_constant(
        (width, height) in (1_u32..=400, 1_u32..=400),
        colour in any::<[u8; 3]>(),
        (edge, fraction) in edges_and_fractions(),
    ) {
        let transform = ImageTransform::new(edge, fraction).unwrap();
        if let Ok(out) = transform.apply(&RgbImage::from_pixel(width, height, Rgb(colour))) {
            // The two-tap method truncates each product: it may lose one grey level, never gain one.
            for pixel in out.pixels() {
                for (value, colour) in pixel.0.into_iter().zip(colour) {
                    prop_assert!(value <= colour && colour - value <= 1, "{colour} became {value}");
                }
            }
        }
    }

    #[test]
    fn a_frame_that_fits_already_is_returned_unchanged(
        (across, down) in (2_u32..=6, 2_u32..=6),
        seed in any::<u64>(),
    ) {
        let (width, height) = (across * 28, down * 28);
        let frame = noise(width, height, seed);
        let transform = ImageTransform::new(width.min(height), 1.0).unwrap();
        prop_assert!(transform.apply(&frame).unwrap() == frame);
    }

    #[test]
    fn the_kernels_of_this_processor_equal_the_portable_ones(
        frame in frames(),
        (edge, fraction) in edges_and_fractions(),
    ) {
        let fast = ImageTransform::new(edge, fraction).unwrap();
        let portable = ImageTransform { simd: Simd::Portable, ..fast.clone() };
        match (fast.stages(&frame), portable.stages(&frame)) {
            (Ok(fast), Ok(portable)) => {
                prop_assert!(fast.s1 == portable.s1, "step 1");
                prop_assert!(fast.s3 == portable.s3, "step 3");
                prop_assert!(fast.s4 == portable.s4, "step 4");
            }
            (fast, portable) => prop_assert_eq!(fast.unwrap_err(), portable.unwrap_err()),
        }
    }

    #[test]
    fn no_size_panics_or_is_planned_beyond_the_bounds(
        width in any::<u32>(), height in any::<u32>(), edge in any::<u32>(), fraction in any::<f64>(),
    ) {
        if let Ok(transform) = ImageTransform::new(edge, fraction) {
            // Any u32 is nearly always beyond the longest side; its remainder is not.
            for (width, height) in [(width, height), (width % 20_000, height % 20_000), (width % 50, height % 50)] {
                if let Ok((width, height)) = transform.output_size(width, height) {
                    prop_assert!(width > 0 && height > 0);
                    prop_assert!(u64::from(width) * u64::from(height) <= 4096 * 784);
                }
            }
        }
    }
}

#[test]
fn the_kernels_agree_where_many_taps_are_needed() {
    // One tap count for each specialised kernel and for the general ones.
    for (width, height) in
        [(300, 257), (511, 700), (1000, 900), (1200, 1023), (1280, 1281), (2600, 2000), (3500, 260)]
    {
        let frame = noise(width, height, 7);
        for edge in [256, 100, 33] {
            let fast = ImageTransform::new(edge, 0.95).unwrap();
            let portable = ImageTransform { simd: Simd::Portable, ..fast.clone() };
            let what = format!("{width}x{height} to {edge}");
            assert!(fast.apply(&frame).unwrap() == portable.apply(&frame).unwrap(), "{what}");
        }
    }
}

#[test]
fn a_frame_of_one_pixel_becomes_a_whole_image() {
    let transform = ImageTransform::new(256, 0.95).unwrap();
    let out = transform.apply(&RgbImage::from_pixel(1, 1, Rgb([3, 200, 77]))).unwrap();
    assert_eq!(out.dimensions(), (252, 252));
    assert_eq!(image_tokens(252, 252), 81);
}

#[test]
fn parameters_out_of_range_are_refused() {
    for edge in [0, 27, 2049, u32::MAX] {
        assert_eq!(ImageTransform::new(edge, 0.95).unwrap_err(), ImageError::ShortestEdge { found: edge });
    }
    for fraction in [0.0, -0.5, 1.000_001, f64::INFINITY, f64::NAN] {
        let error = ImageTransform::new(256, fraction).unwrap_err();
        assert!(matches!(error, ImageError::CropFraction { .. }), "{fraction}: {error}");
    }
}

#[test]
fn frames_beyond_the_bounds_are_refused_by_name() {
    let transform = ImageTransform::new(256, 0.95).unwrap();
    let refused = |width, height| {
        let error = transform.output_size(width, height).unwrap_err();
        if u64::from(width) * u64::from(height) < 1 << 20 {
            assert_eq!(transform.apply(&RgbImage::new(width, height)).unwrap_err(), error);
        }
        error
    };
    assert_eq!(refused(0, 480), ImageError::EmptyFrame { width: 0, height: 480 });
    assert_eq!(refused(640, 0), ImageError::EmptyFrame { width: 640, height: 0 });
    assert_eq!(refused(16_385, 1), ImageError::FrameTooLarge { width: 16_385, height: 1 });
    assert_eq!(refused(1, 16_384), ImageError::ResizedTooLarge { width: 1, height: 16_384, edge: 256 });
    assert_eq!(refused(2, 420), ImageError::AspectRatio { width: 2, height: 420 });
    assert!(refused(2, 420).to_string().contains("2x420"));
}

#[test]
fn threads_share_one_transform() {
    let transform = ImageTransform::new(256, 0.95).unwrap();
    // More sizes than plans are kept, so that plans are dropped and made again.
    let frames: Vec<_> = (0..2 * PLANS_KEPT as u32).map(|i| noise(300 + i, 280, 1)).collect();
    let alone: Vec<_> = frames.iter().map(|frame| transform.apply(frame).unwrap()).collect();
    std::thread::scope(|scope| {
        for offset in 0..4 {
            let (transform, frames, alone) = (transform.clone(), &frames, &alone);
            scope.spawn(move || {
                for i in (0..frames.len()).map(|i| (i + offset * 3) % frames.len()) {
                    assert!(transform.apply(&frames[i]).unwrap() == alone[i]);
                }
            });
        }
    });
    assert_eq!(transform.plans.lock().unwrap().len(), PLANS_KEPT);
}

#[test]
fn pixel_values_are_channels_first_between_minus_one_and_one() {
    let image = RgbImage::from_fn(2, 1, |x, _| if x == 0 { Rgb([0, 255, 51]) } else { Rgb([255, 0, 204]) });
    let values = pixel_values(&image);
    assert_eq!(values.shape(), [3, 1, 2]);
    assert_eq!(values.into_raw_vec_and_offset().0, [-1.0, 1.0, 1.0, -1.0, -0.6, 0.6]);
}
