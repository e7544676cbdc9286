//! Shows that a large recording is replayed in the memory of a small one: writes one of as many megabytes as asked for,
//! takes its samples in a process of its own, and prints that process's peak of resident memory.
//!
//! `cargo run --release --no-default-features --example large_bag -- FOLDER 50 5000`

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use groot_policy::{
    node::config::NodeConfig,
    recording::{
        bag::{Bag, BagWriter, Samples, SamplesOptions, Stride, TruthSource, WriterOptions},
        synthetic::raw_image,
    },
    ros::{
        Stamp,
        msg::{Header, JointState},
        transport::NodeName,
    },
    synthetic::{SyntheticOptions, SyntheticRobot},
};

const START: i64 = 1_700_000_000_000_000_000;
const FRAME: i64 = 33_333_333;

/// Raw pictures without compression: the bytes come quickly.
fn record(folder: &Path, megabytes: u64) -> anyhow::Result<()> {
    let options = SyntheticOptions::default();
    let robot = SyntheticRobot::new(&options);
    let mut writer = BagWriter::create(folder, WriterOptions { zstd: false, ..WriterOptions::default() })?;
    let frames: Vec<_> =
        options.cameras.iter().map(|camera| (camera, robot.frame(camera, 0.0).unwrap_or_default())).collect();
    let mut written = 0;
    let mut index = 0;
    while written < megabytes << 20 {
        let stamp = Stamp(START + index * FRAME);
        let header = |frame_id: &str| Header { stamp: stamp.into(), frame_id: frame_id.to_owned() };
        let position = robot.joints(index as f64 / 30.0);
        let joints = JointState {
            header: header(""),
            name: options.joints.clone(),
            position,
            ..JointState::default()
        };
        writer.write("/joint_states", stamp, &joints)?;
        for (camera, frame) in &frames {
            let image = raw_image(header(camera), frame.clone());
            written += image.data.len() as u64;
            writer.write(&format!("/{camera}/image_raw"), stamp, &image)?;
        }
        index += 1;
    }
    Ok(writer.finish()?)
}

/// Takes every tenth sample; what `/proc` says of the process afterwards.
fn replay(folder: &Path) -> anyhow::Result<()> {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/demo.yaml");
    let config = NodeConfig::load(&[demo], &[])?;
    let action = config.state.iter().map(|(key, joints)| (key.clone(), joints.len())).collect();
    let options = SamplesOptions {
        node: NodeName::new("/", "policy_node")?,
        video_deltas: vec![0],
        state_deltas: vec![0],
        action,
        horizon: 16,
        stride: Stride::Period(Duration::from_millis(333)),
        truth: TruthSource::JointStates,
        max_gap: Duration::from_millis(500),
        waiting_bytes: 1 << 30,
        config,
    };
    let start = Instant::now();
    let bag = Bag::open(folder)?;
    let mut samples = Samples::new(&bag, options)?;
    let mut steps = 0;
    for sample in samples.by_ref() {
        steps += sample?.truth.steps();
    }
    let report = samples.report();
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or("VmHWM unknown");
    let seconds = start.elapsed().as_secs_f64();
    let length = bag.duration().as_secs_f64();
    println!(
        "{} sets, {} samples, {steps} steps of truth; {length:.0} s in {seconds:.1} s; {peak}",
        report.sets, report.samples
    );
    anyhow::ensure!(report.bag.is_clean(), "{}", report.bag);
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((folder, sizes)) = arguments.split_first() else {
        anyhow::bail!("expected a folder and sizes in megabytes, e.g. /var/tmp 50 5000");
    };
    if folder == "replay" {
        let path = sizes.first().map(Path::new);
        return replay(path.unwrap_or(Path::new(".")));
    }
    for size in sizes {
        let path = Path::new(folder).join(format!("large_bag_{size}"));
        record(&path, size.parse()?)?;
        println!("{size} MB:");
        // A process of its own: writing has a peak too.
        let outcome = Command::new(std::env::current_exe()?).arg("replay").arg(&path).status()?;
        std::fs::remove_dir_all(&path)?;
        anyhow::ensure!(outcome.success(), "the replay failed");
    }
    Ok(())
}
