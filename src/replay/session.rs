//! One run of the command: what the loop reports becomes a [`Run`], and the run becomes tables, files and a page.

use std::{fs, path::Path};

use anyhow::Context;
use serde_json::json;

use super::{
    command::{Command, Prepared},
    mode::Mode,
    predictions::PredictionWriter,
    runner::{self, Observer, ReplayError, ReplayOptions},
    source::SampleStream,
};
use crate::{
    evaluation::{
        CheckpointIdentity, Comparison, Interrupt, Journal, Machine, ModeIdentity, Options, Partial,
        Progress, Run, RunBuilder, Source, TrajectoryResult, report,
    },
    model::policy::{LoadPolicy, Policy, Prediction},
    node::arguments::RosArguments,
    recording::Sample,
    ros::transport::NodeName,
};

/// How the command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Everything was measured and no condition of `--fail-if` holds.
    Passed,
    /// A condition of `--fail-if` holds.
    Failed,
    /// Interrupted; what was measured until then was printed.
    Interrupted,
}

/// Carries the command out; policies come from `load`.
///
/// # Errors
/// Options, recordings, checkpoints and files that cannot be used.
pub fn run(
    command: &Command,
    arguments: &RosArguments,
    node: &NodeName,
    load: LoadPolicy,
    interrupt: Interrupt,
) -> anyhow::Result<Verdict> {
    if let [a, b] = command.compare.as_slice() {
        let runs = [Run::load(a)?, Run::load(b)?];
        let names = [a, b].map(|path| path.display().to_string());
        let comparison = Comparison::new([&names[0], &names[1]], &runs[0], &runs[1]);
        print!("{}", report::terminal::comparison(&comparison));
        return Ok(judge(command, &runs[1]));
    }
    let prepared = command.prepare(arguments, node)?;
    let mut session = Session::new(command, &prepared, node, interrupt)?;
    let outcome = runner::run(&prepared.recording, &prepared.replay, load, &mut session);
    let (run, failure) = session.finish(command, outcome)?;
    write(command, &run)?;
    if command.json {
        println!("{}", serde_json::to_string_pretty(&run)?);
    } else {
        print!("{}", report::terminal::summary(&run));
    }
    match failure {
        Some(error) => Err(error.into()),
        None if run.partial.is_some() => Ok(Verdict::Interrupted),
        None => Ok(judge(command, &run)),
    }
}

fn judge(command: &Command, run: &Run) -> Verdict {
    let violations = command.fail_if.as_ref().map(|gate| gate.violations(run)).unwrap_or_default();
    for violation in &violations {
        eprintln!("--fail-if: {violation}");
    }
    if violations.is_empty() { Verdict::Passed } else { Verdict::Failed }
}

/// Writes the files that were asked for and says where they are.
fn write(command: &Command, run: &Run) -> anyhow::Result<()> {
    let out = |name: &str| command.out.as_ref().map(|folder| folder.join(name));
    if let Some(folder) = &command.out {
        fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    }
    let said = |path: &Path| eprintln!("wrote {}", path.display());
    for path in [command.save_run.clone(), out("run.json")].into_iter().flatten() {
        run.save(&path)?;
        said(&path);
    }
    for path in [command.html.clone(), out("report.html")].into_iter().flatten() {
        fs::write(&path, report::page(run)).with_context(|| format!("cannot write {}", path.display()))?;
        said(&path);
    }
    for folder in [command.csv.clone(), command.out.clone()].into_iter().flatten() {
        report::csv::write(run, &folder)?.iter().for_each(|path| said(path));
    }
    Ok(())
}

/// Gathers what the loop reports.
struct Session {
    reference: Mode,
    head: Run,
    identities: Vec<ModeIdentity>,
    results: Vec<TrajectoryResult>,
    journal: Option<Journal>,
    predictions: Option<PredictionWriter>,
    interrupt: Interrupt,
    progress: Progress,
    /// Observations expected per pass over a trajectory, and done in passes that ended.
    expected: Vec<(String, u64)>,
    done: u64,
    trajectories: u64,
}

impl Session {
    fn new(
        command: &Command,
        prepared: &Prepared,
        node: &NodeName,
        interrupt: Interrupt,
    ) -> anyhow::Result<Self> {
        let Prepared { recording, replay, .. } = prepared;
        let source = recording.describe();
        let head = head(command, replay, source);
        let identities: Vec<_> = replay.modes.iter().map(|mode| mode.identity()).collect();
        let names = recording.trajectories();
        let expected: Vec<(String, u64)> = names
            .iter()
            .enumerate()
            .map(|(index, name)| {
                let most = replay.steps_per_trajectory.unwrap_or(u64::MAX);
                (name.clone(), recording.expected(index).min(most))
            })
            .collect();
        let describes = json!({
            "checkpoint": head.checkpoint, "source": head.source, "options": head.options,
            "modes": replay.modes.iter().map(|mode| mode.name()).collect::<Vec<_>>(),
        });
        let (journal, results) = match &command.resume {
            Some(path) => {
                let (journal, results) = Journal::open(path, &describes)?;
                (Some(journal), results)
            }
            None => (None, Vec::new()),
        };
        let predictions = command.write_bag.as_ref().map(|target| {
            let names = prepared.prediction_names(node)?;
            Ok::<_, anyhow::Error>(PredictionWriter::create(target, names, &replay.groups, replay.step_time)?)
        });
        let per_mode: u64 = expected.iter().map(|(_, observations)| observations).sum();
        let total = per_mode.saturating_mul(replay.modes.len() as u64);
        let session = Self {
            reference: replay.modes.first().copied().unwrap_or(Mode::Auto),
            head,
            identities,
            results,
            journal,
            predictions: predictions.transpose()?,
            interrupt,
            progress: Progress::new("observations", total, 0),
            expected,
            done: 0,
            trajectories: names.len() as u64,
        };
        if !session.results.is_empty() {
            session.progress.say(&format!("going on after {} results of the journal", session.results.len()));
        }
        Ok(session)
    }

    fn expected(&self, trajectory: &str) -> u64 {
        self.expected.iter().find(|(name, _)| name == trajectory).map_or(0, |(_, observations)| *observations)
    }

    /// The run as far as it came, and what ended it early.
    fn finish(
        mut self,
        command: &Command,
        outcome: Result<bool, ReplayError>,
    ) -> anyhow::Result<(Run, Option<ReplayError>)> {
        self.progress.finish();
        if let Some(writer) = self.predictions.take() {
            writer.finish()?;
            if let Some(path) = &command.write_bag {
                eprintln!("wrote {}", path.display());
            }
        }
        let mut builder = RunBuilder::new(self.head, self.identities);
        for result in self.results {
            builder.add(result)?;
        }
        let done = builder.trajectories() as u64;
        let early = |reason: String| Some(Partial { reason, done, planned: Some(self.trajectories) });
        let (partial, failure) = match outcome {
            Ok(true) => (None, None),
            Ok(false) => (early("interrupted".to_owned()), None),
            Err(error) => (early(error.to_string()), Some(error)),
        };
        Ok((builder.finish(partial), failure))
    }
}

fn head(command: &Command, replay: &ReplayOptions, source: Source) -> Run {
    let checkpoint = &replay.policy.checkpoint;
    let named = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let device = if replay.policy.device.is_empty() { "auto" } else { &replay.policy.device };
    Run {
        title: command.title.clone().unwrap_or_default(),
        machine: Machine::of_this_system(),
        checkpoint: CheckpointIdentity {
            name: checkpoint.canonicalize().ok().as_deref().and_then(named).unwrap_or_default(),
            path: checkpoint.display().to_string(),
            embodiment: replay.policy.embodiment.clone(),
            ..CheckpointIdentity::default()
        },
        source,
        options: Options {
            horizon: replay.horizon as u64,
            stride: command.recording.stride.map_or(0, |stride| stride.get().into()),
            steps_per_trajectory: replay.steps_per_trajectory,
            component_steps_per_trajectory: Some(replay.component_steps_per_trajectory),
            trajectories: command.recording.trajectories.map(|most| most as u64),
            warm_up: replay.warm_up.into(),
            iterations: replay.iterations.into(),
            noise_seed: Some(replay.noise_seed),
            denoising_steps: replay.policy.denoising_steps.unwrap_or_default() as u64,
            step_time_s: Some(replay.step_time.as_secs_f64()),
            other: [("device".to_owned(), device.to_owned()), ("truth".to_owned(), command.truth.clone())]
                .into(),
        },
        reference: replay.modes.first().map(|mode| mode.name().to_owned()).unwrap_or_default(),
        ..Run::default()
    }
}

fn entry(mode: &str, trajectory: &str) -> String {
    format!("{mode}: {trajectory}")
}

impl Observer for Session {
    fn loaded(&mut self, mode: Mode, policy: &Policy) {
        let (backbone, dit) = policy.identities();
        if let Some(identity) = self.identities.iter_mut().find(|identity| identity.name == mode.name()) {
            (identity.backbone, identity.dit) = (backbone, dit);
        }
        self.head.options.denoising_steps = policy.denoising_steps() as u64;
    }

    fn replayed(&mut self, _mode: Mode, _trajectory: &str, observations: u64) {
        self.progress.set(self.done + observations);
    }

    fn measured(&mut self, result: TrajectoryResult, whole: bool) -> anyhow::Result<()> {
        if whole && let Some(journal) = &mut self.journal {
            for measurement in &result.measurements {
                journal.append(&entry(&measurement.mode, &result.name), &result)?;
            }
        }
        self.results.push(result);
        Ok(())
    }

    fn read(&mut self, trajectory: &str, stream: &dyn SampleStream, mode: Mode) {
        if mode == self.reference {
            stream.account(&mut self.head.source);
        }
        self.done += self.expected(trajectory);
    }

    fn predicted(&mut self, mode: Mode, sample: &Sample, prediction: &Prediction) -> Result<(), ReplayError> {
        if mode == self.reference {
            self.head.source.samples += 1;
            if let Some(writer) = &mut self.predictions {
                writer.write(sample, prediction)?;
            }
        }
        Ok(())
    }

    fn is_done(&self, mode: Mode, trajectory: &str) -> bool {
        self.journal.as_ref().is_some_and(|journal| journal.has(&entry(mode.name(), trajectory)))
    }

    fn stop(&self) -> bool {
        self.interrupt.is_asked()
    }
}
