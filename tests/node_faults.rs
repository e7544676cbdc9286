//! What the node does when something breaks: inputs, engine, operator. The policy is a function that the test controls; the
//! rest is the node itself, on the network.

#[allow(dead_code)]
mod support;

use std::{
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use groot_policy::{
    model::{
        ModelError,
        policy::{PolicyError, Prediction, Preparation, Prepared, Timing},
        thread::Predict,
    },
    node::{
        config::{CheckpointKeys, NodeConfig},
        policy::{PolicyInfo, run},
    },
    processor::ModelInputs,
    ros::{
        msg::{
            Bool, ByteBuf, DiagnosticArray, DiagnosticStatus, Float64MultiArray, Header, Image, JointState,
            JointTrajectory, PolicyStatus, String as Text, Time,
        },
        transport::{Publisher, Qos, RosNode, Subscription},
    },
};
use ndarray::{Array2, Array3, Array4};
use support::{PATIENCE, loopback_node, test_domain, until};
use tokio::sync::oneshot;

const HORIZON: usize = 16;
/// Where the made-up policy leads every joint.
const TARGET: f32 = 0.25;

/// What the policy does next.
#[derive(Clone, Copy, PartialEq)]
enum Engine {
    Works,
    Fails,
    Stalls,
    GivesNan,
    /// Takes until another observation was prepared.
    IsSlow,
}

/// What the policy was asked, and what was prepared for it.
#[derive(Default)]
struct Asked {
    /// Instructions of the observations that were prepared ahead.
    prepared: Vec<String>,
    /// Each request: its instruction, and which of the prepared observations came with it.
    requests: Vec<(String, Option<usize>)>,
}

/// What the robot's drivers do.
struct Drivers {
    front: AtomicBool,
    wrist: AtomicBool,
    joints_are_numbers: AtomicBool,
}

/// A node, a robot and an operator in a domain of their own.
struct Scene {
    engine: Arc<Mutex<Engine>>,
    asked: Arc<Mutex<Asked>>,
    instruction: Publisher<Text>,
    drivers: Arc<Drivers>,
    robot: RosNode,
    trajectories: Subscription<JointTrajectory>,
    dry_trajectories: Subscription<JointTrajectory>,
    positions: Subscription<Float64MultiArray>,
    status: Subscription<PolicyStatus>,
    diagnostics: Subscription<DiagnosticArray>,
    estop: Publisher<Bool>,
    stop: Option<oneshot::Sender<()>>,
    node: tokio::task::JoinHandle<()>,
}

fn now() -> Header {
    Header { stamp: Time::now(), ..Header::default() }
}

fn image() -> Image {
    Image {
        header: now(),
        height: 48,
        width: 64,
        encoding: "rgb8".to_owned(),
        step: 192,
        data: ByteBuf::from(vec![90; 48 * 192]),
        ..Image::default()
    }
}

fn info(config: &NodeConfig) -> PolicyInfo {
    let keys = || config.state.iter().map(|(key, joints)| (key.clone(), joints.len())).collect();
    PolicyInfo {
        keys: CheckpointKeys {
            video: config.cameras.keys().cloned().collect(),
            state: keys(),
            action: keys(),
        },
        video_deltas: vec![0],
        state_deltas: vec![0],
        horizon: HORIZON,
        denoising_steps: 4,
        identity: "a function".to_owned(),
        preparation: None,
    }
}

/// Notes what it is asked to prepare; the number stands in the token ids.
fn preparation(asked: Arc<Mutex<Asked>>) -> Preparation {
    Preparation::new(move |observation| {
        let mut asked = asked.lock().unwrap();
        let number = asked.prepared.len() as i64;
        asked.prepared.push(observation.instruction.clone());
        let inputs = ModelInputs {
            images: Array4::zeros((1, 28, 28, 3)),
            input_ids: Array2::from_elem((1, 1), number),
            attention_mask: Array2::from_elem((1, 1), true),
            state: Array3::zeros((1, 1, 1)),
        };
        Ok(Prepared { inputs, took: Duration::ZERO })
    })
}

impl Scene {
    async fn start(parameters: &[(&str, &str)]) -> Self {
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/demo.yaml");
        let fixed = [
            ("positions_topic", "~/positions"),
            ("rate", "20.0"),
            ("watchdog.max_observation_age_ms", "700.0"),
            ("watchdog.max_state_age_ms", "700.0"),
            ("watchdog.max_inference_ms", "800.0"),
            ("watchdog.max_chunk_age_ms", "1500.0"),
        ];
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let overrides: Vec<_> = fixed.iter().chain(parameters).map(owned).collect();
        let config = NodeConfig::load(&[demo], &overrides).unwrap();
        let domain = test_domain();
        let robot = loopback_node("robot", domain);
        let drivers = Arc::new(Drivers {
            front: AtomicBool::new(true),
            wrist: AtomicBool::new(true),
            joints_are_numbers: AtomicBool::new(true),
        });
        for (topic, which) in [("/front/image_raw", 0), ("/wrist/image_raw", 1)] {
            let (publisher, drivers) =
                (robot.publisher::<Image>(topic, Qos::camera()).unwrap(), drivers.clone());
            tokio::spawn(async move {
                loop {
                    tokio::time::sleep(Duration::from_millis(33)).await;
                    let works = if which == 0 { &drivers.front } else { &drivers.wrist };
                    if works.load(Ordering::Relaxed) && publisher.publish(image()).is_err() {
                        return;
                    }
                }
            });
        }
        let joints: Vec<String> = config.state.values().flatten().cloned().collect();
        let publisher = robot.publisher::<JointState>("/joint_states", Qos::sensor_data()).unwrap();
        let states = drivers.clone();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(10)).await;
                let value = if states.joints_are_numbers.load(Ordering::Relaxed) { 0.0 } else { f64::NAN };
                let position = vec![value; joints.len()];
                let message =
                    JointState { header: now(), name: joints.clone(), position, ..JointState::default() };
                if publisher.publish(message).is_err() {
                    return;
                }
            }
        });

        let engine = Arc::new(Mutex::new(Engine::Works));
        let asked = Arc::new(Mutex::new(Asked::default()));
        let node = loopback_node("policy_node", domain);
        let (mut info, behaviour) = (info(&config), engine.clone());
        info.preparation = Some(preparation(asked.clone()));
        let own_asked = asked.clone();
        let load = move || {
            let keys = info.keys.action.clone();
            let predict: Predict = Box::new(move |request| {
                let behaviour_now = || *behaviour.lock().unwrap();
                let number =
                    request.prepared.as_ref().map(|prepared| prepared.inputs.input_ids[(0, 0)] as usize);
                let before = {
                    let mut asked = own_asked.lock().unwrap();
                    asked.requests.push((request.observation.instruction.clone(), number));
                    asked.prepared.len()
                };
                let value = match behaviour_now() {
                    Engine::Works => TARGET,
                    Engine::GivesNan => f32::NAN,
                    Engine::Fails => {
                        return Err(PolicyError::Model(ModelError::NonFinite {
                            stage: "backbone",
                            count: 3,
                        }));
                    }
                    Engine::Stalls => {
                        // Not for ever, so that a failed test ends.
                        let start = Instant::now();
                        while behaviour_now() == Engine::Stalls && start.elapsed() < 2 * PATIENCE {
                            std::thread::sleep(Duration::from_millis(5));
                        }
                        TARGET
                    }
                    Engine::IsSlow => {
                        let start = Instant::now();
                        let waits = || own_asked.lock().unwrap().prepared.len() == before;
                        while waits() && behaviour_now() == Engine::IsSlow && start.elapsed() < 2 * PATIENCE {
                            std::thread::sleep(Duration::from_millis(5));
                        }
                        TARGET
                    }
                };
                assert!(!request.observation.video.is_empty());
                let chunk =
                    |(key, dim): &(String, usize)| (key.clone(), Array2::from_elem((HORIZON, *dim), value));
                Ok(Prediction {
                    actions: keys.iter().map(chunk).collect(),
                    normalised: Array2::zeros((HORIZON, 1)),
                    seed: None,
                    timing: Timing::default(),
                })
            });
            Ok((predict, info))
        };
        let subscribe = |topic: &str| robot.subscribe(topic, Qos::reliable(1), 1000).unwrap();
        let scene_topics = (
            subscribe("/policy_node/joint_trajectory"),
            subscribe("/policy_node/dry_run/joint_trajectory"),
            robot.subscribe("/policy_node/positions", Qos::reliable(1), 1).unwrap(),
            robot.subscribe("/policy_node/status", Qos::reliable(1), 1).unwrap(),
            robot.subscribe("/diagnostics", Qos::reliable(1), 1).unwrap(),
        );
        let (stop, stopped) = oneshot::channel();
        let own = node.clone();
        let handle = tokio::spawn(async move {
            let stop = async {
                let _ = stopped.await;
            };
            run(config, own, load, stop).await.unwrap();
            node.shutdown().await;
        });
        Self {
            engine,
            asked,
            instruction: robot.publisher("/policy_node/instruction", Qos::reliable(1)).unwrap(),
            drivers,
            estop: robot.publisher("/policy_node/estop", Qos::reliable(1)).unwrap(),
            robot,
            trajectories: scene_topics.0,
            dry_trajectories: scene_topics.1,
            positions: scene_topics.2,
            status: scene_topics.3,
            diagnostics: scene_topics.4,
            stop: Some(stop),
            node: handle,
        }
    }

    fn engine(&self, engine: Engine) {
        *self.engine.lock().unwrap() = engine;
    }

    /// Waits until the status is as wanted.
    async fn status(&self, what: &str, wanted: impl Fn(&PolicyStatus) -> bool) -> PolicyStatus {
        let start = Instant::now();
        let mut last = None;
        loop {
            if let Some(received) = self.status.try_recv() {
                if wanted(&received.message) {
                    return received.message;
                }
                last = Some(received.message);
            }
            assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}; last status {last:#?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn follows(&self) -> PolicyStatus {
        self.status("chunks are followed", |status| {
            status.commanding && status.watchdog == PolicyStatus::WATCHDOG_OK && status.rate > 1.0
        })
        .await
    }

    async fn holds(&self, because: &str) {
        let status = self
            .status(&format!("hold because of {because:?}"), |status| {
                status.watchdog == PolicyStatus::WATCHDOG_HOLD && status.watchdog_reason.contains(because)
            })
            .await;
        // Commands go on, at the pose that was commanded last, and every one of them is a number.
        self.positions.try_recv();
        let start = Instant::now();
        let command = loop {
            if let Some(received) = self.positions.try_recv() {
                break received.message;
            }
            assert!(start.elapsed() < PATIENCE, "no command while holding: {status:#?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        };
        assert!(command.data.iter().all(|value| (*value - f64::from(TARGET)).abs() < 1e-6), "{command:?}");
    }

    /// Waits until `/diagnostics` has an error that says so.
    async fn diagnosed(&self, what: &str) {
        let start = Instant::now();
        loop {
            if let Some(received) = self.diagnostics.try_recv() {
                let told = |status: &DiagnosticStatus| {
                    status.level == DiagnosticStatus::ERROR && status.message.contains(what)
                };
                if received.message.status.iter().any(told) {
                    return;
                }
            }
            assert!(start.elapsed() < PATIENCE, "/diagnostics does not say {what:?} as an error");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn end(mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        tokio::time::timeout(PATIENCE, &mut self.node)
            .await
            .expect("the node ends")
            .expect("it did not panic");
        self.robot.clone().shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn in_dry_run_everything_goes_to_the_dry_run_topics_and_nothing_to_the_robot() {
    let scene = Scene::start(&[("dry_run", "true")]).await;
    let mut seen = None;
    until("a dry-run trajectory", || {
        seen = seen.take().or_else(|| scene.dry_trajectories.try_recv());
        seen.is_some()
    })
    .await;
    let status = scene.status("it says so", |status| status.dry_run && status.chunks > 2).await;
    assert!(!status.commanding);
    assert!(scene.trajectories.try_recv().is_none(), "a trajectory went to the robot");
    assert!(scene.positions.try_recv().is_none(), "a command went to the robot");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_camera_that_stops_makes_the_node_hold_and_it_goes_on_by_itself_when_the_camera_returns() {
    let scene = Scene::start(&[]).await;
    scene.follows().await;
    scene.drivers.front.store(false, Ordering::Relaxed);
    scene.holds("observation").await;
    scene.diagnosed("front").await;
    scene.drivers.front.store(true, Ordering::Relaxed);
    scene.follows().await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn joints_that_are_not_numbers_are_never_used() {
    let scene = Scene::start(&[]).await;
    scene.follows().await;
    scene.drivers.joints_are_numbers.store(false, Ordering::Relaxed);
    scene.holds("joint sample").await;
    scene.drivers.joints_are_numbers.store(true, Ordering::Relaxed);
    scene.follows().await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_engine_that_fails_or_stalls_or_gives_nan_stops_no_command_and_is_told_about() {
    let scene = Scene::start(&[]).await;
    scene.follows().await;
    scene.engine(Engine::Fails);
    scene.holds("backbone produced 3 values").await;
    scene.diagnosed("backbone produced 3 values").await;
    scene.engine(Engine::Works);
    scene.follows().await;
    scene.engine(Engine::Stalls);
    scene.holds("the inference has been running").await;
    scene.engine(Engine::Works);
    scene.follows().await;
    scene.engine(Engine::GivesNan);
    scene.holds("NaN").await;
    scene.status("the refused chunks are counted", |status| status.dropped_not_finite > 0).await;
    scene.engine(Engine::Works);
    scene.follows().await;
    while let Some(received) = scene.trajectories.try_recv() {
        let values = received.message.points.iter().flat_map(|point| &point.positions);
        assert!(values.clone().all(|value| value.is_finite()));
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_huge_image_of_the_wrong_size_is_refused_and_the_node_goes_on() {
    let scene = Scene::start(&[]).await;
    scene.follows().await;
    let wrong = scene.robot.publisher::<Image>("/front/image_raw", Qos::camera()).unwrap();
    for _ in 0..20 {
        // A million bytes where the size says 9216.
        let message = Image { header: now(), data: ByteBuf::from(vec![1; 1_000_000]), ..image() };
        wrong.publish(message).unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    scene.follows().await;
    let refused = scene
        .status("the refused frames are counted", |status| {
            status.inputs.iter().any(|input| input.name.contains("front") && input.refused > 0)
        })
        .await;
    assert!(refused.chunks > 0);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_e_stop_halts_latches_and_deactivates() {
    let scene = Scene::start(&[]).await;
    scene.follows().await;
    while scene.trajectories.try_recv().is_some() {}
    until("the operator is connected", || scene.estop.subscriber_count() > 0).await;
    scene.estop.publish(Bool { data: true }).unwrap();
    scene.status("latched", |status| status.estop && !status.commanding).await;
    // The last trajectory leads nowhere but to where the robot is commanded to be.
    let mut last = None;
    while let Some(received) = scene.trajectories.try_recv() {
        last = Some(received.message);
    }
    let last = last.expect("the controllers are told to stay");
    assert_eq!(last.points.len(), 1);
    assert_eq!(last.header.stamp, Time::default());
    assert!(last.points[0].positions.iter().all(|value| value.is_finite()));
    // Releasing the button alone changes nothing.
    scene.estop.publish(Bool { data: false }).unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    while scene.positions.try_recv().is_some() {}
    let status = scene.status("still latched", |_| true).await;
    assert!(status.estop && !status.commanding);
    assert!(scene.positions.try_recv().is_none() && scene.trajectories.try_recv().is_none());
    scene.diagnosed("e-stop").await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn commands_keep_within_the_limits_of_the_joints() {
    let limits = [("limits.left_arm_joint_1.upper", "0.1"), ("default_limits.velocity", "0.2")];
    let scene = Scene::start(&limits).await;
    scene.follows().await;
    let mut names = Vec::new();
    until("a trajectory", || {
        if let Some(received) = scene.trajectories.try_recv() {
            names = received.message.joint_names;
        }
        !names.is_empty()
    })
    .await;
    let limited = names.iter().position(|name| name == "left_arm_joint_1").unwrap();
    let start = Instant::now();
    let mut worst: f64 = 0.0;
    let mut before: Option<Vec<f64>> = None;
    let mut fastest: f64 = 0.0;
    while start.elapsed() < Duration::from_secs(2) {
        while let Some(received) = scene.positions.try_recv() {
            let data = received.message.data;
            worst = worst.max(data[limited]);
            if let Some(before) = before {
                let step = data.iter().zip(&before).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                fastest = fastest.max(step);
            }
            before = Some(data);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(before.is_some() && worst <= 0.1, "{worst}");
    assert!(fastest > 0.0);
    let status = scene.status("clips are counted", |status| !status.clips.is_empty()).await;
    assert!(
        status.clips.iter().any(|clip| clip.joint == "left_arm_joint_1" && clip.position > 0),
        "{status:#?}"
    );
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn while_the_network_is_busy_the_next_observation_is_prepared_and_never_for_another_instruction() {
    const NEW: &str = "put the cup on the table";
    let scene = Scene::start(&[]).await;
    scene.follows().await;
    scene.engine(Engine::IsSlow);
    let first = scene.asked.lock().unwrap().requests.len();
    let prepared_from = |first: usize| {
        let asked = scene.asked.lock().unwrap();
        asked.requests[first..].iter().filter(|(_, number)| number.is_some()).count()
    };
    until("observations that were prepared ahead", || prepared_from(first) >= 4).await;
    scene.instruction.publish(Text { data: NEW.to_owned() }).unwrap();
    let changed = || scene.asked.lock().unwrap().requests.iter().position(|(text, _)| text == NEW);
    until("the new instruction", || changed().is_some()).await;
    let changed = changed().unwrap();
    until("prepared observations with the new instruction", || prepared_from(changed) >= 4).await;
    {
        let asked = scene.asked.lock().unwrap();
        let numbers: Vec<usize> = asked.requests.iter().filter_map(|(_, number)| *number).collect();
        assert!(numbers.is_sorted_by(|a, b| a < b), "each one once, and none after a newer one: {numbers:?}");
        for (text, number) in &asked.requests {
            assert!(number.is_none_or(|number| asked.prepared[number] == *text), "{text:?} {number:?}");
        }
        assert!(asked.requests[changed..].iter().all(|(text, _)| text == NEW));
    }
    // Back to a quick engine: it goes on as before.
    scene.engine(Engine::Works);
    scene.follows().await;
    scene.end().await;
}
