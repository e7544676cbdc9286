//! The stages of one shape as graphs.

use std::time::Duration;

use super::{
    super::{
        ModelError,
        cuda::{CapturedGraph, Event, Pinned, Pool, Stream},
        network::{StageTimes, refuse_non_finite},
        velocity::Retained,
    },
    Parts, Stage, TickInputs,
    buffers::{Prompt, StaticTick},
};
use ndarray::Array3;

/// Which stages become one graph.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Split {
    /// One graph per stage, queued back to back: the stages' times are known.
    #[default]
    Stages,
    /// One graph for the tick: its whole time counts as the action head's.
    Whole,
}

/// Stages that are queued together.
struct Segment {
    stages: Vec<Stage>,
    /// None where the stages cannot be captured: they are queued operation by operation.
    graph: Option<CapturedGraph>,
    /// Passed when the stages are done.
    done: Event,
}

/// A tick whose stages are queued as graphs.
pub struct CapturedTick {
    /// First, so that the graphs are dropped before what they work on. What is kept of the prompt has a graph of its own,
    /// queued before the segments where the prompt has changed.
    prefix: Option<CapturedGraph>,
    segments: Vec<Segment>,
    begun: Event,
    output: Pinned,
    stream: Stream,
    tick: StaticTick,
    /// Kept for the graphs, which hold their addresses.
    _retained: Vec<Retained>,
}

impl CapturedTick {
    /// Captures the stages of a tick on `stream`, which must be the current one. They must have run on it before, so that
    /// all that libtorch sets up once is there.
    ///
    /// # Errors
    /// A stage does what cannot be captured. The tick is lost.
    pub fn new(
        mut tick: StaticTick,
        parts: &mut Parts,
        stream: Stream,
        split: Split,
    ) -> Result<Self, ModelError> {
        stream.wait()?;
        tick.forget();
        let pool = Pool::new()?;
        // Graphs of one pool must be queued in the order in which they were captured, and any may be left out.
        let prefix = if tick.keeps_prefix() {
            Some(CapturedGraph::capture(&pool, || tick.run_prefix(parts))?.0)
        } else {
            None
        };
        let mut segments = Vec::new();
        for (stages, captured) in plan(split, parts.head.engine().capturable()) {
            let mut queue = || stages.iter().try_for_each(|&stage| tick.run(stage, parts));
            let graph = if captured {
                Some(CapturedGraph::capture(&pool, queue)?.0)
            } else {
                queue()?;
                None
            };
            segments.push(Segment { stages, graph, done: Event::new()? });
        }
        let retained = tick.retained(parts)?;
        let actions = tick.actions()?;
        let output = Pinned::new(actions.numel() * size_of::<f32>())?;
        Ok(Self { prefix, segments, begun: Event::new()?, output, stream, tick, _retained: retained })
    }

    /// The tick.
    pub fn tick(&self) -> &StaticTick {
        &self.tick
    }

    /// Nodes of all graphs of the stages together.
    pub fn nodes(&self) -> usize {
        self.segments.iter().flat_map(|segment| &segment.graph).map(CapturedGraph::nodes).sum()
    }

    /// Runs a tick with these inputs, of its shape; the tick's stream must be the current one. The host waits once, for the
    /// actions.
    ///
    /// # Errors
    /// What the device reports, or values that are not finite.
    pub fn run(
        &mut self,
        inputs: &TickInputs,
        prompt: &Prompt,
        parts: &mut Parts,
    ) -> Result<(Array3<f32>, StageTimes), ModelError> {
        let queued = self.queue(inputs, prompt, parts);
        // In any case, since the next call writes to the memory that the copies read.
        let waited = self.stream.wait();
        queued.and(waited)?;
        let size = self.tick.actions()?.size();
        let shape = match size.as_slice() {
            &[batch, rows, columns] => (batch as usize, rows as usize, columns as usize),
            _ => (0, 0, 0),
        };
        let mut actions = Array3::zeros(shape);
        if let Some(values) = actions.as_slice_mut() {
            self.output.read(values)?;
        }
        refuse_non_finite(&actions, self.tick.features()?)?;
        Ok((actions, self.times()?))
    }

    fn queue(&mut self, inputs: &TickInputs, prompt: &Prompt, parts: &mut Parts) -> Result<(), ModelError> {
        self.begun.record(&self.stream)?;
        self.tick.fill(inputs, prompt, Some(&self.stream))?;
        let prefix = &self.prefix;
        self.tick.refresh_prefix(|_| prefix.as_ref().map_or(Ok(()), CapturedGraph::replay))?;
        let last = self.segments.len().saturating_sub(1);
        for (number, segment) in self.segments.iter().enumerate() {
            match &segment.graph {
                Some(graph) => graph.replay()?,
                None => segment.stages.iter().try_for_each(|&stage| self.tick.run(stage, parts))?,
            }
            if number == last {
                self.output.download::<f32>(self.tick.actions()?, &self.stream)?;
            }
            segment.done.record(&self.stream)?;
        }
        Ok(())
    }

    /// When the device came to the end of each stage. What is computed once per prompt counts as part of the first one.
    fn times(&self) -> Result<StageTimes, ModelError> {
        let mut times = StageTimes::default();
        let mut before = &self.begun;
        for segment in &self.segments {
            let took: Duration = segment.done.since(before)?;
            match segment.stages.last() {
                Some(Stage::Vision) => times.vision = took,
                Some(Stage::Language) => times.language = took,
                Some(Stage::ActionHead) | None => times.action_head = took,
            }
            before = &segment.done;
        }
        Ok(times)
    }
}

impl Drop for CapturedTick {
    fn drop(&mut self) {
        if let Err(error) = self.stream.wait() {
            tracing::warn!("waiting for the GPU before its work is taken down: {error}");
        }
    }
}

/// Groups of stages, and whether they are captured.
fn plan(split: Split, head_capturable: bool) -> Vec<(Vec<Stage>, bool)> {
    match (split, head_capturable) {
        (Split::Whole, true) => vec![(Stage::ALL.to_vec(), true)],
        (Split::Whole, false) => {
            vec![(vec![Stage::Vision, Stage::Language], true), (vec![Stage::ActionHead], false)]
        }
        (Split::Stages, head) => {
            Stage::ALL.into_iter().map(|stage| (vec![stage], stage != Stage::ActionHead || head)).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_plan_runs_each_stage_once_in_order_and_captures_all_but_what_cannot_be() {
        for (split, capturable, graphs) in [
            (Split::Stages, true, 3),
            (Split::Stages, false, 2),
            (Split::Whole, true, 1),
            (Split::Whole, false, 1),
        ] {
            let plan = plan(split, capturable);
            let stages: Vec<Stage> = plan.iter().flat_map(|(stages, _)| stages.clone()).collect();
            assert_eq!(stages, Stage::ALL, "{split:?} {capturable}");
            assert_eq!(plan.iter().filter(|(_, captured)| *captured).count(), graphs);
            let head = plan.iter().find(|(stages, _)| stages.contains(&Stage::ActionHead)).unwrap();
            assert_eq!(head.1, capturable);
        }
    }
}
