//! Replay of a recording without the model: two JPEG cameras of 640x480 at 30 Hz and joint states at 100 Hz, read, decoded,
//! synchronised and preprocessed, every set of images.
//!
//! `cargo bench --no-default-features --bench replay` measures it, and in the same run the PyPI packages `rosbags`, OpenCV
//! and Pillow doing the same (`tests/reference/replay.py`), where Python has them. The figures are multiples of real time.

use std::{
    num::NonZeroU32,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use groot_policy::{
    checkpoint::{Checkpoint, OpenOptions},
    node::config::NodeConfig,
    processor::Processor,
    recording::{
        bag::{Bag, BagWriter, Samples, SamplesOptions, Stride, WriterOptions},
        synthetic::jpeg_image,
    },
    ros::{
        Stamp,
        msg::{Header, JointState},
        transport::NodeName,
    },
    synthetic::{SyntheticOptions, SyntheticRobot},
};
use image::RgbImage;
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const SECONDS: u32 = 20;
const ROUNDS: usize = 5;
const START: i64 = 1_700_000_000_000_000_000;

/// Noise as a camera's: without it, a drawn picture would be a far smaller file than a real one.
fn add_noise(frame: &mut RgbImage, random: &mut ChaCha8Rng) {
    let mut noise = vec![0; frame.as_raw().len()];
    random.fill_bytes(&mut noise);
    for (value, noise) in frame.iter_mut().zip(noise) {
        *value = value.saturating_add(noise % 9);
    }
}

/// Writes the recording; the mean size of a picture in bytes.
fn record(folder: &Path) -> Result<usize> {
    let options = SyntheticOptions::default();
    let robot = SyntheticRobot::new(&options);
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let mut writer = BagWriter::create(folder, WriterOptions { zstd: false, ..WriterOptions::default() })?;
    let (mut bytes, mut pictures, mut next_picture) = (0, 0, 0);
    for index in 0..SECONDS * 100 {
        let time = START + i64::from(index) * 10_000_000;
        let position = robot.joints(f64::from(index) / 100.0);
        let header = Header { stamp: Stamp(time).into(), frame_id: String::new() };
        let joints = JointState { header, name: options.joints.clone(), position, ..JointState::default() };
        writer.write("/joint_states", Stamp(time), &joints)?;
        if index * 30 >= next_picture * 100 {
            for camera in &options.cameras {
                let mut frame = robot.frame(camera, f64::from(index) / 100.0).ok_or("no such camera")?;
                add_noise(&mut frame, &mut random);
                let header = Header { stamp: Stamp(time).into(), frame_id: camera.clone() };
                let picture = jpeg_image(header, &frame)?;
                bytes += picture.data.len();
                pictures += 1;
                writer.write(
                    &format!("/{camera}/image_raw/compressed"),
                    Stamp(time + 3_000_000),
                    &picture,
                )?;
            }
            next_picture += 1;
        }
    }
    writer.finish()?;
    Ok(bytes / pictures)
}

/// How far the replay goes.
#[derive(Clone, Copy, PartialEq)]
enum Depth {
    Read,
    Observations,
    Preprocessed,
}

/// Seconds that one replay takes.
fn replay(folder: &Path, config: &NodeConfig, processor: &Processor, depth: Depth) -> Result<f64> {
    let start = Instant::now();
    let bag = Bag::open(folder)?;
    let mut count = 0;
    if depth == Depth::Read {
        for message in bag.messages() {
            count += usize::from(!message?.data.is_empty());
        }
    } else {
        let mut options = SamplesOptions::new(config, NodeName::new("/", "policy_node")?, processor);
        options.stride = Stride::Sets(NonZeroU32::MIN);
        for sample in Samples::new(&bag, options)? {
            let sample = sample?;
            if depth == Depth::Preprocessed {
                std::hint::black_box(processor.prepare(&sample.observation)?);
            }
            count += 1;
        }
        assert_eq!(count, SECONDS as usize * 30, "every set is a sample");
    }
    assert!(count > 0);
    Ok(start.elapsed().as_secs_f64())
}

/// Seconds that each run of the Python side takes.
fn python(folder: &Path) -> Result<(String, f64)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python =
        std::env::var_os("GROOT_TEST_PYTHON").map_or_else(|| root.join(".venv/bin/python"), PathBuf::from);
    let output = Command::new(&python).arg(root.join("tests/reference/replay.py")).arg(folder).output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    }
    let text = String::from_utf8(output.stdout)?;
    let (seconds, versions) = text.trim().split_once(' ').ok_or("no answer")?;
    Ok((versions.to_owned(), seconds.parse()?))
}

fn load() -> String {
    std::fs::read_to_string("/proc/loadavg").unwrap_or_else(|_| "unknown".to_owned()).trim().to_owned()
}

fn main() -> Result<()> {
    // `cargo test --benches` only wants to know that it runs.
    let rounds = if std::env::args().any(|argument| argument == "--test") { 1 } else { ROUNDS };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let compressed =
        ["front", "wrist"].map(|camera| (format!("cameras.{camera}.transport"), "compressed".to_owned()));
    let config = NodeConfig::load(&[root.join("config/demo.yaml")], &compressed)?;
    let checkpoint = Checkpoint::open(
        &config.checkpoint.path,
        &OpenOptions { eagle_config: config.checkpoint.eagle_config.clone(), ..OpenOptions::default() },
    )?;
    let processor = Processor::load(&checkpoint, config.checkpoint.tokenizer.as_deref(), &config.embodiment)?;
    let folder = tempfile::tempdir()?;
    let bag = folder.path().join("replay");
    let bytes = record(&bag)?;
    println!(
        "{SECONDS} s, two cameras, pictures of {bytes} bytes; {} threads; load {}",
        rayon::current_num_threads(),
        load()
    );

    // Round by round, so that whatever else the machine does meets all of them.
    let depths =
        [("read", Depth::Read), ("observations", Depth::Observations), ("preprocessed", Depth::Preprocessed)];
    let mut seconds = [const { Vec::new() }; 4];
    let mut versions = String::new();
    for _ in 0..rounds {
        for ((_, depth), seconds) in depths.iter().zip(&mut seconds) {
            seconds.push(replay(&bag, &config, &processor, *depth)?);
        }
        match python(&bag) {
            Ok((found, took)) => {
                versions = found;
                seconds[3].push(took);
            }
            Err(error) => versions = format!("not measured: {error}"),
        }
    }
    println!("| what | median, x real time | fastest |\n|---|---|---|");
    let names = depths
        .iter()
        .map(|(name, _)| format!("ours, {name}"))
        .chain([format!("Python, preprocessed: {versions}")]);
    for (name, mut seconds) in names.zip(seconds) {
        seconds.sort_by(f64::total_cmp);
        let times = |seconds: Option<&f64>| seconds.map_or(f64::NAN, |seconds| f64::from(SECONDS) / seconds);
        println!("| {name} | {:.1} | {:.1} |", times(seconds.get(seconds.len() / 2)), times(seconds.first()));
    }
    println!("load {}", load());
    Ok(())
}
