//! Progress of long work with the time left.

use std::{
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

/// Plain lines come no more often than this.
const BETWEEN_LINES: Duration = Duration::from_secs(10);

/// A progress line on standard error: redrawn in place on a terminal, else a plain line every ten seconds.
#[derive(Debug)]
pub struct Progress {
    what: String,
    state: State,
    bar: Option<ProgressBar>,
    last_line: Option<Instant>,
}

impl Progress {
    /// For `total` pieces of work, `what` in the plural: `observations`. Of them `before` were done by an earlier run: they
    /// count as done and say nothing about the speed.
    pub fn new(what: impl Into<String>, total: u64, before: u64) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            // A fixed template of this file; were it wrong, the plain style does too.
            let style = ProgressStyle::with_template("{bar:30} {msg}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(total).with_style(style)
        });
        let mut progress = Self {
            what: what.into(),
            state: State { total, before, done: before, started: Instant::now() },
            bar,
            last_line: None,
        };
        progress.draw(Instant::now());
        progress
    }

    /// So many pieces of the whole are done, those of the earlier run among them.
    pub fn set(&mut self, done: u64) {
        self.state.done = done;
        self.draw(Instant::now());
    }

    /// One more piece is done.
    pub fn advance(&mut self) {
        self.set(self.state.done.saturating_add(1));
    }

    /// Prints a line above the progress.
    pub fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{line}")),
            None => eprintln!("{line}"),
        }
    }

    /// Takes the line away; what was measured follows on standard output.
    pub fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }

    fn draw(&mut self, now: Instant) {
        let line = self.state.line(&self.what, now);
        if let Some(bar) = &self.bar {
            bar.set_message(line);
            bar.set_position(self.state.done);
        } else if self.last_line.is_none_or(|last| now.duration_since(last) >= BETWEEN_LINES)
            || self.state.done == self.state.total
        {
            self.last_line = Some(now);
            // Progress that nobody can read is no reason to end the work.
            let _ = writeln!(io::stderr(), "{line}");
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct State {
    total: u64,
    before: u64,
    done: u64,
    started: Instant,
}

impl State {
    /// Time left, from the mean speed of this run so far; None before anything was done.
    fn left(self, now: Instant) -> Option<Duration> {
        let measured = self.done.checked_sub(self.before).filter(|&measured| measured > 0)?;
        let per_piece = now.duration_since(self.started).as_secs_f64() / measured as f64;
        Duration::try_from_secs_f64(per_piece * self.total.saturating_sub(self.done) as f64).ok()
    }

    fn line(self, what: &str, now: Instant) -> String {
        let percent = if self.total == 0 { 100.0 } else { 100.0 * self.done as f64 / self.total as f64 };
        let left = match self.left(now) {
            _ if self.done >= self.total => "done".to_owned(),
            Some(left) => format!("{} left", duration(left)),
            None => "time left not known yet".to_owned(),
        };
        format!("{} of {} {what} ({percent:.0} %), {left}", self.done, self.total)
    }
}

/// A duration in the two largest units that matter.
fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs_f64().round() as u64;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(total: u64, before: u64, done: u64, elapsed: u64) -> String {
        let started = Instant::now();
        State { total, before, done, started }.line("observations", started + Duration::from_secs(elapsed))
    }

    #[test]
    fn the_time_left_follows_from_the_speed_so_far() {
        assert_eq!(line(200, 0, 50, 30), "50 of 200 observations (25 %), 1 min 30 s left");
        assert_eq!(line(200, 0, 0, 30), "0 of 200 observations (0 %), time left not known yet");
        assert_eq!(line(200, 0, 200, 30), "200 of 200 observations (100 %), done");
    }

    #[test]
    fn what_an_earlier_run_did_says_nothing_about_the_speed() {
        assert_eq!(line(200, 100, 100, 10), "100 of 200 observations (50 %), time left not known yet");
        assert_eq!(line(200, 100, 110, 10), "110 of 200 observations (55 %), 1 min 30 s left");
    }

    #[test]
    fn durations_have_the_two_units_that_matter() {
        let shown = |seconds| duration(Duration::from_secs(seconds));
        assert_eq!([shown(7), shown(61), shown(7325)], ["7 s", "1 min 1 s", "2 h 2 min"]);
    }

    #[test]
    fn no_work_is_done_at_once() {
        assert_eq!(line(0, 0, 0, 1), "0 of 0 observations (100 %), done");
    }
}
