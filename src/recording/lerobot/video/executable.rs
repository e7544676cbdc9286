//! The installed `ffmpeg` program, read through a pipe.
//!
//! Frames come over its standard output as plain RGB; their times and sizes over its standard error, as lines of the
//! `showinfo` filter.

use std::{
    collections::{BTreeMap, VecDeque},
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, ChildStderr, ChildStdout, Command, Stdio},
    sync::{
        Mutex, PoisonError,
        mpsc::{Receiver, Sender, channel},
    },
    thread::JoinHandle,
};

use image::RgbImage;

use super::{FrameSource, TimedFrame, frame_bytes};
use crate::recording::lerobot::error::LeRobotError;

/// Lines of messages that are kept for an error.
const MAX_MESSAGES: usize = 4;
/// What the lines about frames begin with.
const FRAME_LOG: &str = "[Parsed_showinfo_";
/// Bytes of a line that are looked at.
const MAX_LINE: u64 = 4096;

/// A frame by its line in the log.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Announced {
    seconds: f64,
    width: u32,
    height: u32,
}

/// One run of the program.
pub(super) struct Executable {
    path: PathBuf,
    process: Child,
    pixels: ChildStdout,
    /// Frames in their order; a line that announces one but is not understood comes as text.
    announced: Receiver<Result<Announced, String>>,
    /// Reads the log; gives its last messages at the end.
    log: Option<JoinHandle<Vec<String>>>,
}

impl Executable {
    /// Starts decoding at the last key frame at or before `start` seconds.
    pub(super) fn open(path: &Path, start: f64, program: &Path) -> Result<Self, LeRobotError> {
        let absent =
            |source| LeRobotError::NoDecoder { video: path.to_owned(), tried: program.to_owned(), source };
        let mut command = Command::new(program);
        // Colours would stand before the names that lines are known by.
        command.env("AV_LOG_FORCE_NOCOLOR", "1").env_remove("AV_LOG_FORCE_COLOR");
        command.args(["-hide_banner", "-nostdin", "-nostats", "-loglevel", "repeat+level+info", "-xerror"]);
        // Times are those of the file, and pictures are not turned.
        command.args(["-copyts", "-noautorotate"]);
        if start > 0.0 {
            command.args(["-noaccurate_seek", "-ss", &format!("{start:.6}")]);
        }
        // A path that begins with a dash or a word and a colon must not be read as an option or a protocol.
        command.arg("-i").arg({
            let mut url = std::ffi::OsString::from("file:");
            url.push(path);
            url
        });
        command.args(["-map", "0:v:0", "-an", "-sn", "-dn"]);
        command.args(["-vf", "scale=flags=bilinear,format=rgb24,showinfo=checksum=0"]);
        // Every frame once, whatever the rate. The older name ended with FFmpeg 7.
        let passthrough = if is_old(program).map_err(absent)? { "-vsync" } else { "-fps_mode" };
        command.args([passthrough, "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = command.spawn().map_err(absent)?;
        let (Some(pixels), Some(log)) = (process.stdout.take(), process.stderr.take()) else {
            return Err(absent(std::io::ErrorKind::BrokenPipe.into()));
        };
        let (sender, announced) = channel();
        let log = std::thread::spawn(move || read_log(log, &sender));
        Ok(Self { path: path.to_owned(), process, pixels, announced, log: Some(log) })
    }

    /// The end of the run: an error unless the program is content.
    fn finish(&mut self) -> Result<(), LeRobotError> {
        let messages = self.log.take().and_then(|log| log.join().ok()).unwrap_or_default();
        let status = self.process.wait();
        match status {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => {
                let messages = messages.join("; ");
                let message = format!("FFmpeg gave up ({status}): {messages}");
                Err(LeRobotError::Video { path: self.path.clone(), message })
            }
            Err(error) => Err(LeRobotError::Video {
                path: self.path.clone(),
                message: format!("FFmpeg was lost: {error}"),
            }),
        }
    }
}

impl FrameSource for Executable {
    fn next_frame(&mut self) -> Result<Option<TimedFrame>, LeRobotError> {
        // The log's reader hangs up at the end of the log.
        let Ok(announced) = self.announced.recv() else {
            self.finish()?;
            return Ok(None);
        };
        let Announced { seconds, width, height } = announced.map_err(|line| LeRobotError::Video {
            path: self.path.clone(),
            message: format!("this version of FFmpeg describes frames in an unknown way: {line:?}"),
        })?;
        let mut bytes = vec![0; frame_bytes(&self.path, width, height)?];
        if let Err(error) = self.pixels.read_exact(&mut bytes) {
            // A frame that was announced but not written: the run failed in between.
            self.finish()?;
            let message = format!("FFmpeg ended within a frame: {error}");
            return Err(LeRobotError::Video { path: self.path.clone(), message });
        }
        // The buffer has exactly the bytes of the size.
        Ok(RgbImage::from_raw(width, height, bytes).map(|image| TimedFrame { seconds, image }))
    }
}

impl Drop for Executable {
    fn drop(&mut self) {
        // Nobody reads on: the program need not decode the rest. Both fail only where it has ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
        if let Some(log) = self.log.take() {
            let _ = log.join();
        }
    }
}

/// Whether the program is older than version 6. It is asked once.
fn is_old(program: &Path) -> std::io::Result<bool> {
    static KNOWN: Mutex<BTreeMap<PathBuf, bool>> = Mutex::new(BTreeMap::new());
    // The map is whole at every moment, whoever panicked.
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(old) = known.get(program) {
        return Ok(*old);
    }
    let version = Command::new(program).arg("-version").stdin(Stdio::null()).output()?;
    let old = is_before_6(&version.stdout);
    known.insert(program.to_owned(), old);
    Ok(old)
}

/// Whether the text of `ffmpeg -version` names a version before 6; builds from a repository name none and are newer.
fn is_before_6(version: &[u8]) -> bool {
    let text = String::from_utf8_lossy(version);
    let number = text.strip_prefix("ffmpeg version ").and_then(|rest| rest.split(['.', '-', ' ']).next());
    number
        .and_then(|number| number.trim_start_matches('n').parse::<u32>().ok())
        .is_some_and(|major| major < 6)
}

/// Passes on the frames that the log announces; gives its last error messages.
fn read_log(log: ChildStderr, frames: &Sender<Result<Announced, String>>) -> Vec<String> {
    let mut log = BufReader::new(log);
    let mut messages = VecDeque::new();
    let mut time_base = None;
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut log).take(MAX_LINE).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return messages.into(),
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(&line);
        if let Some(base) = parse_time_base(&text) {
            time_base = Some(base);
        } else if is_frame(&text) {
            let frame = time_base.and_then(|base| parse_frame(&text, base));
            // Without a receiver the program is about to be killed.
            let _ = frames.send(frame.ok_or_else(|| text.trim().to_owned()));
        } else if text.contains("[error]") || text.contains("[fatal]") || text.contains("[panic]") {
            if messages.len() == MAX_MESSAGES {
                messages.pop_front();
            }
            messages.push_back(text.trim().to_owned());
        }
    }
}

/// The unit of the times: numerator and denominator of seconds.
fn parse_time_base(line: &str) -> Option<(f64, f64)> {
    let base = line.strip_prefix(FRAME_LOG)?.split_once("config in time_base: ")?.1;
    let (numerator, rest) = base.split_once('/')?;
    let denominator = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    let base = (numerator.trim().parse().ok()?, denominator.parse().ok()?);
    (base.0 > 0.0 && base.1 > 0.0).then_some(base)
}

/// Whether a line announces a frame. Texts inside a file are printed further to the right.
fn is_frame(line: &str) -> bool {
    line.starts_with(FRAME_LOG) && line.contains(" n:") && line.contains(" pts:")
}

fn parse_frame(line: &str, (numerator, denominator): (f64, f64)) -> Option<Announced> {
    let time = line.split_once(" pts:")?.1.split_whitespace().next()?;
    let (width, height) = line
        .split_whitespace()
        .find_map(|word| word.strip_prefix("s:").and_then(|size| size.split_once('x')))?;
    // A frame without a time has no place in the order; not a number makes every comparison fail.
    let seconds = time.parse::<i64>().map_or(f64::NAN, |time| time as f64 * numerator / denominator);
    Some(Announced { seconds, width: width.parse().ok()?, height: height.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_of_every_version_is_understood() {
        let base = parse_time_base(
            "[Parsed_showinfo_2 @ 0x55d0] [info] config in time_base: 1/15360, frame_rate: 30/1\n",
        );
        assert_eq!(base, Some((1.0, 15360.0)));
        let frame = Announced { seconds: 0.1, width: 64, height: 48 };
        for line in [
            "[Parsed_showinfo_2 @ 0x55d0] [info] n:   3 pts:   1536 pts_time:0.1     pos:     3046 fmt:rgb24 sar:0/1 \
             s:64x48 i:P iskey:0 type:B ",
            "[Parsed_showinfo_2 @ 0x55d0] [info] n:   3 pts:   1536 pts_time:0.1     duration:    512 \
             duration_time:0.0333333 fmt:rgb24 cl:left sar:0/1 s:64x48 i:P iskey:0 type:B ",
        ] {
            assert!(is_frame(line));
            assert_eq!(parse_frame(line, (1.0, 15360.0)), Some(frame));
        }
        // A title that a file gives itself.
        assert!(!is_frame("[info]   title : [Parsed_showinfo_2 @ 0x55d0] [info] n:   3 pts:   1536 s:64x48"));
    }

    #[test]
    fn the_version_tells_how_frames_are_passed_through() {
        for (text, before) in [
            ("ffmpeg version 4.4.2-0ubuntu0.22.04.1 Copyright", true),
            ("ffmpeg version 5.1.9-0+deb12u1 Copyright", true),
            ("ffmpeg version 7.0.2-static https://johnvansickle.com", false),
            ("ffmpeg version n9.0.2 Copyright", false),
            ("ffmpeg version N-109468-gd39b34123d Copyright", false),
            ("", false),
        ] {
            assert_eq!(is_before_6(text.as_bytes()), before, "{text}");
        }
    }
}
