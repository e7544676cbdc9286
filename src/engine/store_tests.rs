//! Records, comparison, and what happens to engines on disk.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use proptest::prelude::*;
use serde_json::json;

use super::super::calibration::CalibrationMethod;
use super::super::graph::GraphKind;
use super::super::precision::{ComputeCapability, Precision};
use super::super::record::*;
use super::*;

fn needs() -> EngineNeeds {
    EngineNeeds {
        checkpoint: PathBuf::from("/models/gr00t"),
        eagle_config: None,
        device: None,
        checkpoint_hash: "blake3:0123456789abcdef".to_owned(),
        model_config: BTreeMap::from([("action_horizon".to_owned(), json!(50))]),
        graph: GraphRecord {
            kind: GraphKind::DitFused,
            version: 1,
            parameters: BTreeMap::from([("embodiment".to_owned(), json!(3)), ("steps".to_owned(), json!(4))]),
        },
        precision: Precision::Fp16,
        shapes: BTreeMap::from([
            ("actions".to_owned(), vec![vec![1, 50, 128]]),
            ("context".to_owned(), vec![vec![1, 100, 2048], vec![1, 300, 2048]]),
        ]),
        tensorrt: VersionRecord { major: 10, minor: 3, patch: 0 },
        gpu: GpuRecord {
            name: "Orin".to_owned(),
            compute_capability: ComputeCapability { major: 8, minor: 7 },
        },
        builder: None,
        calibration_hash: None,
    }
}

fn record() -> EngineRecord {
    let needs = needs();
    let fixed = |shape: &[i64]| ShapeRecord { min: shape.to_vec(), opt: shape.to_vec(), max: shape.to_vec() };
    EngineRecord {
        format: RECORD_FORMAT,
        tool_version: "0.1.0".to_owned(),
        built_at: 1_790_000_000,
        checkpoint: CheckpointRecord { path: "/models/gr00t".to_owned(), hash: needs.checkpoint_hash },
        model_config: needs.model_config,
        graph: needs.graph,
        precision: needs.precision,
        shapes: BTreeMap::from([
            ("actions".to_owned(), fixed(&[1, 50, 128])),
            (
                "context".to_owned(),
                ShapeRecord { min: vec![1, 64, 2048], opt: vec![1, 250, 2048], max: vec![1, 400, 2048] },
            ),
        ]),
        tensorrt: needs.tensorrt,
        cuda: "12.6".to_owned(),
        gpu: needs.gpu,
        builder: BuilderRecord { optimisation_level: Some(3), ..BuilderRecord::default() },
        calibration: None,
        accuracy: Some(AccuracyRecord {
            against: "libtorch bf16".to_owned(),
            inputs: "synthetic, seed 0".to_owned(),
            mse: 2.0e-5,
            cosine: 0.999_978,
            least_cosine: 0.999,
            max_error: 0.03,
            mse_per_step: vec![1.7e-5, 1.9e-5, 2.0e-5, 2.4e-5],
            growth: 1.42,
        }),
        latency: None,
        notes: vec!["built by a test".to_owned()],
        plan: PlanRecord { file: String::new(), bytes: 0, sha256: String::new() },
    }
}

fn saved(plan: &[u8]) -> (tempfile::TempDir, EngineStore, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let store = EngineStore::new(folder.path());
    let path = store.save(&needs(), &record(), plan).expect("saved");
    (folder, store, path)
}

#[test]
fn an_engine_that_was_saved_loads_with_all_that_was_recorded() {
    let (_folder, store, path) = saved(b"plan");
    let plan = store.load(&needs()).expect("fits");
    assert_eq!(&*plan, b"plan");
    assert_eq!(plan.record.accuracy, record().accuracy);
    assert_eq!(plan.record.plan.bytes, 4);
    // What `sha256sum` says of the four bytes.
    assert_eq!(plan.record.plan.sha256, "64879f7d6b960a01909762d911a32d4582c20010c5641ee90278b644a9e3b525");
    assert!(plan.differences.fatal.is_empty() && plan.differences.minor.is_empty());
    let name = path.file_name().expect("a name").to_string_lossy().into_owned();
    assert_eq!(name, "dit_fused-fp16-0123456789ab-e3-sm87-trt10.3.0.json");
}

#[test]
fn a_calibration_is_read_back_whole() {
    let calibration = CalibrationRecord {
        hash: "blake3:77".to_owned(),
        source: CalibrationSource::Collected("/sets/kitchen".to_owned()),
        method: CalibrationMethod::Explicit,
        ranges: "percentile:99.99".to_owned(),
        samples: 60,
        seed: 3,
        smooth_quant: Some(0.5),
        skipped: vec!["action_decoder".to_owned()],
    };
    let json = serde_json::to_value(&calibration).expect("JSON");
    assert_eq!(json["method"], "explicit");
    assert_eq!(serde_json::from_value::<CalibrationRecord>(json).expect("read"), calibration);
}

#[test]
fn every_field_that_differs_is_named_with_both_sides_and_the_command_that_rebuilds() {
    type Change = fn(&mut EngineNeeds);
    let cases: [(&str, &str, &str, Change); 13] = [
        ("checkpoint:", "0123456789abcdef", "blake3:ff", |n| n.checkpoint_hash = "blake3:ff".to_owned()),
        ("model_config.action_horizon", "50", "16", |n| {
            n.model_config.insert("action_horizon".to_owned(), json!(16));
        }),
        ("model_config.new", "absent", "true", |n| {
            n.model_config.insert("new".to_owned(), json!(true));
        }),
        ("graph:", "dit_fused", "backbone_vision", |n| n.graph.kind = GraphKind::BackboneVision),
        ("graph.version", "1", "2", |n| n.graph.version = 2),
        ("graph.embodiment", "3", "absent", |n| {
            n.graph.parameters.remove("embodiment");
        }),
        ("precision", "fp16", "fp32", |n| n.precision = Precision::Fp32),
        ("shapes.context", "[1, 64, 2048] to [1, 400, 2048]", "[1, 401, 2048]", |n| {
            n.shapes.insert("context".to_owned(), vec![vec![1, 401, 2048]]);
        }),
        ("shapes.mask", "no such input", "[1]", |n| {
            n.shapes.insert("mask".to_owned(), vec![vec![1]]);
        }),
        ("tensorrt", "10.3.0", "10.7.0", |n| n.tensorrt.minor = 7),
        ("gpu.compute_capability", "8.7 (Orin)", "9.0", |n| {
            n.gpu.compute_capability = ComputeCapability { major: 9, minor: 0 }
        }),
        ("builder", "Some(3)", "Some(5)", |n| {
            n.builder = Some(BuilderRecord { optimisation_level: Some(5), ..BuilderRecord::default() });
        }),
        ("calibration", "no calibration", "blake3:aa", |n| n.calibration_hash = Some("blake3:aa".to_owned())),
    ];
    let (_folder, store, path) = saved(b"plan");
    for (field, built, needed, change) in cases {
        let mut needs = needs();
        change(&mut needs);
        let error = store.load_from(&path, &needs).expect_err(field);
        assert!(matches!(error, EngineError::Mismatch { .. }), "{error}");
        let text = error.to_string();
        for part in [field, built, needed, "engine_builder --checkpoint /models/gr00t --graph", "--precision"]
        {
            assert!(text.contains(part), "{part:?} in {text}");
        }
    }
}

#[test]
fn an_input_that_is_not_fed_is_a_difference() {
    let (_folder, store, path) = saved(b"plan");
    let mut needs = needs();
    needs.shapes.remove("actions");
    let error = store.load_from(&path, &needs).expect_err("an input more").to_string();
    assert!(error.contains("shapes.actions"), "{error}");
}

#[test]
fn another_model_of_gpu_of_the_same_generation_is_only_worth_a_warning() {
    let (_folder, store, _) = saved(b"plan");
    let mut needs = needs();
    needs.gpu.name = "Orin NX".to_owned();
    let plan = store.load(&needs).expect("runs");
    assert_eq!(plan.differences.minor.len(), 1);
    assert!(plan.differences.minor[0].to_string().contains("Orin NX"));
}

#[test]
fn a_version_compatible_engine_runs_with_later_versions_of_its_major() {
    let mut record = record();
    record.builder.version_compatible = true;
    for (version, runs) in [((10, 3, 0), true), ((10, 9, 0), true), ((10, 2, 0), false), ((11, 0, 0), false)]
    {
        let mut needs = needs();
        (needs.tensorrt.major, needs.tensorrt.minor, needs.tensorrt.patch) = version;
        assert_eq!(record.compare(&needs).fatal.is_empty(), runs, "{version:?}");
    }
}

#[test]
fn a_missing_engine_names_the_command_quoted_for_a_shell() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = EngineStore::new(folder.path().join("my engines"));
    let mut needs = needs();
    needs.checkpoint = PathBuf::from("/it's here");
    let error = store.load(&needs).expect_err("missing").to_string();
    assert!(error.contains("--checkpoint '/it'\\''s here'"), "{error}");
    assert!(error.contains("my engines'"), "{error}");
}

#[test]
fn a_plan_that_is_cut_short_longer_or_gone_is_found_out() {
    let (_folder, store, _) = saved(&[7; 1000]);
    let path = store.load(&needs()).expect("fits").path().to_path_buf();
    for bytes in [vec![], vec![7; 999], vec![7; 1001]] {
        fs::write(&path, bytes).expect("written");
        assert!(matches!(store.load(&needs()), Err(EngineError::Damaged { .. })));
    }
    fs::remove_file(&path).expect("removed");
    let error = store.load(&needs()).expect_err("gone");
    assert!(
        matches!(error, EngineError::Damaged { .. }) && error.to_string().contains("engine_builder"),
        "{error}"
    );
}

proptest! {
    #[test]
    fn one_flipped_bit_anywhere_is_found_out(size in 1_usize..5000, at: prop::sample::Index, bit in 0_u8..8) {
        let plan: Vec<u8> = (0..size).map(|i| (i * 31 % 251) as u8).collect();
        let (_folder, store, _) = saved(&plan);
        let path = store.load(&needs()).expect("fits").path().to_path_buf();
        let mut bad = plan;
        bad[at.index(size)] ^= 1 << bit;
        fs::write(&path, bad).expect("written");
        let found_out = matches!(store.load(&needs()), Err(EngineError::Damaged { .. }));
        prop_assert!(found_out);
    }

    #[test]
    fn a_damaged_record_never_panics_and_never_loads_other_bytes(at: prop::sample::Index, byte: u8) {
        let (_folder, store, path) = saved(b"plan");
        let mut text = fs::read(&path).expect("read");
        let at = at.index(text.len());
        text[at] = byte;
        fs::write(&path, text).expect("written");
        if let Ok(plan) = store.load(&needs()) {
            prop_assert_eq!(&*plan, b"plan");
        }
    }
}

#[test]
fn records_of_another_format_too_large_or_leading_elsewhere_are_refused() {
    let (_folder, store, path) = saved(b"plan");
    let good = fs::read_to_string(&path).expect("read");
    let file = read_record(&path).ok().expect("a record").plan.file;
    for (bad, said) in [
        (good.replacen("\"format\": 2", "\"format\": 9", 1), "found 9"),
        (good.replacen(&file, "../elsewhere.engine", 1), "../elsewhere.engine"),
        (good.replacen("\"tool_version\"", "\"tool\"", 1), "tool"),
        (" ".repeat(2 << 20), "at most"),
        (good[..good.len() / 2].to_owned(), "EOF"),
    ] {
        fs::write(&path, bad).expect("written");
        let error = store.load(&needs()).expect_err("refused");
        assert!(matches!(error, EngineError::Unreadable { .. }), "{error}");
        assert!(error.to_string().contains(said), "{said:?} in {error}");
    }
}

#[test]
fn a_new_engine_takes_the_place_of_the_old_and_leaves_nothing_behind() {
    let (folder, store, _) = saved(b"old plan");
    store.save(&needs(), &record(), b"new plan").expect("saved");
    assert_eq!(&*store.load(&needs()).expect("fits"), b"new plan");
    assert_eq!(fs::read_dir(folder.path()).expect("listed").count(), 2);
}

#[test]
fn a_stop_between_the_two_writes_leaves_the_old_engine() {
    let (folder, store, path) = saved(b"old plan");
    // What `save` has done when it is stopped before the record: a plan more, and half a temporary file.
    fs::write(folder.path().join("dit_fused.abc.engine"), b"new plan").expect("written");
    fs::write(
        folder.path().join(format!(".{}.1-0.partial", path.display().to_string().len())),
        b"{\"format\"",
    )
    .expect("written");
    assert_eq!(&*store.load(&needs()).expect("fits"), b"old plan");
}

#[test]
fn what_a_killed_writer_left_is_removed_by_a_later_one_unless_it_is_fresh() {
    let (folder, store, path) = saved(b"old plan");
    let stem = path.file_stem().expect("a stem").to_string_lossy().into_owned();
    let names =
        [format!("{stem}.0123.engine"), format!(".{stem}.json.77-0.partial"), "other.0123.engine".to_owned()];
    for name in &names {
        fs::write(folder.path().join(name), b"left").expect("written");
    }
    store.save(&needs(), &record(), b"newer plan").expect("saved");
    assert!(names.iter().all(|name| folder.path().join(name).exists()), "a fresh file was removed");
    for name in &names {
        let file = File::options().write(true).open(folder.path().join(name)).expect("opened");
        file.set_modified(SystemTime::now() - Duration::from_secs(7200)).expect("aged");
    }
    store.save(&needs(), &record(), b"newest plan").expect("saved");
    let left: Vec<bool> = names.iter().map(|name| folder.path().join(name).exists()).collect();
    assert_eq!(left, [false, false, true], "only this engine's are removed");
    assert_eq!(&*store.load(&needs()).expect("fits"), b"newest plan");
}

#[test]
fn measurements_can_be_added_to_a_record() {
    let (_folder, store, _) = saved(b"plan");
    let mut record = store.load(&needs()).expect("fits").record;
    record.latency = Some(LatencyRecord {
        of: "4 steps, CUDA graph, device events".to_owned(),
        iterations: 30,
        median_ms: 78.25,
        mean_ms: 78.5,
        p90_ms: 80.0,
    });
    store.update(&needs(), &record).expect("updated");
    assert_eq!(store.load(&needs()).expect("fits").record, record);
}

/// Saves engines again and again in a process of its own, until it is killed. Run by the test below only.
#[test]
fn writes_engines_until_it_is_killed() {
    let Some(folder) = std::env::var_os("GROOT_TEST_WRITE_ENGINES") else {
        return;
    };
    let store = EngineStore::new(PathBuf::from(folder));
    for version in 0.. {
        let plan = vec![version as u8; 200_000];
        store.save(&needs(), &record(), &plan).expect("saved");
    }
}

#[test]
fn a_writer_killed_at_any_moment_leaves_a_whole_engine() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = EngineStore::new(folder.path());
    store.save(&needs(), &record(), &[0; 200_000]).expect("saved");
    for round in 0..12_u64 {
        let mut writer = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "engine::store::tests::writes_engines_until_it_is_killed"])
            .env("GROOT_TEST_WRITE_ENGINES", folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("started");
        let before = store.load(&needs()).map(|plan| plan.record.plan.sha256.clone()).ok();
        // Until it has begun to write, and then for a different while each time.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while store.load(&needs()).map(|plan| plan.record.plan.sha256.clone()).ok() == before {
            assert!(std::time::Instant::now() < deadline, "the writer writes nothing");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        std::thread::sleep(std::time::Duration::from_micros(1700 * round));
        writer.kill().expect("killed");
        writer.wait().expect("gone");
        let plan = store.load(&needs()).expect("a whole engine");
        assert_eq!(plan.len(), 200_000);
        assert!(plan.iter().all(|&byte| byte == plan[0]));
    }
}
