//! Runs `preprocess.py`, the reference's image chain with OpenCV and Pillow, and asks it for images and timings.

use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use image::RgbImage;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

pub const HOW_TO_INSTALL: &str =
    "run `make setup`, or name a Python that has NumPy, OpenCV and Pillow in GROOT_TEST_PYTHON";

pub struct Reference {
    /// Versions of what it runs on.
    pub versions: String,
    process: Child,
    answers: BufReader<ChildStdout>,
}

/// What `preprocess.py` measured.
#[allow(dead_code, reason = "the test does not measure")]
pub struct Timing {
    pub threads: usize,
    pub seconds: Vec<f64>,
}

impl Reference {
    /// Starts it on the Python that `GROOT_TEST_PYTHON` names, otherwise on the one that the set-up made.
    pub fn start() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let python = std::env::var_os("GROOT_TEST_PYTHON")
            .map_or_else(|| root.join(".venv/bin/python"), PathBuf::from);
        let mut process = Command::new(&python)
            .arg(root.join("tests/reference/preprocess.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| format!("{}: {e}; {HOW_TO_INSTALL}", python.display()))?;
        let mut answers = BufReader::new(process.stdout.take().ok_or("no output pipe")?);
        let mut versions = String::new();
        answers.read_line(&mut versions)?;
        if versions.is_empty() {
            return Err(format!("{} could not run preprocess.py; {HOW_TO_INSTALL}", python.display()).into());
        }
        Ok(Self { versions: versions.trim().to_owned(), process, answers })
    }

    fn ask(&mut self, request: &str, frame: &RgbImage) -> Result<Vec<String>> {
        let requests = self.process.stdin.as_mut().ok_or("no input pipe")?;
        writeln!(requests, "{request}")?;
        requests.write_all(frame.as_raw())?;
        requests.flush()?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        Ok(line.split_whitespace().map(str::to_owned).collect())
    }

    /// The images after each of the four steps.
    pub fn stages(&mut self, frame: &RgbImage, edge: u32, crop_fraction: f64) -> Result<[RgbImage; 4]> {
        let (width, height) = frame.dimensions();
        let sizes = self.ask(&format!("stages {width} {height} {edge} {crop_fraction}"), frame)?;
        let sizes = sizes.iter().map(|side| side.parse()).collect::<std::result::Result<Vec<u32>, _>>()?;
        let mut images = Vec::new();
        for size in sizes.chunks_exact(2) {
            let mut image = RgbImage::new(size[0], size[1]);
            self.answers.read_exact(&mut image)?;
            images.push(image);
        }
        images.try_into().map_err(|_| "preprocess.py did not answer with four images".into())
    }

    /// Seconds that each of `repeats` runs took with this many threads (0: OpenCV's default).
    #[allow(dead_code, reason = "the test does not measure")]
    pub fn time(
        &mut self,
        frame: &RgbImage,
        edge: u32,
        crop_fraction: f64,
        threads: usize,
        repeats: usize,
    ) -> Result<Timing> {
        let (width, height) = frame.dimensions();
        let request = format!("time {width} {height} {edge} {crop_fraction} {threads} {repeats}");
        let answer = self.ask(&request, frame)?;
        let (threads, seconds) = answer.split_first().ok_or("preprocess.py did not answer with timings")?;
        let seconds = seconds.iter().map(|s| s.parse()).collect::<std::result::Result<_, _>>()?;
        Ok(Timing { threads: threads.parse()?, seconds })
    }
}

impl Drop for Reference {
    fn drop(&mut self) {
        // The script ends with its input.
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}
