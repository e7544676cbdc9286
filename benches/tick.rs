//! One whole tick of the tiny model of the tests on the CPU: frames, state and instruction to physical actions.

use std::path::Path;

use criterion::{Criterion, criterion_group, criterion_main};
use groot_policy::{
    model::policy::{Noise, Policy, PredictRequest},
    node::{config::NodeConfig, policy::policy_options},
    synthetic::{SyntheticOptions, SyntheticRobot},
};

fn tick(criterion: &mut Criterion) {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/demo.yaml");
    let config = NodeConfig::load(&[demo], &[]).expect("the demo's configuration is valid");
    let mut policy = Policy::load(&policy_options(&config)).expect("the tests' checkpoint loads");
    let robot = SyntheticRobot::new(&SyntheticOptions::default());
    let mut observation = policy.processor().blank_observation();
    observation.instruction = config.instruction.clone();
    for (camera, frames) in &mut observation.video {
        *frames = vec![robot.frame(camera, 1.0).expect("the demo robot has the demo's cameras")];
    }
    let request = PredictRequest::new(observation, Noise::Seed(1));
    criterion.bench_function("tick of the tiny model, two 640x480 cameras, CPU", |bencher| {
        bencher.iter(|| policy.predict(&request).expect("the tiny model predicts"));
    });
}

criterion_group!(benches, tick);
criterion_main!(benches);
