//! LeRobot datasets that PyArrow and PyAV wrote, compared with what those two read back, to the last bit.

use std::{
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use groot_policy::{
    recording::{
        Sample,
        lerobot::{
            DatasetKeys, LeRobotDataset, LeRobotError, SampleOptions, VideoDecoder,
            writer::{WriteOptions, write_dataset},
        },
    },
    synthetic::{SyntheticOptions, SyntheticRobot},
};
use ndarray::Array2;
use proptest::prelude::*;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const FPS: f64 = 10.0;
const LENGTHS: [u64; 4] = [23, 31, 1, 17];
const VIDEOS: [(&str, u32, u32); 8] = [
    ("h264", 64, 48),
    ("bt709", 64, 48),
    ("bt601", 64, 48),
    ("full", 64, 48),
    ("fine", 64, 48),
    ("wide", 98, 34),
    ("av1", 64, 64),
    ("hevc", 64, 64),
];
const HOW_TO_INSTALL: &str =
    "run `make setup`, or name a Python with PyArrow, PyAV, Pillow and imageio-ffmpeg in GROOT_TEST_PYTHON";

/// Runs `lerobot.py`; gives the last line of its output.
fn python(arguments: &[&Path]) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python =
        std::env::var_os("GROOT_TEST_PYTHON").map_or_else(|| root.join(".venv/bin/python"), PathBuf::from);
    let output = Command::new(&python)
        .arg(root.join("tests/reference/lerobot.py"))
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}; {HOW_TO_INSTALL}", python.display()));
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "lerobot.py: {log}; {HOW_TO_INSTALL}");
    String::from_utf8_lossy(&output.stdout).lines().last().unwrap_or_default().to_owned()
}

struct Fixture {
    root: PathBuf,
    decoder: VideoDecoder,
}

/// The datasets, written once per run.
fn fixture() -> &'static Fixture {
    static FIXTURE: OnceLock<Fixture> = OnceLock::new();
    FIXTURE.get_or_init(|| {
        let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("lerobot");
        if root.exists() {
            fs::remove_dir_all(&root).unwrap();
        }
        let ffmpeg = python(&[Path::new("write"), &root]);
        // With the libraries built in, they are what is tested; `program_decoder` tests the program then.
        let decoder = if cfg!(feature = "video") {
            VideoDecoder::Default
        } else {
            VideoDecoder::Program(ffmpeg.clone().into())
        };
        fs::write(root.join("ffmpeg"), ffmpeg).unwrap();
        Fixture { root, decoder }
    })
}

impl Fixture {
    #[cfg(feature = "video")]
    fn program(&self) -> VideoDecoder {
        VideoDecoder::Program(fs::read_to_string(self.root.join("ffmpeg")).unwrap().into())
    }

    /// A copy of a dataset that a test may break.
    fn copy(&self, dataset: &str) -> tempfile::TempDir {
        let copy = tempfile::tempdir().unwrap();
        copy_folder(&self.root.join(dataset), copy.path());
        copy
    }

    fn expected(&self, dataset: &str, episode: u64, column: &str) -> Vec<u8> {
        fs::read(self.root.join(format!("expected/{dataset}/episode_{episode}.{column}"))).unwrap()
    }

    fn numbers(&self, dataset: &str, episode: u64, column: &str, width: usize) -> Array2<f32> {
        numbers(&self.expected(dataset, episode, column), width)
    }
}

fn numbers(bytes: &[u8], width: usize) -> Array2<f32> {
    let values: Vec<f32> =
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    Array2::from_shape_vec((values.len() / width, width), values).unwrap()
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn names(keys: &[&str]) -> Vec<String> {
    keys.iter().map(|key| (*key).to_owned()).collect()
}

fn widths(keys: &[(&str, usize)]) -> Vec<(String, usize)> {
    keys.iter().map(|(key, width)| ((*key).to_owned(), *width)).collect()
}

fn keys(cameras: &[&str]) -> DatasetKeys {
    DatasetKeys {
        cameras: names(cameras),
        video_deltas: vec![0],
        state: widths(&[("hand", 2), ("arm", 5), ("gripper", 1)]),
        state_deltas: vec![0],
        action: widths(&[("hand", 2), ("arm", 5)]),
        action_deltas: (0..4).collect(),
        language: Some("annotation.human.task_description".to_owned()),
    }
}

fn open(root: &Path) -> LeRobotDataset {
    LeRobotDataset::open(root).unwrap_or_else(|error| panic!("{error}"))
}

fn samples(
    root: &Path,
    options: &SampleOptions,
    keys: &DatasetKeys,
) -> std::result::Result<Vec<Sample>, LeRobotError> {
    LeRobotDataset::open(root)?.samples(options, keys)?.collect()
}

fn options(episodes: &[u64]) -> SampleOptions {
    SampleOptions {
        episodes: episodes.to_vec(),
        decoder: fixture().decoder.clone(),
        ..SampleOptions::default()
    }
}

/// The message of a dataset, copied from `dataset` and broken, for one camera.
fn message(dataset: &str, camera: &str, break_it: impl FnOnce(&Path)) -> String {
    let copy = fixture().copy(dataset);
    break_it(copy.path());
    match samples(copy.path(), &options(&[1]), &keys(&[camera])) {
        Ok(samples) => panic!("{} samples of a broken dataset", samples.len()),
        Err(error) => error.to_string(),
    }
}

fn edit(path: PathBuf, from: &str, to: &str) {
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{text}");
    fs::write(path, text.replacen(from, to, 1)).unwrap();
}

fn truncate(path: PathBuf, share: f64) {
    let bytes = fs::read(&path).unwrap();
    fs::write(path, &bytes[..(bytes.len() as f64 * share) as usize]).unwrap();
}

fn check_every_row(dataset: &str, decoder: &VideoDecoder) {
    let fixture = fixture();
    let mut cameras: Vec<_> = VIDEOS.to_vec();
    cameras.push(("stored", 32, 24));
    let keys = keys(&cameras.iter().map(|(camera, ..)| *camera).collect::<Vec<_>>());
    // Not in the order of the files.
    let order = [3, 0, 2, 1];
    let options = SampleOptions { decoder: decoder.clone(), ..options(&order) };
    let source = open(&fixture.root.join(dataset));
    let mut samples = source.samples(&options, &keys).unwrap();
    for episode in order {
        let length = LENGTHS[episode as usize];
        let state = fixture.numbers(dataset, episode, "observation.state", 7);
        let gripper = fixture.numbers(dataset, episode, "observation.gripper", 1);
        let action = fixture.numbers(dataset, episode, "action", 7);
        let time = fixture.numbers(dataset, episode, "timestamp", 1);
        let tasks = String::from_utf8(fixture.expected(dataset, episode, "task_index")).unwrap();
        let tasks: Vec<_> = tasks.lines().collect();
        let pictures: Vec<_> =
            cameras.iter().map(|(camera, ..)| fixture.expected(dataset, episode, camera)).collect();
        for row in 0..length as usize {
            let sample = samples.next().unwrap().unwrap_or_else(|error| panic!("{error}"));
            assert_eq!((sample.episode, sample.step), (format!("episode {episode}"), row as u64));
            assert_eq!(sample.stamp.0, (f64::from(time[[row, 0]]) * 1e9).round() as i64);
            assert_eq!(sample.observation.instruction, tasks[row]);
            for (key, columns, values) in
                [("arm", 0..5, &state), ("hand", 5..7, &state), ("gripper", 0..1, &gripper)]
            {
                let expected = values.slice(ndarray::s![row..row + 1, columns]);
                assert_eq!(sample.observation.state[key], expected, "{key}");
            }
            let end = (row + 4).min(length as usize);
            assert_eq!(sample.truth.steps(), end - row);
            for ((key, rows), (name, columns)) in
                sample.truth.groups.iter().zip([("hand", 5..7), ("arm", 0..5)])
            {
                assert_eq!(key, name);
                assert_eq!(rows, action.slice(ndarray::s![row..end, columns]));
            }
            for ((camera, width, height), expected) in cameras.iter().zip(&pictures) {
                let [frame] = sample.observation.video[*camera].as_slice() else { panic!("{camera}") };
                assert_eq!(frame.dimensions(), (*width, *height));
                let size = (width * height * 3) as usize;
                assert!(frame.as_raw()[..] == expected[row * size..(row + 1) * size], "{camera}, row {row}");
            }
        }
    }
    assert!(samples.next().is_none());
}

#[test]
fn every_row_and_frame_of_version_2_is_that_of_pyarrow_and_pyav() {
    check_every_row("v21", &fixture().decoder);
}

#[test]
fn every_row_and_frame_of_version_3_is_that_of_pyarrow_and_pyav() {
    check_every_row("v30", &fixture().decoder);
}

#[test]
#[cfg(feature = "video")]
fn the_program_decodes_as_the_libraries_do() {
    check_every_row("v30", &fixture().program());
}

#[test]
fn history_is_clamped_at_the_start_and_truth_ends_with_the_episode() {
    let fixture = fixture();
    for (stride, steps) in [(1, None), (3, None), (7, Some(20)), (40, None)] {
        let keys = DatasetKeys {
            video_deltas: vec![-10, -3, 0, 2],
            state_deltas: vec![-2, 0],
            action_deltas: vec![-1, 0, 5],
            ..keys(&["h264", "stored"])
        };
        let options = SampleOptions { stride, steps_per_episode: steps, ..options(&[1]) };
        let state = fixture.numbers("v30", 1, "observation.state", 7);
        let action = fixture.numbers("v30", 1, "action", 7);
        let clamp = |row: i64| row.clamp(0, 30) as usize;
        let mut visited = 0;
        for sample in open(&fixture.root.join("v30")).samples(&options, &keys).unwrap() {
            let sample = sample.unwrap_or_else(|error| panic!("{error}"));
            let now = sample.step as i64;
            assert_eq!(sample.step, visited * stride);
            visited += 1;
            for (camera, size) in [("h264", 64 * 48 * 3), ("stored", 32 * 24 * 3)] {
                let expected = fixture.expected("v30", 1, camera);
                assert_eq!(sample.observation.video[camera].len(), 4);
                for (frame, delta) in sample.observation.video[camera].iter().zip([-10, -3, 0, 2]) {
                    let row = clamp(now + delta);
                    assert!(
                        frame.as_raw()[..] == expected[row * size..(row + 1) * size],
                        "{camera} {now} {delta}"
                    );
                }
            }
            let rows = [clamp(now - 2), clamp(now)].map(|row| state.slice(ndarray::s![row, 0..5]));
            assert_eq!(sample.observation.state["arm"], ndarray::stack(ndarray::Axis(0), &rows).unwrap());
            let future: Vec<_> = [now - 1, now, now + 5].into_iter().take_while(|row| *row < 31).collect();
            let rows: Vec<_> =
                future.iter().map(|row| action.slice(ndarray::s![clamp(*row), 0..5])).collect();
            assert_eq!(sample.truth.groups[1].1, ndarray::stack(ndarray::Axis(0), &rows).unwrap());
        }
        assert_eq!(visited, steps.unwrap_or(31u64).div_ceil(stride));
    }
}

#[test]
fn an_annotation_column_gives_the_instruction() {
    let keys = DatasetKeys {
        language: Some("annotation.human.action.task_description".to_owned()),
        ..keys(&["stored"])
    };
    let expected =
        String::from_utf8(fixture().expected("v21", 3, "annotation.human.action.task_description")).unwrap();
    let samples = samples(&fixture().root.join("v21"), &options(&[3]), &keys).unwrap();
    let texts: Vec<_> = samples.iter().map(|sample| sample.observation.instruction.as_str()).collect();
    assert_eq!(texts, expected.lines().collect::<Vec<_>>());
}

#[test]
fn without_modality_json_whole_columns_are_read_or_an_example_is_given() {
    let copy = fixture().copy("v21");
    fs::remove_file(copy.path().join("meta/modality.json")).unwrap();
    let error = samples(copy.path(), &options(&[]), &keys(&["stored"])).unwrap_err().to_string();
    for part in ["hand (2), arm (5)", "observation.state (7)", "observation.images.h264", "\"start\": 2"] {
        assert!(error.contains(part), "{error}");
    }
    // The example is the file that this checkpoint needs, as far as the keys lie in the usual columns.
    let usual = DatasetKeys { state: widths(&[("hand", 2), ("arm", 5)]), ..keys(&["stored"]) };
    let error = samples(copy.path(), &options(&[]), &usual).unwrap_err().to_string();
    let example = &error[error.find("\n{").unwrap()..];
    fs::write(copy.path().join("meta/modality.json"), example).unwrap();
    assert_eq!(samples(copy.path(), &options(&[2]), &usual).unwrap().len(), 1);
    fs::remove_file(copy.path().join("meta/modality.json")).unwrap();

    let whole =
        DatasetKeys { state: widths(&[("all", 7)]), action: widths(&[("all", 7)]), ..keys(&["stored"]) };
    let samples = samples(copy.path(), &options(&[1]), &whole).unwrap();
    let state = fixture().numbers("v21", 1, "observation.state", 7);
    assert_eq!(samples[4].observation.state["all"], state.slice(ndarray::s![4..5, ..]));
}

#[test]
fn a_dataset_that_does_not_fit_the_checkpoint_says_what_it_has() {
    let root = fixture().root.join("v21");
    let refused = |keys: &DatasetKeys, episodes: &[u64]| {
        samples(&root, &options(episodes), keys).unwrap_err().to_string()
    };
    let usual = || keys(&["stored"]);
    for (keys, parts) in [
        (DatasetKeys { cameras: names(&["rear"]), ..usual() }, ["\"rear\"", "bt601, bt709"]),
        (DatasetKeys { state: widths(&[("leg", 2)]), ..usual() }, ["\"leg\"", "arm, gripper, hand"]),
        (
            DatasetKeys { action: widths(&[("arm", 6)]), ..usual() },
            ["expected 6 value(s)", "start 0 and end 5"],
        ),
        (
            DatasetKeys { language: Some("annotation.mood".into()), ..usual() },
            ["annotation.mood", "human.task"],
        ),
    ] {
        let message = refused(&keys, &[]);
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    }
    let copy = fixture().copy("v21");
    fs::write(copy.path().join("meta/episodes.jsonl"), "\n").unwrap();
    let none = samples(copy.path(), &options(&[]), &usual()).unwrap_err().to_string();
    assert!(none.contains("at least one episode"), "{none}");
    let message = refused(&usual(), &[0, 4]);
    assert!(message.contains("4 episodes, 0 to 3") && message.contains("found 4"), "{message}");
}

#[test]
fn broken_descriptions_are_named() {
    for (file, from, to, parts) in [
        ("meta/info.json", "\"v2.1\"", "\"v1.6\"", ["\"v1.6\"", "v2.1 or v3.0"]),
        ("meta/info.json", "\"fps\": 10", "\"fps\": 0", ["fps", "found 0"]),
        ("meta/info.json", "chunk-{episode_chunk", "chunk-{chunk", ["data_path", "{chunk}"]),
        ("meta/info.json", "\"data/chunk", "\"../chunk", ["data_path", "out of the dataset"]),
        ("meta/episodes.jsonl", "\"length\": 31", "\"length\": -1", ["line 2, length", "-1"]),
        ("meta/episodes.jsonl", "\"length\": 31", "\"length\": 0", ["episode 1", "at least one row"]),
        ("meta/tasks.jsonl", "\"task_index\": 1", "\"task_index\": 9", ["tasks.jsonl", "the task 1"]),
        ("meta/modality.json", "\"end\": 5", "\"end\": 900", ["state.arm", "end 900"]),
        ("meta/modality.json", "\"start\": 0", "\"start\": \"0\"", ["state.arm.start", "string"]),
        ("meta/modality.json", "images.stored", "images.gone", ["video.stored", "observation.images.gone"]),
    ] {
        let message = message("v21", "stored", |root| edit(root.join(file), from, to));
        assert!(parts.iter().all(|part| message.contains(part)), "{file}: {message}");
    }
    for file in ["meta/info.json", "meta/episodes.jsonl", "meta/tasks.jsonl"] {
        let message = message("v21", "stored", |root| fs::remove_file(root.join(file)).unwrap());
        assert!(message.contains(file) && message.contains("cannot be read"), "{message}");
    }
    let message = message("v30", "stored", |root| fs::remove_dir_all(root.join("meta/episodes")).unwrap());
    assert!(message.contains("meta/episodes"), "{message}");
}

#[test]
fn git_lfs_pointers_name_the_command_that_fetches_the_files() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 132\n";
    for file in [
        "data/chunk-000/episode_000001.parquet",
        "videos/chunk-000/observation.images.h264/episode_000001.mp4",
    ] {
        let message = message("v21", "h264", |root| fs::write(root.join(file), pointer).unwrap());
        assert!(message.contains(file) && message.contains("git lfs pull"), "{message}");
    }
}

#[test]
fn missing_rows_columns_and_cut_off_tables_are_named() {
    let table = "data/chunk-000/episode_000001.parquet";
    let cut = message("v21", "stored", |root| truncate(root.join(table), 0.7));
    assert!(cut.contains(table) && cut.contains("cut off"), "{cut}");
    let absent = message("v21", "stored", |root| {
        edit(root.join("meta/info.json"), "\"observation.gripper\"", "\"grip\"");
        edit(root.join("meta/modality.json"), "observation.gripper", "grip");
    });
    assert!(absent.contains("\"grip\"") && absent.contains("observation.gripper, timestamp"), "{absent}");
    let wide = message("v21", "stored", |root| {
        edit(root.join("meta/info.json"), "7\n", "8\n");
    });
    assert!(wide.contains("row 0 of episode 1, column observation.state: expected 8 value(s)"), "{wide}");
    // The list of version 3 says which rows are an episode's; a file of another dataset does not fit it.
    let other = message("v30", "stored", |root| {
        fs::copy(root.join("data/chunk-000/file-001.parquet"), root.join("data/chunk-000/file-000.parquet"))
            .unwrap();
    });
    assert!(other.contains("file-000.parquet") && other.contains("at least 54 rows, found 17"), "{other}");
}

#[test]
fn a_fault_in_a_row_is_named_with_its_place() {
    for (fault, parts) in [
        ("nan", ["row 5, column observation.state, value 2", "found NaN"]),
        ("infinite", ["row 5, column observation.state, value 2", "found inf"]),
        ("null", ["row 5, column observation.state, value 2", "found NaN"]),
        ("absent", ["row 4 of episode 1, column action", "7 value(s), as in meta/info.json, found 0"]),
        ("short", ["row 4 of episode 1, column action", "7 value(s), as in meta/info.json, found 6"]),
        ("nested", ["column action", "expected a number or a list of numbers"]),
        ("text", ["column action", "expected a number or a list of numbers"]),
        ("task", ["row 0 of episode 1", "[-1.0]"]),
        ("gif", ["row 0, column observation.images.stored", "6 bytes of another format"]),
        ("outside", ["row 0, column observation.images.stored", "only pictures stored in the table itself"]),
        ("empty", ["episode 1", "at least one row"]),
    ] {
        let message = message("v21", "stored", |root| {
            let broken = fixture().root.join(format!("broken/{fault}.parquet"));
            fs::copy(broken, root.join("data/chunk-000/episode_000001.parquet")).unwrap();
        });
        let parts = [parts[0], parts[1], "episode_000001.parquet"];
        assert!(parts.iter().all(|part| message.contains(part)), "{fault}: {message}");
    }
}

#[test]
fn cut_off_and_foreign_videos_are_named() {
    let video = "videos/chunk-000/observation.images.h264/episode_000001.mp4";
    let cut = message("v21", "h264", |root| truncate(root.join(video), 0.5));
    assert!(cut.contains(video), "{cut}");
    // A whole video of an episode with fewer rows.
    let short = message("v21", "h264", |root| {
        fs::copy(root.join(video.replace("01.mp4", "00.mp4")), root.join(video)).unwrap();
    });
    assert!(
        short.contains("at 2.300000 s for row 23") && short.contains("last frame is at 2.200000 s"),
        "{short}"
    );
    let none = message("v21", "h264", |root| fs::write(root.join(video), "no video").unwrap());
    assert!(none.contains(video), "{none}");
    let absent = message("v21", "h264", |root| fs::remove_file(root.join(video)).unwrap());
    assert!(absent.contains(video) && absent.contains("cannot be read"), "{absent}");
}

#[test]
fn without_ffmpeg_the_message_says_what_to_install() {
    let options = SampleOptions { decoder: VideoDecoder::Program("no-such-ffmpeg".into()), ..options(&[0]) };
    let error = samples(&fixture().root.join("v21"), &options, &keys(&["h264"])).unwrap_err().to_string();
    for part in ["no-such-ffmpeg", "apt-get install ffmpeg", "GROOT_FFMPEG", "--features video"] {
        assert!(error.contains(part), "{error}");
    }
    // Stored pictures need none.
    assert_eq!(samples(&fixture().root.join("v21"), &options, &keys(&["stored"])).unwrap().len(), 23);
}

#[test]
fn the_synthetic_robot_is_read_back_by_pyarrow_and_by_this_crate() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let robot = SyntheticOptions { size: (40, 30), ..SyntheticOptions::default() };
    let written = WriteOptions { episodes: 2, seconds: 2.0, fps: 20, instruction: "wave".to_owned() };
    let (root, read) = (folder.path().join("dataset"), folder.path().join("read"));
    write_dataset(&root, &robot, &written)?;
    python(&[Path::new("read"), &root, &read]);
    let motion = SyntheticRobot::new(&robot);
    let joints = |row: usize| motion.joints(row as f64 / 20.0).iter().map(|v| *v as f32).collect::<Vec<_>>();
    let keys = DatasetKeys {
        cameras: names(&["front", "wrist"]),
        video_deltas: vec![0],
        state: widths(&[("left_arm", 6), ("base", 2)]),
        state_deltas: vec![0],
        action: widths(&[("gripper", 2)]),
        action_deltas: (0..8).collect(),
        language: Some("annotation.human.action.task_description".to_owned()),
    };
    let samples = samples(&root, &SampleOptions::default(), &keys)?;
    assert_eq!(samples.len(), 80);
    for (row, sample) in samples.iter().enumerate() {
        let (episode, start) = (row / 40, row % 40);
        assert_eq!(sample.observation.instruction, "wave");
        assert_eq!(sample.stamp.0, (f64::from(start as f32 / 20.0) * 1e9).round() as i64);
        assert_eq!(sample.observation.state["left_arm"].as_slice().unwrap(), &joints(row)[..6]);
        assert_eq!(sample.truth.steps(), 8.min(40 - start));
        for (step, action) in sample.truth.groups[0].1.rows().into_iter().enumerate() {
            assert_eq!(action.to_vec(), joints(row + step + 1)[12..14]);
        }
        for camera in ["front", "wrist"] {
            let frame = motion.frame(camera, row as f64 / 20.0).unwrap();
            assert_eq!(sample.observation.video[camera], std::slice::from_ref(&frame));
            let file = fs::read(read.join(format!("episode_{episode}.observation.images.{camera}")))?;
            let size = 40 * 30 * 3;
            assert!(file[start * size..(start + 1) * size] == frame.as_raw()[..]);
        }
        let action = numbers(&fs::read(read.join(format!("episode_{episode}.action")))?, 16);
        assert_eq!(action.row(start).to_vec(), joints(row + 1));
    }
    Ok(())
}

fn flip(root: &Path, file: &str, flips: &[(prop::sample::Index, u8)]) {
    let path = root.join(file);
    let mut bytes = fs::read(&path).unwrap();
    for (place, mask) in flips {
        let place = place.index(bytes.len());
        bytes[place] ^= mask;
    }
    fs::write(path, bytes).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is damaged: samples or an error, and never more samples than rows.
    #[test]
    fn damaged_tables_and_descriptions_end_in_an_error_or_in_samples(
        file in 0usize..6,
        flips in prop::collection::vec((any::<prop::sample::Index>(), 1u8..), 1..4),
    ) {
        let (dataset, file) = [
            ("v21", "data/chunk-000/episode_000001.parquet"),
            ("v21", "meta/modality.json"),
            ("v30", "data/chunk-000/file-000.parquet"),
            ("v30", "meta/episodes/chunk-000/file-000.parquet"),
            ("v30", "meta/tasks.parquet"),
            ("v30", "meta/info.json"),
        ][file];
        static COPIES: OnceLock<[tempfile::TempDir; 2]> = OnceLock::new();
        let copies = COPIES.get_or_init(|| ["v21", "v30"].map(|dataset| fixture().copy(dataset)));
        let root = copies[usize::from(dataset == "v30")].path();
        flip(root, file, &flips);
        let result = LeRobotDataset::open(root).and_then(|source| {
            Ok(source.samples(&options(&[1]), &keys(&["stored"]))?.filter(|sample| sample.is_ok()).count())
        });
        flip(root, file, &flips);
        if let Ok(count) = result {
            prop_assert!(count <= 31 || file.starts_with("meta"), "{count}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_videos_end_in_an_error_or_in_frames(
        flips in prop::collection::vec((any::<prop::sample::Index>(), 1u8..), 1..4),
    ) {
        static COPY: OnceLock<tempfile::TempDir> = OnceLock::new();
        let root = COPY.get_or_init(|| fixture().copy("v21")).path();
        let file = "videos/chunk-000/observation.images.h264/episode_000001.mp4";
        flip(root, file, &flips);
        let result = samples(root, &options(&[1]), &keys(&["h264"]));
        flip(root, file, &flips);
        if let Ok(samples) = result {
            prop_assert_eq!(samples.len(), 31);
        }
    }
}

#[test]
fn timestamps_of_the_fixture_are_in_its_rate() {
    let time = fixture().numbers("v21", 0, "timestamp", 1);
    assert!(time.iter().enumerate().all(|(row, time)| (f64::from(*time) - row as f64 / FPS).abs() < 1e-6));
}
