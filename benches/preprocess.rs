//! Image preprocessing: one frame, from camera pixels to the 8-bit pixels of whole image tokens.
//!
//! `cargo bench --no-default-features --bench preprocess` measures ours with criterion, then compares it in the same
//! run with the reference's own chain, OpenCV and Pillow (`tests/reference/preprocess.py`), where Python has them.
//! `... --bench preprocess -- compare` does the comparison alone.

use std::hint::black_box;
use std::time::Instant;

use criterion::Criterion;
use groot_policy::processor::image::ImageTransform;
use image::{Rgb, RgbImage};

#[path = "../tests/reference/mod.rs"]
mod reference;
use reference::Reference;

const EDGE: u32 = 256;
const CROP_FRACTION: f64 = 0.95;
const SIZES: [(u32, u32); 3] = [(640, 480), (1280, 720), (256, 256)];

/// Gradients with noise: no cost depends on the content, but no branch or cache should know it either.
fn frame(width: u32, height: u32) -> RgbImage {
    let mut state = 1_u32;
    RgbImage::from_fn(width, height, |x, y| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let noise = (state >> 27) as u8;
        Rgb([(x / 4) as u8, (y / 4) as u8, ((x + y) / 8) as u8].map(|value| value.wrapping_add(noise)))
    })
}

fn ours(criterion: &mut Criterion) {
    let transform = ImageTransform::new(EDGE, CROP_FRACTION).expect("parameters in range");
    let mut group = criterion.benchmark_group("preprocess");
    for (width, height) in SIZES {
        let frame = frame(width, height);
        group.bench_function(format!("{width}x{height}"), |bencher| {
            bencher.iter(|| transform.apply(black_box(&frame)));
        });
    }
    group.finish();
}

/// Milliseconds: the median and the fastest run. On a busy machine the fastest is the fairer one, as a longer run is
/// interrupted more often.
struct Milliseconds {
    median: f64,
    fastest: f64,
}

impl Milliseconds {
    fn of(mut seconds: Vec<f64>) -> Self {
        seconds.sort_by(f64::total_cmp);
        Self { median: seconds[seconds.len() / 2] * 1e3, fastest: seconds[0] * 1e3 }
    }
}

/// Alternates rounds of ours and theirs, so that whatever else the machine does meets all of them.
fn compare(mut reference: Reference) -> Result<(), Box<dyn std::error::Error>> {
    const ROUNDS: usize = 20;
    const REPEATS: usize = 25;
    let transform = ImageTransform::new(EDGE, CROP_FRACTION)?;
    println!("\nMilliseconds for one frame, {} runs, against {}", ROUNDS * REPEATS, reference.versions);
    println!(
        "| frame | their threads | ours, median | theirs | ratio | ours, fastest | theirs | ratio | bytes |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for (width, height) in SIZES {
        let frame = frame(width, height);
        let equal = reference.stages(&frame, EDGE, CROP_FRACTION)?[3] == transform.apply(&frame)?;
        let (mut ours, mut single, mut default, mut threads) = (Vec::new(), Vec::new(), Vec::new(), 0);
        // The first round only warms up.
        for round in 0..=ROUNDS {
            let mut seconds = Vec::new();
            for _ in 0..REPEATS {
                let start = Instant::now();
                black_box(transform.apply(black_box(&frame))?);
                seconds.push(start.elapsed().as_secs_f64());
            }
            let one = reference.time(&frame, EDGE, CROP_FRACTION, 1, REPEATS)?;
            let all = reference.time(&frame, EDGE, CROP_FRACTION, 0, REPEATS)?;
            threads = all.threads;
            if round > 0 {
                ours.extend(seconds);
                single.extend(one.seconds);
                default.extend(all.seconds);
            }
        }
        let [ours, single, default] = [ours, single, default].map(Milliseconds::of);
        let name = format!("{width}x{height}");
        let bytes = if equal { "equal" } else { "DIFFERENT" };
        for (threads, theirs) in [(1, single), (threads, default)] {
            println!(
                "| {name} | {threads} | {:.3} | {:.3} | {:.2} | {:.3} | {:.3} | {:.2} | {bytes} |",
                ours.median,
                theirs.median,
                ours.median / theirs.median,
                ours.fastest,
                theirs.fastest,
                ours.fastest / theirs.fastest,
            );
        }
        if !equal {
            return Err(format!("{width}x{height}: our pixels differ from theirs").into());
        }
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let only_compare = std::env::args().any(|argument| argument == "compare");
    if !only_compare {
        let mut criterion = Criterion::default().configure_from_args();
        ours(&mut criterion);
        criterion.final_summary();
    }
    // `cargo test --benches` only wants to know that it runs.
    if std::env::args().any(|argument| argument == "--test") {
        return Ok(());
    }
    match Reference::start() {
        Ok(reference) => compare(reference),
        Err(e) if only_compare => Err(e),
        Err(e) => {
            println!("\nNo comparison with OpenCV and Pillow: {e}");
            Ok(())
        }
    }
}
