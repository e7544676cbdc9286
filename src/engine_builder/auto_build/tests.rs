//! What leads to a build and what to a refusal. What would be TensorRT's part is left to the test: whole files, and none.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command as Process;

use super::*;
use crate::{
    checkpoint::{Checkpoint, OpenOptions, Parts},
    engine::{
        AccuracyRecord, BuilderRecord, CalibrationRecord, CalibrationSource, CheckpointRecord,
        ComputeCapability, EngineError, EngineNeeds, EngineRecord, EngineStore, GpuRecord, PlanRecord,
        Precision, RECORD_FORMAT, VersionRecord,
        calibration::{CalibrationMethod, RangeRule},
        fused::FusedEngine,
    },
    engine_builder::{calibration::options::Int8Options, graph::GraphRequest, lengths::Lengths},
};

const EMBODIMENT: usize = 2;

fn tiny() -> Checkpoint {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny");
    Checkpoint::open(&folder, &OpenOptions { parts: Parts::ActionHead, ..OpenOptions::default() }).unwrap()
}

fn needs(checkpoint: &Checkpoint) -> EngineNeeds {
    let fused = FusedEngine {
        checkpoint: PathBuf::from("/models/it's a fine-tuned one"),
        checkpoint_hash: "blake3:0123456789abcdef".to_owned(),
        config: &checkpoint.config,
        embodiment: EMBODIMENT,
        state_tokens: 1,
        precision: Precision::Fp16,
        tensorrt: VersionRecord { major: 10, minor: 3, patch: 0 },
        gpu: GpuRecord {
            name: "Orin".to_owned(),
            compute_capability: ComputeCapability { major: 8, minor: 7 },
        },
    };
    EngineNeeds { device: Some("cuda:1".to_owned()), ..fused.needs() }
}

fn graph() -> GraphRequest {
    GraphRequest {
        embodiment: EMBODIMENT,
        text: Lengths::new(20, 30, 90).unwrap(),
        image: Lengths::new(216, 216, 324).unwrap(),
    }
}

fn record(checkpoint: &Checkpoint, needs: &EngineNeeds) -> EngineRecord {
    EngineRecord {
        format: RECORD_FORMAT,
        tool_version: "0".to_owned(),
        built_at: 1,
        checkpoint: CheckpointRecord { path: "elsewhere".to_owned(), hash: needs.checkpoint_hash.clone() },
        model_config: needs.model_config.clone(),
        graph: needs.graph.clone(),
        precision: needs.precision,
        shapes: graph().shapes(&checkpoint.config),
        tensorrt: needs.tensorrt,
        cuda: "12.6".to_owned(),
        gpu: needs.gpu.clone(),
        builder: BuilderRecord {
            optimisation_level: Some(4),
            workspace: Some(3 << 30),
            strongly_typed: true,
            f32_layers: vec!["normalisation".to_owned(), "softmax".to_owned()],
            ..BuilderRecord::default()
        },
        calibration: None,
        accuracy: None,
        latency: None,
        notes: Vec::new(),
        plan: PlanRecord { file: String::new(), bytes: 0, sha256: String::new() },
    }
}

/// A folder with an engine that fits `needs`, and where its files are.
struct Folder {
    folder: tempfile::TempDir,
    checkpoint: Checkpoint,
    needs: EngineNeeds,
    record: PathBuf,
    plan: PathBuf,
}

impl Folder {
    fn new() -> Self {
        let (folder, checkpoint) = (tempfile::tempdir().unwrap(), tiny());
        let needs = needs(&checkpoint);
        let store = EngineStore::new(folder.path());
        let record = store.save(&needs, &record(&checkpoint, &needs), b"the old plan").unwrap();
        let plan = store.load(&needs).unwrap().path().to_path_buf();
        Self { folder, checkpoint, needs, record, plan }
    }

    fn store(&self) -> EngineStore {
        EngineStore::new(self.folder.path())
    }

    fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let entries = fs::read_dir(self.folder.path()).unwrap().map(|entry| entry.unwrap().path());
        entries
            .filter(|path| path.is_file())
            .map(|path| (path.display().to_string(), fs::read(&path).unwrap()))
            .collect()
    }

    /// Loads as a policy does; what the builder would leave is `built`, where it leaves anything.
    fn load(&self, allowed: bool, built: Option<&EngineNeeds>) -> (Result<Vec<u8>, PolicyError>, usize) {
        let builds = Cell::new(0);
        let load = || {
            let plan = self.store().load(&self.needs).map_err(ModelError::from)?;
            Ok(plan.to_vec())
        };
        let result = load_or_build(allowed, load, |command| {
            builds.set(builds.get() + 1);
            parse(command)?;
            let built = built.ok_or_else(|| anyhow::anyhow!("TensorRT says no"))?;
            self.store().save(&self.needs, &record(&self.checkpoint, built), b"the new plan")?;
            Ok(())
        });
        (result, builds.get())
    }
}

type Spoil = fn(&mut Folder);

/// Everything that may be wrong with an engine and that a build puts right: what is said of it, and how it comes about.
fn curable() -> Vec<(&'static str, Spoil)> {
    vec![
        ("no such engine", |f| {
            fs::remove_file(&f.record).unwrap();
            fs::remove_file(&f.plan).unwrap();
        }),
        ("tensorrt: built for 10.3.0, needed 10.7.0", |f| f.needs.tensorrt.minor = 7),
        ("checkpoint: built for blake3:0123456789abcdef, needed blake3:fedc", |f| {
            f.needs.checkpoint_hash = "blake3:fedc".to_owned();
        }),
        ("gpu.compute_capability: built for 8.7 (Orin), needed 9.0", |f| {
            f.needs.gpu.compute_capability = ComputeCapability { major: 9, minor: 0 };
        }),
        ("graph.embodiment: built for 2, needed 3", |f| {
            f.needs.graph.parameters.insert("embodiment".to_owned(), 3.into());
        }),
        ("precision: built for fp16, needed bf16", |f| f.needs.precision = Precision::Bf16),
        ("damaged", |f| {
            let mut bytes = fs::read(&f.plan).unwrap();
            bytes[3] ^= 1;
            fs::write(&f.plan, bytes).unwrap();
        }),
        ("damaged", |f| fs::remove_file(&f.plan).unwrap()),
        ("description cannot be read", |f| fs::write(&f.record, "{").unwrap()),
        ("accuracy.cosine: built for 0.5 against libtorch", |f| {
            let mut wrong = f.store().load(&f.needs).unwrap().record.clone();
            wrong.accuracy = Some(AccuracyRecord {
                against: "libtorch".to_owned(),
                inputs: String::new(),
                mse: 1.0,
                cosine: 0.5,
                least_cosine: 0.999,
                max_error: 1.0,
                mse_per_step: Vec::new(),
                growth: 1.0,
            });
            f.store().update(&f.needs, &wrong).unwrap();
        }),
    ]
}

#[test]
fn an_engine_that_fits_is_loaded_and_nothing_is_built() {
    let folder = Folder::new();
    let (result, builds) = folder.load(true, Some(&folder.needs));
    assert_eq!((result.unwrap(), builds), (b"the old plan".to_vec(), 0));
}

#[test]
fn whatever_a_build_puts_right_is_built_once_where_that_is_allowed() {
    for (what, spoil) in curable() {
        let mut folder = Folder::new();
        spoil(&mut folder);
        let (result, builds) = folder.load(true, Some(&folder.needs));
        assert_eq!((result.expect(what), builds), (b"the new plan".to_vec(), 1), "{what}");
    }
}

#[test]
fn where_building_is_not_allowed_both_sides_and_the_command_are_named_and_every_file_stays() {
    for (what, spoil) in curable() {
        let mut folder = Folder::new();
        spoil(&mut folder);
        let before = folder.files();
        let (result, builds) = folder.load(false, Some(&folder.needs));
        let error = result.unwrap_err().to_string();
        assert!(error.contains(what), "{what:?} in {error}");
        let command = format!(
            "engine_builder --checkpoint '/models/it'\\''s a fine-tuned one' --graph dit_fused --precision {}",
            folder.needs.precision
        );
        assert!(error.contains(&command), "{error}");
        assert_eq!((builds, folder.files()), (0, before), "{what}");
    }
}

#[test]
fn a_build_that_fails_leaves_the_old_files_and_names_both_reasons() {
    for (what, spoil) in curable() {
        let mut folder = Folder::new();
        spoil(&mut folder);
        let before = folder.files();
        let (result, builds) = folder.load(true, None);
        let error = result.unwrap_err();
        assert!(matches!(error, PolicyError::EngineBuild { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains(what) && text.contains("TensorRT says no"), "{text}");
        assert_eq!((builds, folder.files()), (1, before), "{what}");
    }
}

#[test]
fn an_engine_that_does_not_fit_after_the_build_either_is_refused() {
    let mut folder = Folder::new();
    fs::remove_file(&folder.record).unwrap();
    folder.needs.tensorrt.minor = 7;
    let other = EngineNeeds { checkpoint_hash: "blake3:other".to_owned(), ..folder.needs.clone() };
    let (result, builds) = folder.load(true, Some(&other));
    let error = result.unwrap_err().to_string();
    assert!(error.contains("does not fit") && error.contains("blake3:other"), "{error}");
    assert_eq!(builds, 1);
}

#[test]
fn what_building_would_not_help_is_refused_without_a_build() {
    let folder = Folder::new();
    fs::remove_file(&folder.record).unwrap();
    // The system gives no bytes of it.
    fs::create_dir(&folder.record).unwrap();
    let (result, builds) = folder.load(true, Some(&folder.needs));
    let error = result.unwrap_err();
    assert!(matches!(error, PolicyError::Model(ModelError::Engine(EngineError::File { .. }))), "{error}");
    assert_eq!(builds, 0);

    let device = || ModelError::Device { requested: "cuda".to_owned(), reason: "no GPU".to_owned() };
    let refused = load_or_build(true, || Err::<(), _>(device().into()), |_| panic!("built without a GPU"));
    assert!(refused.unwrap_err().to_string().contains("no GPU"));
}

#[test]
fn the_command_builds_the_same_for_the_same_prompts_with_the_same_options() {
    let mut folder = Folder::new();
    folder.needs.tensorrt.minor = 7;
    let error = folder.store().load(&folder.needs).unwrap_err();
    let command = parse(error.rebuild().unwrap()).unwrap();
    assert_eq!(command.checkpoint, folder.needs.checkpoint);
    assert_eq!((command.precision, command.graph), (Precision::Fp16, folder.needs.graph.kind));
    assert_eq!((command.embodiment.as_str(), command.device.as_deref()), ("2", Some("cuda:1")));
    assert_eq!(command.out, folder.folder.path());
    assert_eq!((command.text_tokens, command.image_tokens), (graph().text, graph().image));
    assert_eq!((command.optimisation_level, command.workspace_mb), (Some(4), Some(3072)));
    assert!(command.strongly_typed && !command.norms_f32 && !command.tf32 && !command.force);

    // Of another embodiment's engine, which may be for other cameras, nothing is taken over.
    folder.needs.graph.parameters.insert("embodiment".to_owned(), 3.into());
    let error = folder.store().load(&folder.needs).unwrap_err();
    let command = parse(error.rebuild().unwrap()).unwrap();
    assert_eq!((command.embodiment.as_str(), command.optimisation_level), ("3", None));
    assert_ne!(command.text_tokens, graph().text);
}

#[test]
fn an_int8_engine_is_calibrated_again_as_it_was_and_others_are_not() {
    let plain = Int8Options {
        calibration: None,
        calibration_ticks: 16,
        method: None,
        ranges: RangeRule::Entropy,
        smooth_quant: None,
        skip: Vec::new(),
    };
    let collected = Int8Options {
        calibration: Some(PathBuf::from("/sets/the robot's")),
        method: Some(CalibrationMethod::Explicit),
        ranges: RangeRule::Percentile(99.99),
        smooth_quant: Some(0.5),
        skip: vec!["action_decoder".to_owned(), "action_encoder".to_owned()],
        ..plain.clone()
    };
    // Who calibrates is not said again of TensorRT's own calibrator, which the next version may not have.
    let synthetic = Int8Options { calibration_ticks: 3, ranges: RangeRule::MinMax, ..plain.clone() };
    for (options, source) in [
        (collected, CalibrationSource::Collected("/sets/the robot's".to_owned())),
        (synthetic, CalibrationSource::Synthetic(3)),
    ] {
        let mut folder = Folder::new();
        folder.needs.precision = Precision::Int8;
        let calibrated = EngineRecord {
            calibration: Some(CalibrationRecord {
                hash: "blake3:5e7".to_owned(),
                source,
                method: options.method.unwrap_or_default(),
                ranges: options.ranges.to_string(),
                samples: 12,
                seed: 7,
                smooth_quant: options.smooth_quant,
                skipped: options.skip.clone(),
            }),
            ..record(&folder.checkpoint, &folder.needs)
        };
        folder.store().save(&folder.needs, &calibrated, b"8 bits").unwrap();
        folder.needs.tensorrt.minor = 7;
        let error = folder.store().load(&folder.needs).unwrap_err();
        let command = parse(error.rebuild().unwrap()).unwrap();
        assert_eq!((command.precision, command.int8), (Precision::Int8, options));

        folder.needs.precision = Precision::Bf16;
        let error = folder.store().load(&folder.needs).unwrap_err();
        let command = parse(error.rebuild().unwrap()).unwrap();
        assert_eq!((command.precision, command.int8), (Precision::Bf16, plain.clone()));
    }
}

#[test]
fn a_shell_reads_the_printed_command_as_the_arguments_that_are_run() {
    let mut folder = Folder::new();
    folder.needs.eagle_config = Some(PathBuf::from("/a $HOME `b` \"c\"/eagle.json"));
    fs::remove_file(&folder.record).unwrap();
    let error = folder.store().load(&folder.needs).unwrap_err();
    let command = error.rebuild().unwrap();
    let script = format!("engine_builder() {{ printf '%s\\n' \"$@\"; }}\n{command}");
    let output = Process::new("sh").args(["-c", &script]).output().unwrap();
    let read: Vec<String> = String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
    assert_eq!(read, command.arguments());
}

#[test]
fn an_engine_built_for_later_versions_of_tensorrt_is_found_by_them() {
    let mut folder = Folder::new();
    let compatible = EngineRecord {
        builder: BuilderRecord { version_compatible: true, ..BuilderRecord::default() },
        ..record(&folder.checkpoint, &folder.needs)
    };
    folder.store().save(&folder.needs, &compatible, b"a plan for all of 10").unwrap();
    folder.needs.tensorrt.minor = 7;
    let (result, builds) = folder.load(true, None);
    assert_eq!((result.unwrap(), builds), (b"a plan for all of 10".to_vec(), 0));
}
