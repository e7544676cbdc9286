//! The kernels against the CPU's own loops: in the emulation, and on a GPU where there is one.

use std::collections::BTreeSet;

use image::RgbImage;
use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::cuda::{Target, emulation::Order};
use crate::engine::ComputeCapability;
use crate::processor::image::tables::{FrameTables, ResizeTables};

/// Noise, or rectangles of black and white, where rounding and clamping show most.
fn random_frame(random: &mut ChaCha8Rng, (width, height): (u32, u32)) -> RgbImage {
    let mut frame = RgbImage::new(width, height);
    if random.random_bool(0.5) {
        random.fill_bytes(&mut frame);
    } else {
        let (across, down) = (random.random_range(1..=9), random.random_range(1..=9));
        let first: [u8; 3] = random.random();
        for (x, y, pixel) in frame.enumerate_pixels_mut() {
            let white = (x / across + y / down) % 2 == 0;
            pixel.0 = first.map(|value| if (value > 127) == white { 255 } else { value % 4 });
        }
    }
    frame
}

/// Any, tiny, narrow, whole multiples of the edge, next to it, square; either way round.
fn random_size(random: &mut ChaCha8Rng, edge: u32, largest: u32) -> (u32, u32) {
    let (width, height) = match random.random_range(0..7) {
        0 => (random.random_range(1..=20), random.random_range(1..=20)),
        1 => (random.random_range(1..=20), random.random_range(40..=largest)),
        2 => (edge * random.random_range(1..=3), edge * random.random_range(1..=3)),
        3 => (edge.saturating_add_signed(random.random_range(-3..=3)), edge + random.random_range(0..=9)),
        4 => {
            let side = random.random_range(21..=largest);
            (side, side)
        }
        _ => (random.random_range(21..=largest), random.random_range(21..=largest)),
    };
    if random.random_bool(0.5) { (width, height) } else { (height, width) }
}

/// The branches that frames of these tables take.
fn branches(tables: &FrameTables) -> Vec<&'static str> {
    let mut taken = Vec::new();
    for (resize, [copy, quarter, blocks, shrink, enlarge]) in [
        (&tables.resize, ["cropped alone", "means of 2x2", "means of blocks", "shrunk", "enlarged"]),
        (&tables.restore, ["whole", "", "", "", "restored"]),
    ] {
        taken.push(match resize {
            ResizeTables::Copy { .. } => copy,
            ResizeTables::Blocks { across: 2, down: 2, .. } => quarter,
            ResizeTables::Blocks { .. } => blocks,
            ResizeTables::Shrink { .. } => shrink,
            ResizeTables::Enlarge { .. } => enlarge,
        });
    }
    taken.push(match &tables.tokens {
        [None, None] => "no token axis",
        [Some(_), None] => "tokens along x",
        [None, Some(_)] => "tokens along y",
        [Some(_), Some(_)] => "tokens along both",
    });
    taken
}

/// Where the kernels run.
struct Machine {
    gpu: Gpu,
    queue: Queue,
}

impl Machine {
    fn emulated(order: Order, overlap: bool) -> Self {
        Self { gpu: Gpu::emulated(), queue: Queue::emulated(order, overlap) }
    }

    /// None where there is no GPU.
    fn real() -> Option<Self> {
        match Gpu::open(0) {
            Ok(gpu) => {
                let queue = Queue::new(gpu.new_stream().unwrap(), gpu.overlaps());
                Some(Self { gpu, queue })
            }
            Err(error) => {
                eprintln!("skipped: {error}");
                None
            }
        }
    }

    fn results(&self, batch: &FrameBatch) -> Vec<u8> {
        self.queue.finish().unwrap();
        let mut bytes = vec![0; batch.bytes().1];
        if self.gpu.is_emulated() {
            // SAFETY: memory of this process, with room for all results.
            let results = unsafe { std::slice::from_raw_parts(batch.address() as *const u8, bytes.len()) };
            bytes.copy_from_slice(results);
        } else {
            let stream = self.queue.stream();
            // SAFETY: as many bytes lie there, and as many are borrowed until the copy is done.
            unsafe { result::memcpy_dtoh_async(&mut bytes, batch.address(), stream.cu_stream()) }.unwrap();
            stream.synchronize().unwrap();
        }
        bytes
    }

    /// Frames through the kernels and through the CPU's loops.
    fn compare(&self, preprocessor: &mut FramePreprocessor, frames: &[RgbImage]) {
        let transform = preprocessor.transform.clone();
        let sizes: Vec<_> = frames.iter().map(RgbImage::dimensions).collect();
        let mut batch = preprocessor.batch(&sizes).unwrap();
        let expected: Vec<u8> =
            frames.iter().flat_map(|frame| transform.apply(frame).unwrap().into_raw()).collect();
        assert_eq!(batch.shape().iter().product::<usize>(), expected.len());
        batch.upload(&self.queue, frames.iter()).unwrap();
        preprocessor.queue(&self.queue, &batch).unwrap();
        let found = self.results(&batch);
        let wrong = found.iter().zip(&expected).position(|(found, expected)| found != expected);
        if let Some(at) = wrong {
            panic!("{sizes:?} to {:?}: byte {at} is {}, expected {}", batch.shape(), found[at], expected[at]);
        }
    }
}

fn compare_random_frames(
    machine: &Machine,
    cases: usize,
    edges: std::ops::RangeInclusive<u32>,
    largest: u32,
) {
    let mut random = ChaCha8Rng::seed_from_u64(7);
    let mut taken = BTreeSet::new();
    for _ in 0..cases {
        let edge = random.random_range(edges.clone());
        // Of whole image tokens, so that the last step has nothing to do.
        let edge = if random.random_bool(0.3) { edge / 28 * 28 } else { edge };
        let fraction = if random.random_bool(0.3) { 1.0 } else { random.random_range(0.05..1.0) };
        let transform = ImageTransform::new(edge, fraction).unwrap();
        let mut preprocessor = FramePreprocessor::new(&machine.gpu, &transform).unwrap();
        let size = random_size(&mut random, edge, largest);
        let frame = random_frame(&mut random, size);
        match transform.tables(size.0, size.1) {
            Ok(tables) => taken.extend(branches(&tables)),
            Err(expected) => {
                let error = preprocessor.batch(&[size]).map(|_| ()).unwrap_err();
                assert!(
                    matches!(&error, PreprocessError::Frame { index: 0, error } if *error == expected),
                    "{error}"
                );
                continue;
            }
        }
        machine.compare(&mut preprocessor, &[frame]);
    }
    let all = [
        "cropped alone",
        "enlarged",
        "means of 2x2",
        "means of blocks",
        "no token axis",
        "restored",
        "shrunk",
        "tokens along both",
        "tokens along x",
        "tokens along y",
        "whole",
    ];
    assert!(taken.iter().eq(&all), "not every branch was taken: {taken:?}");
}

#[test]
fn emulated_kernels_make_the_bytes_of_the_cpu_for_any_size_and_setting() {
    // Small edges, since each pixel is a thread.
    compare_random_frames(&Machine::emulated(Order::Ascending, false), 160, 28..=72, 190);
}

#[test]
fn emulated_kernels_make_the_bytes_of_the_cpu_for_cameras() {
    let transform = ImageTransform::new(256, 0.95).unwrap();
    let mut random = ChaCha8Rng::seed_from_u64(3);
    let machine = Machine::emulated(Order::Shuffled(5), false);
    let mut preprocessor = FramePreprocessor::new(&machine.gpu, &transform).unwrap();
    for size in [(640, 480), (1280, 800), (256, 256), (424, 240)] {
        let frame = random_frame(&mut random, size);
        machine.compare(&mut preprocessor, &[frame]);
    }
}

#[test]
fn cameras_of_one_shape_and_different_resolutions_are_one_batch_in_whatever_order_threads_run() {
    let transform = ImageTransform::new(56, 0.9).unwrap();
    for order in Order::ALL {
        for overlap in [false, true] {
            let mut random = ChaCha8Rng::seed_from_u64(11);
            let machine = Machine::emulated(order, overlap);
            let mut preprocessor = FramePreprocessor::new(&machine.gpu, &transform).unwrap();
            // Shrunk, cropped alone, halved, enlarged; one of them twice.
            let sizes = [(128, 96), (75, 56), (150, 112), (40, 30), (128, 96)];
            let frames: Vec<_> = sizes.map(|size| random_frame(&mut random, size)).into();
            machine.compare(&mut preprocessor, &frames);
        }
    }
}

#[test]
fn memory_of_a_batch_serves_any_number_of_frames_of_its_sizes_and_no_others() {
    let transform = ImageTransform::new(28, 0.95).unwrap();
    let machine = Machine::emulated(Order::Descending, false);
    let mut preprocessor = FramePreprocessor::new(&machine.gpu, &transform).unwrap();
    let mut random = ChaCha8Rng::seed_from_u64(2);
    let mut batch = preprocessor.batch(&[(64, 48), (32, 24)]).unwrap();
    for _ in 0..3 {
        let frames = [random_frame(&mut random, (64, 48)), random_frame(&mut random, (32, 24))];
        batch.upload(&machine.queue, frames.iter()).unwrap();
        preprocessor.queue(&machine.queue, &batch).unwrap();
        let expected = frames.each_ref().map(|frame| transform.apply(frame).unwrap().into_raw()).concat();
        assert!(machine.results(&batch) == expected);
    }
    for sizes in [&[(64, 48)][..], &[(32, 24), (64, 48)], &[]] {
        let frames: Vec<_> = sizes.iter().map(|&(width, height)| RgbImage::new(width, height)).collect();
        let error = batch.upload(&machine.queue, frames.iter()).unwrap_err().to_string();
        assert!(error.contains("[(64, 48), (32, 24)]") && error.contains(&format!("{sizes:?}")), "{error}");
    }
}

#[test]
fn frames_that_cannot_be_one_observation_are_refused() {
    let transform = ImageTransform::new(28, 0.95).unwrap();
    let mut preprocessor = FramePreprocessor::new(&Gpu::emulated(), &transform).unwrap();
    let mut refused = |sizes: &[(u32, u32)]| preprocessor.batch(sizes).map(|_| ()).unwrap_err().to_string();
    assert!(refused(&[]).contains("at least one"));
    let error = refused(&[(64, 48), (0, 48)]);
    assert!(error.contains("frame 1") && error.contains("0x48"), "{error}");
    let error = refused(&[(64, 48), (64, 36)]);
    assert!(error.contains("one aspect ratio"), "{error}");
}

#[test]
fn only_the_tables_used_last_are_kept() {
    let transform = ImageTransform::new(28, 0.95).unwrap();
    let mut preprocessor = FramePreprocessor::new(&Gpu::emulated(), &transform).unwrap();
    for width in 40..40 + 3 * PLANS_KEPT as u32 {
        preprocessor.batch(&[(50, 40)]).unwrap();
        preprocessor.batch(&[(width, 41)]).unwrap();
    }
    let kept: Vec<_> = preprocessor.plans.iter().map(|uploaded| uploaded.plan.frame()).collect();
    assert_eq!(kept.len(), PLANS_KEPT);
    assert!(kept.contains(&(50, 40)), "{kept:?}");
}

#[test]
fn a_gpu_makes_the_bytes_of_the_cpu_for_any_size_and_setting() {
    let Some(machine) = Machine::real() else { return };
    compare_random_frames(&machine, 300, 28..=400, 1500);
    let mut random = ChaCha8Rng::seed_from_u64(4);
    let mut preprocessor =
        FramePreprocessor::new(&machine.gpu, &ImageTransform::new(256, 0.95).unwrap()).unwrap();
    for sizes in [&[(640, 480), (320, 240), (1280, 960)][..], &[(3840, 2160)], &[(2000, 16_000)], &[(1, 3)]] {
        let frames: Vec<_> = sizes.iter().map(|&size| random_frame(&mut random, size)).collect();
        machine.compare(&mut preprocessor, &frames);
    }
}

#[test]
fn the_compiler_joins_no_product_with_a_sum_of_floats() {
    let nvrtc = match crate::cuda::Nvrtc::load() {
        Ok(nvrtc) => nvrtc,
        Err(error) => return eprintln!("skipped: {error}"),
    };
    for (major, minor) in [(8, 7), (9, 0), (10, 0)] {
        let capability = ComputeCapability { major, minor };
        let code = nvrtc.compile("preprocess.cu", &source().cuda(), Target::Virtual(capability)).unwrap();
        let text = String::from_utf8_lossy(&code.0);
        assert!(text.contains("mul.rn.f32") && text.contains("add.rn.f32"));
        assert!(!text.contains("fma.") && !text.contains("mad.f32"), "sm_{major}{minor}");
        assert!(
            !nvrtc
                .compile("preprocess.cu", &source().cuda(), Target::Machine(capability))
                .unwrap()
                .is_empty()
        );
    }
}
