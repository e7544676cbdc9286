//! `benchmark_replay bench` and `roofline` as their users meet them, on a tiny model and without a GPU.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use groot_policy::{
    benchmark::result::{Benchmark, CaseResult},
    evaluation::{Component, ModeResult},
};
use serde_json::Value;

fn program(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_benchmark_replay"))
        .args(arguments)
        .env_remove("RUST_LOG")
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// So short that only what does not depend on the time can be said of it.
const SHORT: [&str; 6] = ["--iterations", "1", "--warm-up", "0", "--inputs", "2"];

/// A run of the tiny model on the CPU: what it printed, and what it wrote.
#[track_caller]
fn bench(rest: &[&str]) -> (String, Benchmark) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bench.json");
    let mut arguments = vec!["bench", "--random-weights", "tiny", "--device", "cpu"];
    arguments.extend(["--json", file.to_str().unwrap()]);
    arguments.extend(if rest.contains(&"--iterations") { &[][..] } else { &SHORT[..] });
    arguments.extend(rest);
    let output = program(&arguments);
    assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
    (text(&output.stdout), Benchmark::load(&file).unwrap())
}

fn mode<'a>(result: &'a CaseResult, name: &str) -> &'a ModeResult {
    result.run.mode(name).unwrap_or_else(|| panic!("no mode {name}"))
}

#[test]
fn every_standard_case_is_measured_in_the_modes_that_are_here_and_the_others_say_why_not() {
    let (printed, benchmark) = bench(&[
        "--modes",
        "f32,eager,graph,graph-fused,tensorrt-fp16",
        "--iterations",
        "3",
        "--warm-up",
        "1",
        "--inputs",
        "1",
    ]);
    let names: Vec<_> = benchmark.cases.iter().map(|result| result.case.name.as_str()).collect();
    assert_eq!(names, ["nvidia-1cam", "2cam", "alfie-4cam"]);
    for result in &benchmark.cases {
        assert_eq!(result.run.reference, "f32");
        assert!(result.run.checkpoint.random_weights && result.run.source.synthetic);
        assert_eq!(result.run.options.iterations, 3);
        for name in ["f32", "eager"] {
            let mode = mode(result, name);
            assert_eq!(mode.failure, None);
            for component in Component::ALL {
                let latency = mode.latency(&component).unwrap_or_else(|| panic!("{name}: no {component:?}"));
                assert_eq!(latency.count, 3);
                assert!(0.0 < latency.min && latency.median <= latency.p90 && latency.p90 <= latency.p99);
            }
        }
        let engine = mode(result, "tensorrt-fp16");
        assert!(engine.latencies.is_empty());
        assert!(engine.failure.as_ref().unwrap().contains("--checkpoint"), "{:?}", engine.failure);
        for name in ["graph", "graph-fused"] {
            let mode = mode(result, name);
            let reason = mode.failure.as_ref().unwrap_or_else(|| panic!("{name} on a CPU"));
            assert!(mode.latencies.is_empty() && reason.contains("GPU"), "{reason}");
        }
    }
    for part in [
        "tiny with random weights",
        "Latency, ms",
        "data",
        "action",
        "Hz",
        "p99",
        "PyTorch eager",
        "Not measured here",
        "graph: NOT MEASURED",
        "velocity, step 3",
    ] {
        assert!(printed.contains(part), "{part:?} is not in {printed}");
    }
    // The published table is of one camera.
    assert_eq!(printed.matches("torch.compile").count(), 1, "{printed}");
    assert!(printed.lines().all(|line| line.chars().count() <= 100), "{printed}");
}

#[test]
fn f32_differs_from_itself_by_nothing_and_bf16_by_what_bf16_does() {
    let (_, benchmark) = bench(&["--cases", "nvidia-1cam", "--modes", "f32,eager"]);
    let [result] = benchmark.cases.as_slice() else { panic!("one case") };
    let errors = |name: &str| {
        let mode = mode(result, name);
        let denoising = mode.denoising.as_ref().unwrap();
        assert_eq!(denoising.steps.len(), 4);
        (mode.actions.as_ref().unwrap().clone(), denoising.overall.clone())
    };
    let (actions, velocity) = errors("f32");
    assert_eq!((actions.samples, velocity.samples), (2, 2 * 4));
    for errors in [actions, velocity] {
        assert_eq!((errors.mse, errors.max_abs), (Some(0.0), Some(0.0)));
    }
    let (actions, velocity) = errors("eager");
    for errors in [actions, velocity] {
        assert!(errors.mse.unwrap() > 0.0 && errors.max_abs.unwrap() > 0.0, "{errors:?}");
        assert!((0.99..1.0).contains(&errors.cosine.unwrap()), "{errors:?}");
    }
}

#[test]
fn equal_seeds_give_equal_errors_and_another_seed_gives_others() {
    let errors = |seed: &str| {
        let (_, benchmark) = bench(&["--cases", "nvidia-1cam", "--modes", "eager", "--seed", seed]);
        let eager = mode(&benchmark.cases[0], "eager");
        (eager.actions.clone().unwrap(), eager.denoising.clone().unwrap())
    };
    let first = errors("7");
    assert_eq!(errors("7"), first);
    assert_ne!(errors("8"), first);
}

#[test]
fn a_case_of_ones_own_has_the_shape_that_was_asked_for() {
    let (printed, benchmark) = bench(&[
        "--cases",
        "2cam",
        "--modes",
        "eager",
        "--cameras",
        "3",
        "--size",
        "320x240",
        "--horizon",
        "9",
        "--steps",
        "2",
        "--batch",
        "2",
    ]);
    let [result] = benchmark.cases.as_slice() else { panic!("one case") };
    assert_eq!((result.case.cameras, result.case.frame, result.case.batch), (3, (320, 240), 2));
    assert_eq!(result.run.options.horizon, 9);
    let eager = mode(result, "eager");
    assert_eq!(eager.denoising.as_ref().unwrap().steps.len(), 2);
    // Horizon, width of the padded actions, batch, sets of inputs.
    assert_eq!(eager.actions.as_ref().unwrap().count, 9 * 20 * 2 * 2);
    assert!(printed.contains("3 cameras of 320x240") && printed.contains("batch 2"), "{printed}");
}

#[test]
fn conditions_decide_the_exit_code_and_a_mode_that_is_missing_fails_them() {
    let run = |modes: &str, condition: &str| {
        program(&[
            "bench",
            "--random-weights",
            "tiny",
            "--device",
            "cpu",
            "--iterations",
            "1",
            "--warm-up",
            "0",
            "--inputs",
            "1",
            "--cases",
            "nvidia-1cam",
            "--modes",
            modes,
            "--fail-if",
            condition,
        ])
    };
    assert_eq!(run("eager", "eager:action_cosine<0.9").status.code(), Some(0));
    let failed = run("eager", "eager:action_mse>0");
    assert_eq!(failed.status.code(), Some(1));
    assert!(text(&failed.stderr).contains("nvidia-1cam: eager: action_mse"), "{}", text(&failed.stderr));
    assert_eq!(run("eager,tensorrt-fp16", "action_cosine<0.9").status.code(), Some(1));
}

#[test]
fn each_switch_is_measured_on_and_off_or_says_why_not() {
    let (printed, benchmark) = bench(&["--cases", "nvidia-1cam,2cam", "--modes", "eager", "--ablation"]);
    let [one, two] = benchmark.cases.as_slice() else { panic!("two cases") };
    let switch = |result: &CaseResult, name: &str| {
        result.ablation.iter().find(|result| result.name == name).unwrap_or_else(|| panic!("{name}")).clone()
    };
    let batched = "all cameras in one batch";
    assert!(switch(one, batched).failure.unwrap().contains("one image"));
    for name in [batched, "cross K/V once per tick", "prompt layout kept"] {
        let result = switch(two, name);
        assert_eq!(result.failure, None);
        assert_eq!((result.on.unwrap().count, result.off.unwrap().count), (1, 1));
        assert!(result.gain().unwrap() > 0.0);
    }
    assert!(switch(two, "CUDA graphs").failure.is_some());
    assert!(printed.contains("One switch at a time"), "{printed}");
}

#[test]
fn captured_modes_are_measured_pipelined_where_that_is_asked_for_or_say_why_not() {
    let (printed, benchmark) = bench(&[
        "--cases",
        "nvidia-1cam",
        "--modes",
        "eager,graph,graph-fused",
        "--throughput",
        "--preprocessing",
        "cpu",
    ]);
    let [result] = benchmark.cases.as_slice() else { panic!("one case") };
    let modes: Vec<_> = result.throughput.iter().map(|result| result.mode.as_str()).collect();
    assert_eq!(modes, ["graph", "graph-fused"]);
    for mode in &result.throughput {
        // On the CPU nothing is captured.
        assert!(mode.failure.as_ref().unwrap().contains("NVIDIA GPU"), "{mode:?}");
        assert_eq!((mode.sequential, mode.pipelined), (None, None));
    }
    assert!(printed.contains("Throughput"), "{printed}");
}

#[test]
fn the_roofline_needs_no_measurement_and_stands_beside_one_where_there_is_one() {
    let output = program(&["roofline", "--preset", "h100", "--cases", "2cam", "--json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let floors: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(floors[0]["case"]["name"], "2cam");
    let paths: Vec<_> =
        floors[0]["floors"].as_array().unwrap().iter().map(|table| table["path"].clone()).collect();
    assert_eq!(paths, ["naive", "precomputed", "prefix-reused"]);

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bench.json");
    let file = file.to_str().unwrap();
    let (printed, _) =
        bench(&["--cases", "2cam", "--modes", "eager", "--roofline", "--preset", "orin-agx-64"]);
    assert!(
        printed.contains("Measured beside the floor") && printed.contains("Jetson AGX Orin"),
        "{printed}"
    );

    let written = program(&[
        "bench",
        "--random-weights",
        "tiny",
        "--device",
        "cpu",
        "--iterations",
        "1",
        "--warm-up",
        "0",
        "--inputs",
        "1",
        "--cases",
        "2cam",
        "--modes",
        "eager",
        "--json",
        file,
    ]);
    assert!(written.status.success(), "{}", text(&written.stderr));
    let output = program(&[
        "roofline",
        "--model",
        "tiny",
        "--measured",
        file,
        "--bandwidth-gbs",
        "3000",
        "--tflops",
        "790",
    ]);
    let printed = text(&output.stdout);
    assert!(printed.contains("Measured beside the floor") && printed.contains("eager"), "{printed}");
}

#[test]
fn what_cannot_be_asked_is_refused_with_what_can() {
    for (arguments, parts) in [
        (vec!["bench"], vec!["--random-weights n1d6-3b", "--checkpoint DIR"]),
        (vec!["bench", "--random-weights", "huge"], vec!["n1d6-3b, tiny", "huge"]),
        (vec!["bench", "--random-weights", "tiny", "--modes", "fast"], vec!["graph-fused", "fast"]),
        (vec!["bench", "--random-weights", "tiny", "--cases", "9cam"], vec!["alfie-4cam", "9cam"]),
        (vec!["bench", "--random-weights", "tiny", "--size", "640"], vec!["640x480"]),
        (vec!["bench", "--random-weights", "tiny", "--iterations", "0"], vec!["--iterations", "found 0"]),
        (
            vec!["bench", "--random-weights", "tiny", "--device", "cpu", "--roofline"],
            vec!["--preset", "--tflops"],
        ),
        (vec!["roofline"], vec!["--preset NAME", "--bandwidth-gbs"]),
        (vec!["roofline", "--preset", "a100"], vec!["orin-agx-64", "a100"]),
        (vec!["roofline", "--bandwidth-gbs", "0", "--tflops", "2"], vec!["bandwidth"]),
    ] {
        let output = program(&arguments);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(parts.iter().all(|part| said.contains(part)), "{arguments:?}: {said}");
    }
}

#[test]
fn a_checkpoints_own_weights_are_measured_too() {
    let checkpoint: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny");
    let output = program(&[
        "bench",
        "--checkpoint",
        checkpoint.to_str().unwrap(),
        "--embodiment",
        "new_embodiment",
        "--device",
        "cpu",
        "--iterations",
        "1",
        "--warm-up",
        "0",
        "--inputs",
        "1",
        "--cases",
        "nvidia-1cam",
        "--modes",
        "eager,tensorrt-fp16",
    ]);
    let (printed, said) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{printed}\n{said}");
    assert!(printed.contains("tiny on Cpu") && printed.contains("--engines DIR"), "{printed}");
}
