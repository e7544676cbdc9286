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

/// The streams that a tick's stages are queued on.
#[derive(Debug, Clone, Copy)]
pub struct Streams {
    /// Vision tower and language model.
    pub backbone: Stream,
    /// The action head. Another one than the backbone's where the head of one tick may run beside the backbone of the next.
    pub head: Stream,
}

impl Streams {
    /// All stages on one stream.
    pub fn one(stream: Stream) -> Self {
        Self { backbone: stream, head: stream }
    }

    /// Whether the head has a stream of its own.
    pub fn apart(&self) -> bool {
        self.backbone != self.head
    }

    /// The stream of a stage.
    pub fn of(&self, stage: Stage) -> Stream {
        if stage == Stage::ActionHead { self.head } else { self.backbone }
    }

    /// Waits for all that was queued.
    ///
    /// # Errors
    /// What the device reports of it.
    pub fn wait(&self) -> Result<(), ModelError> {
        let backbone = self.backbone.wait();
        if self.apart() { backbone.and(self.head.wait()) } else { backbone }
    }
}

/// Stages that are queued together.
struct Segment {
    stages: Vec<Stage>,
    /// Where, and where that is not the stream of the stages before: passed when this stream is free and those are done.
    stream: Stream,
    begun: Option<Event>,
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
    streams: Streams,
    tick: StaticTick,
    /// Kept for the graphs, which hold their addresses.
    _retained: Vec<Retained>,
}

impl CapturedTick {
    /// Captures the stages of a tick on `streams`, of which the backbone's must be the current one. They must have run on them
    /// before, so that all that libtorch sets up once is there. A head on a stream of its own is a graph of its own.
    ///
    /// # Errors
    /// A stage does what cannot be captured. The tick is lost.
    pub fn new(
        mut tick: StaticTick,
        parts: &mut Parts,
        streams: Streams,
        split: Split,
    ) -> Result<Self, ModelError> {
        streams.wait()?;
        let split = if streams.apart() { Split::Stages } else { split };
        tick.forget();
        let pool = Pool::new()?;
        // Graphs of one pool must be queued in the order in which they were captured, and any may be left out. One tick's never
        // run at the same time, on whatever streams: its next run begins when the one before has ended.
        let prefix = if tick.keeps_prefix() {
            Some(CapturedGraph::capture(&pool, || tick.run_prefix(parts))?.0)
        } else {
            None
        };
        let mut segments = Vec::new();
        let mut before = streams.backbone;
        for (stages, captured) in plan(split, parts.head.engine().capturable()) {
            let stream = stages.first().map_or(before, |&stage| streams.of(stage));
            let elsewhere = std::mem::replace(&mut before, stream) != stream;
            // Captured where they will run: libtorch's products work in memory of their stream.
            let _entered = elsewhere.then(|| stream.enter()).transpose()?;
            let begun = elsewhere.then(Event::new).transpose()?;
            let mut queue = || stages.iter().try_for_each(|&stage| tick.run(stage, parts));
            let graph = if captured {
                Some(CapturedGraph::capture(&pool, queue)?.0)
            } else {
                queue()?;
                None
            };
            segments.push(Segment { stages, stream, begun, graph, done: Event::new()? });
        }
        let retained = tick.retained(parts)?;
        let actions = tick.actions()?;
        let output = Pinned::new(actions.numel() * size_of::<f32>())?;
        Ok(Self { prefix, segments, begun: Event::new()?, output, streams, tick, _retained: retained })
    }

    /// The tick.
    pub fn tick(&self) -> &StaticTick {
        &self.tick
    }

    /// Nodes of all graphs of the stages together.
    pub fn nodes(&self) -> usize {
        self.segments.iter().flat_map(|segment| &segment.graph).map(CapturedGraph::nodes).sum()
    }

    /// Runs a tick with these inputs, of its shape; the backbone's stream must be the current one. The host waits once, for
    /// the actions.
    ///
    /// # Errors
    /// What the device reports, or values that are not finite.
    pub fn run(
        &mut self,
        inputs: &TickInputs,
        prompt: &Prompt,
        parts: &mut Parts,
    ) -> Result<(Array3<f32>, StageTimes), ModelError> {
        self.begin(inputs, prompt, parts)?;
        self.finish()
    }

    /// Queues a tick, as [`run`](Self::run) does, and comes back at once. [`finish`](Self::finish) it before the next one.
    ///
    /// # Errors
    /// CUDA refuses; then nothing is under way.
    pub fn begin(
        &mut self,
        inputs: &TickInputs,
        prompt: &Prompt,
        parts: &mut Parts,
    ) -> Result<(), ModelError> {
        self.queue(inputs, prompt, parts).inspect_err(|_| {
            // The next call writes to the memory that the copies read. What is wrong is known already.
            let _ = self.streams.wait();
        })
    }

    /// Waits for the tick that was begun last, and for nothing that was queued after it.
    ///
    /// # Errors
    /// What the device reports, or values that are not finite.
    pub fn finish(&mut self) -> Result<(Array3<f32>, StageTimes), ModelError> {
        let waited = self.segments.last().map_or(Ok(()), |last| last.done.wait());
        if waited.is_err() {
            // As in `begin`.
            let _ = self.streams.wait();
        }
        waited?;
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
        let stream = self.streams.backbone;
        self.begun.record(&stream)?;
        self.tick.fill(inputs, prompt, Some(&stream))?;
        let prefix = &self.prefix;
        self.tick.refresh_prefix(|_| prefix.as_ref().map_or(Ok(()), CapturedGraph::replay))?;
        let last = self.segments.len().saturating_sub(1);
        let mut before: Option<&Segment> = None;
        for (number, segment) in self.segments.iter().enumerate() {
            let mut entered = None;
            if let Some(begun) = &segment.begun {
                if let Some(before) = before {
                    before.done.hold(&segment.stream)?;
                }
                begun.record(&segment.stream)?;
                entered = Some(segment.stream.enter()?);
            }
            match &segment.graph {
                Some(graph) => graph.replay()?,
                None => segment.stages.iter().try_for_each(|&stage| self.tick.run(stage, parts))?,
            }
            if number == last {
                self.output.download::<f32>(self.tick.actions()?, &segment.stream)?;
            }
            segment.done.record(&segment.stream)?;
            drop(entered);
            before = Some(segment);
        }
        Ok(())
    }

    /// When the device came to the end of each stage. What is computed once per prompt counts as part of the first one.
    fn times(&self) -> Result<StageTimes, ModelError> {
        let mut times = StageTimes::default();
        let mut before = &self.begun;
        for segment in &self.segments {
            let took: Duration = segment.done.since(segment.begun.as_ref().unwrap_or(before))?;
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
        if let Err(error) = self.streams.wait() {
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
