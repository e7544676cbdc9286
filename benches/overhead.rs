//! What the node adds to the model: three cameras (640x480, rgb8, 30 Hz) and joint states (100 Hz) over loopback, from a process
//! of their own, to a node in another process whose policy only waits.
//!
//! ```sh
//! cargo bench --bench overhead                 # 60 s
//! cargo bench --bench overhead -- --seconds 10
//! ```
//!
//! The overhead of a tick is the time from the arrival of the last frame, when the middleware has all of it, to the
//! publication of trajectory and chunk, less the time of the prediction. The node itself measures it, as the stage `overhead`.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use groot_policy::{
    memory,
    model::{
        policy::{Prediction, Timing},
        thread::Predict,
    },
    node::{
        config::{CheckpointKeys, NodeConfig},
        policy::{PolicyInfo, run},
    },
    ros::{
        msg::{ActionChunk, ByteBuf, Header, Image, JointState, PolicyStatus, Time},
        transport::{LOG_DIRECTIVES, NodeOptions, Publisher, Qos, RosNode, kernel_receive_buffer_limit},
    },
};
use ndarray::Array2;
use tokio::time::MissedTickBehavior;
use tracing_subscriber::EnvFilter;

const CAMERAS: [&str; 3] = ["left", "center", "right"];
const JOINTS: [&str; 7] = ["j1", "j2", "j3", "j4", "j5", "j6", "j7"];
const WIDTH: u32 = 640;
const HEIGHT: u32 = 480;
const CAMERA_RATE: f64 = 30.0;
const JOINT_RATE: f64 = 100.0;
const HORIZON: usize = 16;
/// How long the policy waits in place of predicting.
const PREDICTION: Duration = Duration::from_millis(10);
/// When the memory is looked at for the first time.
const SETTLED: Duration = Duration::from_secs(10);
const DOMAIN: u16 = 97;

fn main() -> Result<()> {
    // As the node's program does.
    memory::keep_for_frames();
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match *words.as_slice() {
        ["node"] => runtime.block_on(node()),
        ["robot"] => runtime.block_on(robot()),
        [] => runtime.block_on(measure(Duration::from_secs(60))),
        ["--seconds", seconds] => {
            let seconds = seconds.parse().ok().filter(|seconds| (1.0..1e6).contains(seconds));
            let seconds = seconds.context("--seconds: expected a number of at least 1")?;
            runtime.block_on(measure(Duration::from_secs_f64(seconds)))
        }
        _ => bail!("expected nothing or --seconds SECONDS, found {arguments:?}"),
    }
}

fn ros_node(name: &str) -> Result<RosNode> {
    let options =
        NodeOptions { domain_id: Some(DOMAIN), localhost_only: Some(true), ..NodeOptions::new(name) };
    Ok(RosNode::new(&options)?)
}

/// Ends with the standard input.
async fn told_to_stop() {
    let end = tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new()));
    // Whatever it was, it is the end.
    let _ = end.await;
}

/// The process that is measured.
async fn node() -> Result<()> {
    let filter = EnvFilter::try_new(format!("warn,{LOG_DIRECTIVES}"))?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let list = |names: &[&str]| format!("[{}]", names.join(", "));
    let mut parameters = vec![
        ("checkpoint.path".to_owned(), "unused".to_owned()),
        ("embodiment".to_owned(), "new_embodiment".to_owned()),
        ("rate".to_owned(), CAMERA_RATE.to_string()),
        ("step_time".to_owned(), "0.05".to_owned()),
        ("dry_run".to_owned(), "false".to_owned()),
        ("joint_states_topic".to_owned(), "/joint_states".to_owned()),
        ("positions_topic".to_owned(), "~/positions".to_owned()),
        ("state.arm.joints".to_owned(), list(&JOINTS)),
    ];
    parameters.extend(CAMERAS.map(|key| (format!("cameras.{key}.topic"), format!("/{key}/image_raw"))));
    let config = NodeConfig::load(&[], &parameters)?;
    let keys = vec![("arm".to_owned(), JOINTS.len())];
    let info = PolicyInfo {
        keys: CheckpointKeys {
            video: CAMERAS.map(str::to_owned).to_vec(),
            state: keys.clone(),
            action: keys.clone(),
        },
        video_deltas: vec![0],
        state_deltas: vec![0],
        horizon: HORIZON,
        denoising_steps: 4,
        identity: "a policy that waits".to_owned(),
        preparation: None,
    };
    let load = move || {
        let predict: Predict = Box::new(move |request| {
            let begun = Instant::now();
            assert_eq!(request.observation.video.len(), CAMERAS.len());
            std::thread::sleep(PREDICTION);
            let chunk = |(key, dim): &(String, usize)| (key.clone(), Array2::zeros((HORIZON, *dim)));
            Ok(Prediction {
                actions: keys.iter().map(chunk).collect(),
                normalised: Array2::zeros((HORIZON, 1)),
                seed: None,
                timing: Timing { total: begun.elapsed(), ..Timing::default() },
            })
        });
        Ok((predict, info))
    };
    let node = ros_node("policy_node")?;
    run(config, node.clone(), load, told_to_stop()).await?;
    node.shutdown().await;
    Ok(())
}

/// The process that sends; says at the end how many messages there were of each input.
async fn robot() -> Result<()> {
    let node = ros_node("robot")?;
    let cameras = CAMERAS
        .iter()
        .map(|camera| node.publisher::<Image>(&format!("/{camera}/image_raw"), Qos::camera()))
        .collect::<Result<Vec<_>, _>>()?;
    let joints = node.publisher::<JointState>("/joint_states", Qos::sensor_data())?;
    let connected =
        || cameras.iter().all(|camera| camera.subscriber_count() > 0) && joints.subscriber_count() > 0;
    while !connected() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let (mut frames, mut states) = (0_u64, 0_u64);
    tokio::select! {
        result = send_frames(&cameras, &mut frames) => result?,
        result = send_joints(&joints, &mut states) => result?,
        () = told_to_stop() => {}
    }
    println!("{frames} {states}");
    // What is on its way arrives.
    tokio::time::sleep(Duration::from_millis(200)).await;
    node.shutdown().await;
    Ok(())
}

fn ticker(rate: f64) -> tokio::time::Interval {
    let mut ticker = tokio::time::interval(Duration::from_secs_f64(1.0 / rate));
    ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticker
}

fn header() -> Header {
    Header { stamp: Time::now(), ..Header::default() }
}

async fn send_frames(cameras: &[Publisher<Image>], sent: &mut u64) -> Result<()> {
    let pixels: Vec<u8> =
        (0..3 * WIDTH * HEIGHT).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut ticker = ticker(CAMERA_RATE);
    loop {
        ticker.tick().await;
        let header = header();
        for camera in cameras {
            camera.publish(Image {
                header: header.clone(),
                height: HEIGHT,
                width: WIDTH,
                encoding: "rgb8".to_owned(),
                is_bigendian: 0,
                step: 3 * WIDTH,
                data: ByteBuf::from(pixels.clone()),
            })?;
        }
        *sent += 1;
    }
}

async fn send_joints(joints: &Publisher<JointState>, sent: &mut u64) -> Result<()> {
    let mut ticker = ticker(JOINT_RATE);
    loop {
        ticker.tick().await;
        let position = vec![0.1; JOINTS.len()];
        let name = JOINTS.map(str::to_owned).to_vec();
        joints.publish(JointState { header: header(), name, position, ..JointState::default() })?;
        *sent += 1;
    }
}

/// A process of this benchmark. Closing its input ends it.
struct Part {
    process: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Part {
    fn start(role: &str) -> Result<Self> {
        let mut process = Command::new(std::env::current_exe()?)
            .arg(role)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let input = process.stdin.take();
        let output = BufReader::new(process.stdout.take().context("no output")?);
        Ok(Self { process, input, output })
    }

    /// Resident memory, in MiB.
    fn memory(&self) -> Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kibibytes: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kibibytes / 1024.0)
    }

    /// Processor time since its start.
    fn processor_time(&self) -> Result<Duration> {
        let status = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id()))?;
        // The name before may have spaces. User and system time are in hundredths of a second on every Linux.
        let (_, fields) = status.rsplit_once(')').context("no name in stat")?;
        let times = fields.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
        Ok(Duration::from_millis(10 * times.sum::<Result<u64, _>>()?))
    }

    fn end(&mut self) {
        self.input.take();
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.end();
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline {
            if !matches!(self.process.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        // An error means that it has ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

async fn measure(length: Duration) -> Result<()> {
    let observer = ros_node("observer")?;
    let chunks = observer.subscribe::<ActionChunk>("/policy_node/action_chunk", Qos::reliable(10), 100)?;
    let status = observer.subscribe::<PolicyStatus>("/policy_node/status", Qos::latched(), 1)?;
    let node = Part::start("node")?;
    let mut robot = Part::start("robot")?;
    let limit = Duration::from_secs(30);
    tokio::time::timeout(limit, chunks.recv()).await.context("no chunk within 30 s")?;

    let start = Instant::now();
    let busy = node.processor_time()?;
    let (mut overheads, mut ways, mut early) = (Vec::new(), Vec::new(), None);
    while start.elapsed() < length {
        let next = tokio::time::timeout(limit, chunks.recv()).await.context("chunks stopped coming")?;
        let received = next.context("the observer has ended")?;
        let chunk = received.message;
        let stage =
            |name: &str| chunk.timing.iter().find(|timing| timing.stage == name).map(|t| t.milliseconds);
        let (overhead, total) = stage("overhead").zip(stage("total")).context("a chunk without timing")?;
        overheads.push(overhead);
        let way = received.time.nanoseconds() - chunk.observation_stamp.nanoseconds();
        ways.push(way as f32 / 1e6 - total);
        if early.is_none() && start.elapsed() >= SETTLED {
            early = Some(node.memory()?);
        }
    }
    let elapsed = start.elapsed();
    let busy = node.processor_time()?.saturating_sub(busy);
    let memory = node.memory()?;
    robot.end();
    let mut sent = String::new();
    robot.output.read_line(&mut sent)?;
    let sent: Vec<u64> = sent.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    ensure!(sent.len() == 2, "the robot said {sent:?}");
    // One that was made after the last message.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let status = status.try_recv().context("no status")?.message;

    println!(
        "\n{:.0} s, {} ticks ({:.1} Hz)",
        elapsed.as_secs_f64(),
        overheads.len(),
        overheads.len() as f64 / elapsed.as_secs_f64()
    );
    if let Some(limit) = kernel_receive_buffer_limit() {
        println!("kernel's limit of receive buffers: {limit} bytes");
    }
    println!("{:48} {:>8} {:>8} {:>8}", "ms", "p50", "p99", "max");
    row("overhead: last frame's arrival to publication", overheads);
    row("sending of the frame to arrival of the chunk", ways);
    println!(
        "\nmemory of the node: {memory:.1} MiB at the end{}",
        early.map_or(String::new(), |early| format!(", {early:.1} MiB after 10 s"))
    );
    println!("processor: {:.0} % of one core", 100.0 * busy.as_secs_f64() / elapsed.as_secs_f64());
    println!("\n{:16} {:>8} {:>8} {:>8} {:>8}", "input", "sent", "used", "passed", "lost");
    for input in &status.inputs {
        let sent = sent[usize::from(input.name == "joint states")];
        println!(
            "{:16} {sent:>8} {:>8} {:>8} {:>8}",
            input.name, input.received, input.overwritten, input.lost
        );
    }
    drop((robot, node));
    observer.shutdown().await;
    Ok(())
}

fn row(what: &str, mut values: Vec<f32>) {
    values.sort_by(f32::total_cmp);
    let rank = |percent: usize| values[(values.len() * percent).div_ceil(100).saturating_sub(1)];
    println!("{what:48} {:8.2} {:8.2} {:8.2}", rank(50), rank(99), rank(100));
}
