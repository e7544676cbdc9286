//! The image pipeline against OpenCV and Pillow themselves, on random frames.

mod reference;

use groot_policy::processor::image::{ImageError, ImageTransform};
use image::RgbImage;
use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use reference::Reference;

/// Noise, or rectangles of black and white, where rounding and clamping show most.
fn random_frame(rng: &mut ChaCha8Rng, width: u32, height: u32) -> RgbImage {
    let mut frame = RgbImage::new(width, height);
    if rng.random_bool(0.5) {
        rng.fill_bytes(&mut frame);
    } else {
        let (across, down) = (rng.random_range(1..=9), rng.random_range(1..=9));
        let first: [u8; 3] = rng.random();
        for (x, y, pixel) in frame.enumerate_pixels_mut() {
            let white = (x / across + y / down) % 2 == 0;
            pixel.0 = first.map(|value| if (value > 127) == white { 255 } else { value % 4 });
        }
    }
    frame
}

/// Width and height: cameras' own, tiny, narrow, whole multiples of the edge, or any.
fn random_size(rng: &mut ChaCha8Rng, edge: u32) -> (u32, u32) {
    const CAMERAS: [(u32, u32); 10] = [
        (640, 480),
        (640, 360),
        (320, 240),
        (1280, 720),
        (1920, 1080),
        (1280, 800),
        (424, 240),
        (848, 480),
        (256, 256),
        (224, 224),
    ];
    match rng.random_range(0..7) {
        0 => CAMERAS[rng.random_range(0..CAMERAS.len())],
        1 => (rng.random_range(1..=40), rng.random_range(1..=40)),
        2 => (rng.random_range(1..=20), rng.random_range(100..=800)),
        3 => (edge * rng.random_range(1..=4), edge * rng.random_range(1..=4)),
        4 => (rng.random_range(900..=3000), rng.random_range(900..=3000)),
        5 => (edge.saturating_add_signed(rng.random_range(-3..=3)), edge + rng.random_range(0..=9)),
        _ => (rng.random_range(41..=900), rng.random_range(41..=900)),
    }
}

#[test]
fn every_stage_equals_opencv_and_pillow_on_random_frames() {
    let mut reference = Reference::start().unwrap_or_else(|e| panic!("{e}"));
    let cases = std::env::var("GROOT_REFERENCE_CASES").map_or(300, |n| n.parse().unwrap());
    let seed = std::env::var("GROOT_REFERENCE_SEED").map_or(1, |n| n.parse().unwrap());
    println!("{} on {cases} frames, seed {seed}", reference.versions);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut compared = 0;
    for case in 0..cases {
        let (edge, fraction) = match rng.random_range(0..4) {
            0 | 1 => (256, 0.95),
            2 => (rng.random_range(28..=600), 1.0),
            _ => (rng.random_range(28..=600), rng.random_range(0.05..1.0)),
        };
        let (mut width, mut height) = random_size(&mut rng, edge);
        if rng.random_bool(0.5) {
            (width, height) = (height, width);
        }
        let what = format!("case {case}: {width}x{height}, edge {edge}, crop {fraction}");
        let frame = random_frame(&mut rng, width, height);
        let transform = ImageTransform::new(edge, fraction).unwrap();
        let ours = match transform.stages(&frame) {
            Ok(stages) => stages,
            Err(ImageError::AspectRatio { .. } | ImageError::ResizedTooLarge { .. }) => continue,
            Err(e) => panic!("{what}: {e}"),
        };
        let theirs = reference.stages(&frame, edge, fraction).unwrap();
        for (stage, (ours, theirs)) in
            [&ours.s1, &ours.s2, &ours.s3, &ours.s4].into_iter().zip(&theirs).enumerate()
        {
            let stage = stage + 1;
            assert_eq!(ours.dimensions(), theirs.dimensions(), "{what}: size after step {stage}");
            let differing = ours.iter().zip(theirs.iter()).filter(|(a, b)| a != b).count();
            assert_eq!(
                differing,
                0,
                "{what}: {differing} of {} values differ after step {stage}",
                ours.len()
            );
        }
        assert!(transform.apply(&frame).unwrap() == ours.s4, "{what}: apply differs from stages");
        compared += 1;
    }
    println!("{compared} frames equal");
    assert!(compared * 4 > cases * 3, "only {compared} of {cases} frames were comparable");
}
