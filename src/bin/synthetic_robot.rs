//! A robot for those who have none: publishes cameras and joint states that move, and hears the policy's trajectories.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::{Parser, Subcommand};
use groot_policy::{
    node::arguments,
    recording::{
        lerobot::writer::{WriteOptions, write_dataset},
        synthetic::{SyntheticRecording, jpeg_image, raw_image, write_bag},
    },
    ros::{
        msg::{CompressedImage, Header, Image, JointState, JointTrajectory, Time},
        transport::{LOG_DIRECTIVES, NodeOptions, Publisher, Qos, Received, RosNode, shutdown_signal},
    },
    synthetic::{SyntheticOptions, SyntheticRobot, demo_joint_names},
};
use tokio::{task::JoinSet, time::MissedTickBehavior};
use tracing_subscriber::EnvFilter;

/// Publishes the cameras and joint states of a robot that does not exist, or records them. Takes the options of ROS 2 nodes
/// as well: --ros-args -r __ns:=NAMESPACE, -r FROM:=TO
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    task: Option<Task>,
    /// DDS domain [default: ROS_DOMAIN_ID, else 0]
    #[arg(long)]
    domain_id: Option<u16>,
    /// Talk to this machine only [default: from ROS_LOCALHOST_ONLY, ROS_AUTOMATIC_DISCOVERY_RANGE]
    #[arg(long)]
    localhost_only: bool,
    /// Namespace of the node and of all its topics
    #[arg(long, default_value = "/")]
    namespace: String,
    /// Camera names, comma separated; each publishes NAME/image_raw
    #[arg(long, value_delimiter = ',', default_value = "front,wrist")]
    cameras: Vec<String>,
    /// Picture size in pixels
    #[arg(long, value_parser = parse_size, default_value = "640x480")]
    size: (u32, u32),
    /// Pictures per second of each camera
    #[arg(long, value_parser = parse_rate, default_value = "30")]
    rate: f64,
    /// Joint states per second
    #[arg(long, value_parser = parse_rate, default_value = "100")]
    joint_rate: f64,
    /// Joint names, comma separated [default: the joints of the demo's robot]
    #[arg(long, value_delimiter = ',')]
    joints: Vec<String>,
    /// Publish JPEG pictures on NAME/image_raw/compressed instead of raw ones
    #[arg(long)]
    compressed: bool,
    /// Topic of the trajectories to listen to
    #[arg(long, default_value = "policy_node/joint_trajectory")]
    trajectory: String,
    /// Move the joints along the received trajectories
    #[arg(long)]
    follow: bool,
    /// Seed of colours and motion
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Stop after this many seconds [default: on Ctrl-C]
    #[arg(long, value_parser = parse_rate)]
    duration: Option<f64>,
}

#[derive(Subcommand)]
enum Task {
    /// Writes recordings of the demo's robot, for benchmark_replay, instead of publishing
    Record(Record),
}

#[derive(clap::Args)]
struct Record {
    /// New folder for a rosbag2 recording (MCAP)
    #[arg(long, value_name = "DIR", required_unless_present = "dataset")]
    bag: Option<PathBuf>,
    /// New folder for a LeRobot dataset (v2.1, pictures in its tables)
    #[arg(long, value_name = "DIR")]
    dataset: Option<PathBuf>,
    /// Seconds of the bag and of each episode
    #[arg(long, value_parser = parse_rate, default_value = "10")]
    seconds: f64,
    /// Episodes of the dataset
    #[arg(long, default_value_t = 2)]
    episodes: u64,
    /// Raw pictures in the bag instead of JPEG
    #[arg(long)]
    raw: bool,
    /// What the robot is asked to do
    #[arg(long, default_value = "pick up the red block")]
    instruction: String,
    /// Picture size in pixels
    #[arg(long, value_parser = parse_size, default_value = "640x480")]
    size: (u32, u32),
    /// Seed of colours and motion
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

fn record(task: Record) -> anyhow::Result<()> {
    let robot = SyntheticOptions { size: task.size, seed: task.seed, ..SyntheticOptions::default() };
    if let Some(target) = &task.bag {
        let recording = SyntheticRecording {
            robot: robot.clone(),
            seconds: task.seconds,
            compressed: !task.raw,
            instruction: task.instruction.clone(),
            ..SyntheticRecording::default()
        };
        write_bag(target, &recording)?;
        eprintln!("wrote {}", target.display());
    }
    if let Some(target) = &task.dataset {
        let options = WriteOptions {
            episodes: task.episodes,
            seconds: task.seconds,
            instruction: task.instruction,
            ..WriteOptions::default()
        };
        write_dataset(target, &robot, &options)?;
        eprintln!("wrote {}", target.display());
    }
    Ok(())
}

fn parse_size(text: &str) -> Result<(u32, u32), String> {
    let sizes =
        text.split_once('x').and_then(|(w, h)| Some((w.parse::<u32>().ok()?, h.parse::<u32>().ok()?)));
    sizes
        .filter(|(w, h)| (1..=4096).contains(w) && (1..=4096).contains(h))
        .ok_or_else(|| "expected <width>x<height>, each from 1 to 4096, e.g. 640x480".to_owned())
}

fn parse_rate(text: &str) -> Result<f64, String> {
    let rate = text.parse::<f64>().ok().filter(|rate| (0.01..=1e6).contains(rate));
    rate.ok_or_else(|| "expected a number from 0.01 to 1000000".to_owned())
}

/// What the tasks share.
struct Robot {
    picture: SyntheticRobot,
    joints: Vec<String>,
    start: Instant,
    compressed: bool,
    /// The trajectory to follow.
    goal: Mutex<Option<Received<JointTrajectory>>>,
    pictures: AtomicU64,
    joint_states: AtomicU64,
    trajectories: AtomicU64,
    points: AtomicU64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut command_line = std::env::args();
    let program = command_line.next();
    let ros = arguments::parse(command_line)?;
    let arguments = Arguments::parse_from(program.into_iter().chain(ros.rest));
    if let Some(Task::Record(task)) = arguments.task {
        return record(task);
    }
    let filter = std::env::var("RUST_LOG").unwrap_or_else(|_| format!("info,{LOG_DIRECTIVES}"));
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_new(filter)?)
        .with_writer(std::io::stderr)
        .init();

    let joints = if arguments.joints.is_empty() { demo_joint_names() } else { arguments.joints.clone() };
    let node = RosNode::new(&NodeOptions {
        namespace: ros.namespace.unwrap_or_else(|| arguments.namespace.clone()),
        domain_id: arguments.domain_id,
        localhost_only: arguments.localhost_only.then_some(true),
        remaps: ros.remaps,
        ..NodeOptions::new(ros.node_name.unwrap_or_else(|| "synthetic_robot".to_owned()))
    })?;
    let robot = Arc::new(Robot {
        picture: SyntheticRobot::new(&SyntheticOptions {
            cameras: arguments.cameras.clone(),
            size: arguments.size,
            joints: joints.clone(),
            seed: arguments.seed,
        }),
        joints,
        start: Instant::now(),
        compressed: arguments.compressed,
        goal: Mutex::new(None),
        pictures: AtomicU64::new(0),
        joint_states: AtomicU64::new(0),
        trajectories: AtomicU64::new(0),
        points: AtomicU64::new(0),
    });

    let mut tasks = JoinSet::new();
    for camera in arguments.cameras {
        tasks.spawn(publish_camera(Arc::clone(&robot), node.clone(), camera, arguments.rate));
    }
    tasks.spawn(publish_joints(Arc::clone(&robot), node.clone(), arguments.joint_rate));
    tasks.spawn(hear_trajectories(Arc::clone(&robot), node.clone(), arguments.trajectory, arguments.follow));
    tasks.spawn(report(robot));

    let end = async {
        match arguments.duration {
            Some(seconds) => tokio::time::sleep(Duration::from_secs_f64(seconds)).await,
            None => std::future::pending().await,
        }
    };
    let outcome = tokio::select! {
        signal = shutdown_signal() => signal.context("cannot catch signals"),
        () = end => Ok(()),
        // No task ends by itself but by an error.
        Some(ended) = tasks.join_next() => ended.unwrap_or_else(|crash| Err(crash.into())),
    };
    tasks.shutdown().await;
    node.shutdown().await;
    outcome
}

fn ticker(rate: f64) -> tokio::time::Interval {
    let mut ticker = tokio::time::interval(Duration::from_secs_f64(1.0 / rate));
    // A robot that fell behind does not make up for it.
    ticker.set_missed_tick_behavior(MissedTickBehavior::Skip);
    ticker
}

async fn publish_camera(robot: Arc<Robot>, node: RosNode, camera: String, rate: f64) -> anyhow::Result<()> {
    enum Output {
        Raw(Publisher<Image>),
        Compressed(Publisher<CompressedImage>),
    }
    let topic = format!("{camera}/image_raw");
    let output = if robot.compressed {
        Output::Compressed(node.publisher(&format!("{topic}/compressed"), Qos::camera())?)
    } else {
        Output::Raw(node.publisher(&topic, Qos::camera())?)
    };
    let mut ticker = ticker(rate);
    loop {
        ticker.tick().await;
        let header = Header { stamp: node.now(), frame_id: format!("{camera}_optical_frame") };
        let frame = robot
            .picture
            .frame(&camera, robot.start.elapsed().as_secs_f64())
            .with_context(|| format!("there is no camera {camera}"))?;
        match &output {
            Output::Raw(publisher) => publisher.publish(raw_image(header, frame))?,
            Output::Compressed(publisher) => publisher.publish(jpeg_image(header, &frame)?)?,
        }
        robot.pictures.fetch_add(1, Ordering::Relaxed);
    }
}

async fn publish_joints(robot: Arc<Robot>, node: RosNode, rate: f64) -> anyhow::Result<()> {
    let publisher = node.publisher("joint_states", Qos::reliable(10))?;
    let mut ticker = ticker(rate);
    loop {
        ticker.tick().await;
        let stamp = node.now();
        let mut position = robot.picture.joints(robot.start.elapsed().as_secs_f64());
        if let Some(goal) = robot.goal.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            follow(goal, &stamp, &robot.joints, &mut position);
        }
        let header = Header { stamp, frame_id: String::new() };
        let state = JointState { header, name: robot.joints.clone(), position, ..JointState::default() };
        publisher.publish(state)?;
        robot.joint_states.fetch_add(1, Ordering::Relaxed);
    }
}

async fn hear_trajectories(
    robot: Arc<Robot>,
    node: RosNode,
    topic: String,
    follow: bool,
) -> anyhow::Result<()> {
    let subscription = node.subscribe::<JointTrajectory>(&topic, Qos::reliable(10), 10)?;
    while let Some(received) = subscription.recv().await {
        robot.trajectories.fetch_add(1, Ordering::Relaxed);
        robot.points.store(received.message.points.len() as u64, Ordering::Relaxed);
        if follow {
            *robot.goal.lock().unwrap_or_else(PoisonError::into_inner) = Some(received);
        }
    }
    anyhow::bail!("the subscription to {} has ended", subscription.topic())
}

/// Replaces the positions of the joints that the trajectory names by where it has them at `now`, between its points
/// along straight lines. Before the first point they stay as they are, after the last they rest there.
fn follow(goal: &Received<JointTrajectory>, now: &Time, joints: &[String], positions: &mut [f64]) {
    let trajectory = &goal.message;
    let start = match trajectory.header.stamp.nanoseconds() {
        0 => goal.time.nanoseconds(), // "now", says the message's definition
        stamp => stamp,
    };
    let elapsed = now.nanoseconds().saturating_sub(start) as f64 * 1e-9;
    let time = |point: usize| {
        let offset = &trajectory.points[point].time_from_start;
        f64::from(offset.sec) + f64::from(offset.nanosec) * 1e-9
    };
    let after = (0..trajectory.points.len()).find(|&point| time(point) > elapsed);
    let (from, to, share) = match after {
        Some(0) => return,
        Some(next) => (next - 1, next, (elapsed - time(next - 1)) / (time(next) - time(next - 1))),
        None => match trajectory.points.len().checked_sub(1) {
            Some(last) => (last, last, 0.0),
            None => return,
        },
    };
    for (joint, position) in joints.iter().zip(positions) {
        let Some(column) = trajectory.joint_names.iter().position(|name| name == joint) else { continue };
        let value = |point: usize| trajectory.points[point].positions.get(column);
        if let (Some(from), Some(to)) = (value(from), value(to)) {
            *position = from + share * (to - from);
        }
    }
}

/// Says once per second what was published, and which trajectory came last.
async fn report(robot: Arc<Robot>) -> anyhow::Result<()> {
    let mut ticker = ticker(1.0);
    ticker.tick().await;
    let mut before = (0, 0);
    loop {
        ticker.tick().await;
        let now = (robot.pictures.load(Ordering::Relaxed), robot.joint_states.load(Ordering::Relaxed));
        let trajectories = robot.trajectories.load(Ordering::Relaxed);
        let heard = match trajectories {
            0 => "no trajectory yet".to_owned(),
            n => format!("received trajectory {n}, {} points", robot.points.load(Ordering::Relaxed)),
        };
        println!("{:4} pictures/s  {:4} joint states/s  {heard}", now.0 - before.0, now.1 - before.1);
        before = now;
    }
}

#[cfg(test)]
mod tests {
    use groot_policy::ros::msg::{Duration, JointTrajectoryPoint};

    use super::*;

    fn goal(stamp: Time) -> Received<JointTrajectory> {
        let point = |positions: &[f64], nanosec| JointTrajectoryPoint {
            positions: positions.to_vec(),
            time_from_start: Duration { sec: 0, nanosec },
            ..JointTrajectoryPoint::default()
        };
        let message = JointTrajectory {
            header: Header { stamp, frame_id: String::new() },
            joint_names: vec!["b".to_owned(), "a".to_owned()],
            points: vec![point(&[0.0, 10.0], 100_000_000), point(&[1.0, 20.0], 200_000_000)],
        };
        Received { message, at: Instant::now(), time: Time { sec: 100, nanosec: 0 } }
    }

    fn followed(stamp: Time, nanosec: u32) -> [f64; 3] {
        let mut positions = [-1.0; 3];
        let joints = ["a", "x", "b"].map(str::to_owned);
        follow(&goal(stamp), &Time { sec: 100, nanosec }, &joints, &mut positions);
        positions
    }

    #[test]
    fn joints_follow_a_trajectory_by_name_and_rest_at_its_end() {
        for stamp in [Time { sec: 100, nanosec: 0 }, Time::default()] {
            assert_eq!(followed(stamp.clone(), 50_000_000), [-1.0; 3]);
            let middle = followed(stamp.clone(), 150_000_000);
            assert!((middle[0] - 15.0).abs() < 1e-6 && middle[1] == -1.0 && (middle[2] - 0.5).abs() < 1e-6);
            assert_eq!(followed(stamp, 900_000_000), [20.0, -1.0, 1.0]);
        }
    }

    #[test]
    fn an_empty_or_ragged_trajectory_moves_nothing() {
        let mut positions = [1.0];
        let mut ragged = goal(Time::default());
        ragged.message.points.iter_mut().for_each(|point| point.positions.clear());
        let late = Time { sec: 101, nanosec: 0 };
        follow(&ragged, &late, &["a".to_owned()], &mut positions);
        ragged.message.points.clear();
        follow(&ragged, &late, &["a".to_owned()], &mut positions);
        assert_eq!(positions, [1.0]);
    }

    #[test]
    fn sizes_and_rates_are_checked() {
        assert_eq!(parse_size("64x48"), Ok((64, 48)));
        assert!(
            ["0x48", "64", "64x", "x", "64x48x3", "99999x1"].iter().all(|size| parse_size(size).is_err())
        );
        assert!(["0", "-1", "nan", "inf", "fast"].iter().all(|rate| parse_rate(rate).is_err()));
    }
}
