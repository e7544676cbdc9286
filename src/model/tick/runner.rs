//! The graphs of the shapes last seen.

#[cfg(test)]
mod tuning;

use std::collections::VecDeque;
use std::time::Instant;

use ndarray::Array3;

use super::{
    super::{
        ModelError,
        cuda::{EnteredStream, trim_memory},
        network::{StageTimes, refuse_non_finite},
    },
    Parts, Stage, TickInputs,
    buffers::{Prompt, StaticTick, TickShape},
    captured::{CapturedTick, Split, Streams},
};

/// Shapes whose graphs are kept. Each keeps memory of its own on the GPU.
const MAX_SHAPES: usize = 4;

/// Ticks that may be under way at once, where the head has a stream of its own: the head of one, the backbone of the next.
pub const UNDER_WAY: usize = 2;

/// What a tick gives.
type Answer = (Array3<f32>, StageTimes);

/// Captured ticks of one shape, at least one, which take turns.
struct Turns {
    ticks: Vec<CapturedTick>,
    /// Whose turn it is.
    next: usize,
}

/// A tick that was begun and not finished.
enum UnderWay {
    /// It ran at once, or had to be waited for.
    Done(Result<Answer, ModelError>),
    /// This one of the shape used last.
    Queued(usize),
}

/// A shape that was seen.
enum Known {
    /// Seen once: its stages have run operation by operation, which sets up all that libtorch sets up once. They are captured
    /// when the shape comes again, so that no tick pays for both, and a shape that never comes again for neither.
    Fresh(StaticTick),
    /// Its stages are captured.
    Captured(Turns),
    /// They could not be captured, or nothing is: they run operation by operation on the same memory.
    Plain(StaticTick),
}

impl Known {
    fn shape(&self) -> &TickShape {
        match self {
            Self::Fresh(tick) | Self::Plain(tick) => tick.shape(),
            // There is at least one, and all are of one shape.
            Self::Captured(turns) => turns.ticks[0].tick().shape(),
        }
    }
}

/// Runs ticks on memory that stays, captured as graphs per shape of the inputs.
pub struct TickRunner {
    /// The one used last comes first.
    known: VecDeque<Known>,
    /// The prompt last seen.
    prompt: Option<Prompt>,
    /// In the order in which they were begun. Before the shapes are let go, so are these.
    under_way: VecDeque<UnderWay>,
    /// None where nothing is captured.
    streams: Option<Streams>,
    split: Split,
    reuse_prefix: bool,
    /// Whether a tick was run: that is the one in which products are tuned. A robot may move in those after it.
    ran: bool,
}

impl TickRunner {
    /// A runner that captures on `streams`, which are not the default one and nobody else's.
    pub fn capturing(streams: Streams, split: Split) -> Self {
        Self { streams: Some(streams), split, ..Self::plain() }
    }

    /// A runner that does the same without capturing anything, on any device.
    pub fn plain() -> Self {
        Self {
            known: VecDeque::new(),
            prompt: None,
            under_way: VecDeque::new(),
            streams: None,
            split: Split::default(),
            reuse_prefix: false,
            ran: false,
        }
    }

    /// Whether the prompt before its first image is computed only when it changes, see [`prefix`](super::prefix); a new
    /// runner computes all of it in each tick. All shapes are let go.
    ///
    /// What is reused is exact but for rounding: products of fewer rows may round differently. The language model is then
    /// run with joined products, with libtorch's operators between them where there are no others.
    pub fn set_prefix_reuse(&mut self, reuse: bool) {
        self.reuse_prefix = reuse;
        self.forget();
    }

    /// Lets go of all shapes, and of what is under way.
    pub fn forget(&mut self) {
        self.under_way.clear();
        self.known.clear();
        self.ran = false;
    }

    /// Makes the backbone's stream the current one; all of the network but a head that has its own must run on that.
    ///
    /// # Errors
    /// CUDA refuses.
    pub fn enter(&self) -> Result<Option<EnteredStream>, ModelError> {
        self.streams.as_ref().map(|streams| streams.backbone.enter()).transpose()
    }

    /// The runner's own streams; None where nothing is captured.
    pub fn streams(&self) -> Option<&Streams> {
        self.streams.as_ref()
    }

    /// Shapes that are known, and nodes of the graphs of the one used last.
    pub fn statistics(&self) -> (usize, usize) {
        let nodes = match self.known.front() {
            Some(Known::Captured(turns)) => turns.ticks.first().map_or(0, CapturedTick::nodes),
            Some(Known::Fresh(_) | Known::Plain(_)) | None => 0,
        };
        (self.known.len(), nodes)
    }

    /// Runs a tick; the runner's stream must be the current one. In the very first tick the operators may tune their products
    /// ([`BackboneOperators::allow_tuning`](super::super::operators::BackboneOperators::allow_tuning)). The first tick of a shape runs operation by operation; the
    /// second does too, and takes longer, since it is captured then, and the graphs are replayed and held against it.
    ///
    /// # Errors
    /// What does not fit, what the device reports, or values that are not finite; ticks that were begun and not finished. A capture
    /// that fails is no error: it is logged, and ticks of that shape run operation by operation.
    pub fn run(&mut self, inputs: &TickInputs, parts: &mut Parts) -> Result<Answer, ModelError> {
        if !self.under_way.is_empty() {
            return Err(out_of_turn(
                "what was begun to be finished before a tick on its own",
                &self.under_way,
            ));
        }
        self.begin(inputs, parts)?;
        self.finish()
    }

    /// Queues a tick, as [`run`](Self::run) runs it, and comes back at once where its shape is captured; else it runs now.
    ///
    /// # Errors
    /// As [`run`](Self::run); then nothing was begun. Two ticks may be under way, no more.
    pub fn begin(&mut self, inputs: &TickInputs, parts: &mut Parts) -> Result<(), ModelError> {
        if self.under_way.len() >= UNDER_WAY {
            return Err(out_of_turn(
                "the oldest tick to be finished before another one begins",
                &self.under_way,
            ));
        }
        let prompt = match self.prompt.take().filter(|prompt| prompt.matches(inputs.model)) {
            Some(prompt) => prompt,
            None => Prompt::new(parts, inputs.model)?,
        };
        let prompt = &*self.prompt.insert(prompt);
        let shape = TickShape::new(inputs, prompt, parts.head.steps(), self.reuse_prefix);
        let place = self.known.iter().position(|known| *known.shape() == shape);
        let turn = match (place, self.known.front()) {
            (Some(0), Some(Known::Captured(turns))) => Some(turns.next),
            _ => None,
        };
        // Only ticks of the shape used last are ever queued, and each of its memories once.
        let in_the_way = |tick: &UnderWay| match tick {
            UnderWay::Queued(index) => turn.is_none_or(|turn| turn == *index),
            UnderWay::Done(_) => false,
        };
        if self.under_way.iter().any(in_the_way) {
            for tick in &mut self.under_way {
                if let UnderWay::Queued(index) = *tick {
                    *tick = UnderWay::Done(finish_queued(index, self.known.front_mut()));
                }
            }
        }
        let mut known = match (place.and_then(|place| self.known.remove(place)), self.streams) {
            (Some(Known::Fresh(mut tick)), Some(streams)) => {
                let answer = run_plainly(&mut tick, inputs, prompt, parts, Some(streams))?;
                let known = capture(tick, inputs, prompt, parts, (streams, self.split), &answer.0)?;
                self.known.push_front(known);
                self.under_way.push_back(UnderWay::Done(Ok(answer)));
                return Ok(());
            }
            (Some(known), _) => known,
            (None, streams) => {
                // Before memory for another is taken.
                self.known.truncate(MAX_SHAPES - 1);
                let tick = StaticTick::new(shape, prompt, parts)?;
                if streams.is_some() { Known::Fresh(tick) } else { Known::Plain(tick) }
            }
        };
        let operators = parts.operators;
        let allow_tuning = |allowed| operators.iter().for_each(|operators| operators.allow_tuning(allowed));
        let begun = match &mut known {
            Known::Captured(Turns { ticks, next }) => {
                let index = *next;
                *next = (index + 1) % ticks.len();
                ticks[index].begin(inputs, prompt, parts).map(|()| UnderWay::Queued(index))
            }
            Known::Fresh(tick) | Known::Plain(tick) => {
                allow_tuning(!self.ran);
                let answer = run_plainly(tick, inputs, prompt, parts, self.streams);
                allow_tuning(false);
                answer.map(|answer| UnderWay::Done(Ok(answer)))
            }
        };
        self.ran |= begun.is_ok();
        self.known.push_front(known);
        self.under_way.push_back(begun?);
        Ok(())
    }

    /// Waits for the tick that was begun first of those under way, and for no other.
    ///
    /// # Errors
    /// What the device reports of it, or values that are not finite; nothing is under way.
    pub fn finish(&mut self) -> Result<Answer, ModelError> {
        match self.under_way.pop_front() {
            Some(UnderWay::Done(answer)) => answer,
            Some(UnderWay::Queued(index)) => finish_queued(index, self.known.front_mut()),
            None => Err(out_of_turn("one to be begun before it is finished", &self.under_way)),
        }
    }
}

fn out_of_turn(expected: &str, under_way: &VecDeque<UnderWay>) -> ModelError {
    let found = format!("{} under way", under_way.len());
    ModelError::Input { what: "tick", expected: expected.to_owned(), found }
}

/// Waits for a queued tick of the shape used last.
fn finish_queued(index: usize, last: Option<&mut Known>) -> Result<Answer, ModelError> {
    match last {
        Some(Known::Captured(turns)) if index < turns.ticks.len() => turns.ticks[index].finish(),
        _ => Err(ModelError::Input {
            what: "tick",
            expected: "its graphs to be kept until it is finished".to_owned(),
            found: "others".to_owned(),
        }),
    }
}

/// What a replay may differ from the run operation by operation, relative to the largest action: where an operator sums in
/// an order that is not fixed, roundings differ. A stale address shows itself as something else altogether.
const MOST_DIFFERENCE: f32 = 0.02;

/// The largest difference, relative to the largest expected value; NaN where there is one.
fn difference(found: &Array3<f32>, expected: &Array3<f32>) -> f32 {
    let largest = |values: &mut dyn Iterator<Item = f32>| {
        values.fold(0.0, |a: f32, b| if a.is_nan() || b.is_nan() { f32::NAN } else { a.max(b.abs()) })
    };
    if found.dim() != expected.dim() {
        return f32::NAN;
    }
    let apart = largest(&mut found.iter().zip(expected).map(|(a, b)| a - b));
    if apart == 0.0 { 0.0 } else { apart / largest(&mut expected.iter().copied()) }
}

/// Captures a tick whose stages have run before, with these inputs last, which gave the actions `expected`. The graphs are
/// replayed once and must give the same.
fn capture(
    mut tick: StaticTick,
    inputs: &TickInputs,
    prompt: &Prompt,
    parts: &mut Parts,
    (streams, split): (Streams, Split),
    expected: &Array3<f32>,
) -> Result<Known, ModelError> {
    let start = Instant::now();
    tick.forget();
    // What the earlier run worked in would lie idle beside the graphs' own memory.
    trim_memory()?;
    let shape = tick.shape().clone();
    let other = streams.apart().then(|| StaticTick::new(shape.clone(), prompt, parts));
    let mut replayed = |tick| {
        let mut captured = CapturedTick::new(tick, parts, streams, split)?;
        let (found, _) = captured.run(inputs, prompt, parts)?;
        Ok::<_, ModelError>((captured, difference(&found, expected)))
    };
    let all = replayed(tick).and_then(|(first, difference)| {
        let Some(other) = other else { return Ok((vec![first], difference)) };
        let (second, other) = replayed(other?)?;
        // One that is no number stays.
        Ok((vec![first, second], if difference >= other || difference.is_nan() { difference } else { other }))
    });
    let reason = match all {
        Ok((ticks, difference)) if difference <= MOST_DIFFERENCE => {
            let nodes = ticks.first().map_or(0, CapturedTick::nodes);
            let took = start.elapsed().as_secs_f64() * 1e3;
            tracing::info!(
                "captured a tick as CUDA graphs of {nodes} nodes in {took:.0} ms; replayed, they differ from the run operation \
                 by operation by {difference:e} of the largest action: {shape:?}"
            );
            return Ok(Known::Captured(Turns { ticks, next: 0 }));
        }
        Ok((_, difference)) => {
            format!(
                "replayed, they differ from the run operation by operation by {difference:e} of the largest action"
            )
        }
        Err(error) => error.to_string(),
    };
    tracing::warn!(
        "ticks of this shape run operation by operation, since their CUDA graphs cannot be used: {reason}: {shape:?}"
    );
    Ok(Known::Plain(StaticTick::new(shape, prompt, parts)?))
}

/// Runs the stages operation by operation.
fn run_plainly(
    tick: &mut StaticTick,
    inputs: &TickInputs,
    prompt: &Prompt,
    parts: &mut Parts,
    streams: Option<Streams>,
) -> Result<Answer, ModelError> {
    let wait = || streams.as_ref().map_or(Ok(()), |streams| streams.backbone.wait());
    let mut before = Instant::now();
    let mut took = || std::mem::replace(&mut before, Instant::now()).elapsed();
    tick.fill(inputs, prompt, streams.as_ref().map(|streams| &streams.backbone))?;
    tick.refresh_prefix(|tick| tick.run_prefix(parts))?;
    let mut run = |stage| tick.run(stage, parts).and_then(|()| wait());
    run(Stage::Vision)?;
    let vision = took();
    run(Stage::Language)?;
    let language = took();
    // On its own stream, where it has one; the backbone was waited for.
    let own = streams.filter(Streams::apart).map(|streams| streams.head.enter()).transpose()?;
    run(Stage::ActionHead)?;
    let actions = tick.read()?;
    drop(own);
    let times = StageTimes { vision, language, action_head: took() };
    refuse_non_finite(&actions, tick.features()?)?;
    Ok((actions, times))
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;
    use tch::Kind;

    use super::*;
    use crate::{
        model::{
            network::Network,
            operators::{BackboneOperators, PlainOperators},
            probe::Probe,
            small,
        },
        processor::{ModelInputs, guidance::Guidance},
    };

    /// One network, run eagerly and on memory that stays.
    struct Pair {
        network: Network,
        runner: TickRunner,
    }

    impl Pair {
        fn new(kind: Kind) -> Self {
            Self { network: small::network(kind), runner: TickRunner::plain() }
        }

        fn compare(&mut self, (model, noise): &(ModelInputs, Array3<f32>), guidance: Option<&Guidance>) {
            let eager = self.network.run(model, noise.view(), guidance, &mut Probe::off()).unwrap().0;
            let inputs = TickInputs { model, noise: noise.view(), guidance, images: None };
            let found = self.runner.run(&inputs, &mut self.network.parts()).unwrap().0;
            assert_eq!(found, eager);
        }
    }

    #[test]
    fn ticks_on_memory_that_stays_equal_eager_ones_bit_by_bit_whatever_changes_between_them() {
        for kind in [Kind::Float, Kind::BFloat16] {
            let mut pair = Pair::new(kind);
            // Each twice, so that the second of a shape is refilled memory; then other contents in the same shape.
            for seed in [1, 1, 2, 3] {
                pair.compare(&small::inputs(seed, 2, &[6]), None);
            }
            assert_eq!(pair.runner.statistics().0, 1);
            // Another length, another number of images, a batch, one with padding on either side.
            pair.compare(&small::inputs(4, 2, &[9]), None);
            pair.compare(&small::inputs(5, 1, &[6]), None);
            pair.compare(&small::inputs(6, 1, &[6, 6]), None);
            for texts in [[4, 7], [7, 4], [4, 7]] {
                pair.compare(&small::inputs(7, 1, &texts), None);
            }
            pair.compare(&small::inputs(8, 2, &[6]), None);
        }
    }

    #[test]
    fn ticks_that_are_begun_before_the_one_before_is_finished_give_what_they_give_in_sequence() {
        let mut network = small::network(Kind::Float);
        let mut runner = TickRunner::plain();
        let ticks: Vec<_> =
            [(1, 6), (2, 6), (3, 9), (4, 6)].map(|(seed, text)| small::inputs(seed, 1, &[text])).into();
        let expected: Vec<_> = ticks
            .iter()
            .map(|(model, noise)| network.run(model, noise.view(), None, &mut Probe::off()).unwrap().0)
            .collect();
        let mut begin = |runner: &mut TickRunner, (model, noise): &(ModelInputs, Array3<f32>)| {
            let inputs = TickInputs { model, noise: noise.view(), guidance: None, images: None };
            runner.begin(&inputs, &mut network.parts())
        };
        let refused = |error: ModelError| error.to_string();
        assert!(refused(runner.finish().unwrap_err()).contains("0 under way"));
        begin(&mut runner, &ticks[0]).unwrap();
        for next in 1..ticks.len() {
            begin(&mut runner, &ticks[next]).unwrap();
            assert!(refused(begin(&mut runner, &ticks[0]).unwrap_err()).contains("2 under way"));
            assert_eq!(runner.finish().unwrap().0, expected[next - 1]);
        }
        let (model, noise) = &ticks[0];
        let inputs = TickInputs { model, noise: noise.view(), guidance: None, images: None };
        let error = runner.run(&inputs, &mut network.parts()).unwrap_err();
        assert!(refused(error).contains("1 under way"));
        assert_eq!(runner.finish().unwrap().0, expected[ticks.len() - 1]);
    }

    #[test]
    fn guidance_and_the_number_of_denoising_steps_are_followed() {
        let mut pair = Pair::new(Kind::Float);
        let inputs = small::inputs(1, 1, &[5]);
        let (rows, columns) = pair.network.noise_shape();
        let mut guidance = Guidance {
            target: Array2::from_shape_fn((rows, columns), |(row, column)| (row + column) as f32 / 9.0),
            weights: Array2::from_elem((rows, columns), 0.5),
        };
        pair.compare(&inputs, Some(&guidance));
        guidance.target += 1.0;
        guidance.weights[(0, 0)] = 1.0;
        pair.compare(&inputs, Some(&guidance));
        pair.compare(&inputs, None);
        for steps in [2, 4, 2] {
            pair.network.set_denoising_steps(steps).unwrap();
            pair.compare(&inputs, None);
        }
        assert_eq!(pair.runner.statistics().0, 3);
    }

    #[test]
    fn joined_products_give_what_separate_ones_give_but_for_rounding() {
        let mut pair = Pair::new(Kind::Float);
        for texts in [[6, 6], [4, 7]] {
            let (model, noise) = small::inputs(1, 1, &texts);
            let plain = pair.network.run(&model, noise.view(), None, &mut Probe::off()).unwrap().0;
            let inputs = TickInputs { model: &model, noise: noise.view(), guidance: None, images: None };
            let operators: Option<&dyn BackboneOperators> = Some(&PlainOperators);
            let mut run = |inputs: &TickInputs| {
                let parts = &mut Parts { operators, ..pair.network.parts() };
                pair.runner.run(inputs, parts).unwrap().0
            };
            let joined = run(&inputs);
            let distance = (&joined - &plain).mapv(f32::abs).fold(0.0, |a: f32, b| a.max(*b));
            assert!(distance < 1e-5, "{distance}");
            // Inputs are not written to, as the residual stream is.
            assert_eq!(joined, run(&inputs));
        }
    }

    #[test]
    fn a_replay_that_differs_in_one_value_or_is_not_a_number_is_seen() {
        let expected = Array3::from_shape_fn((1, 3, 2), |(_, row, column)| row as f32 - 2.0 * column as f32);
        assert_eq!(difference(&expected, &expected), 0.0);
        let mut found = expected.clone();
        found[(0, 2, 1)] += 0.5;
        assert_eq!(difference(&found, &expected), 0.25);
        found[(0, 0, 0)] = f32::NAN;
        assert!(difference(&found, &expected).is_nan());
        assert!(difference(&Array3::zeros((1, 3, 1)), &expected).is_nan());
        let zeros = Array3::zeros((1, 3, 2));
        assert_eq!(difference(&zeros, &zeros), 0.0);
        assert!(difference(&expected, &zeros) > MOST_DIFFERENCE);
    }

    #[test]
    fn only_the_shapes_used_last_are_kept() {
        let mut pair = Pair::new(Kind::Float);
        let kept = |pair: &mut Pair, text| {
            let (model, noise) = small::inputs(0, 1, &[text]);
            let inputs = TickInputs { model: &model, noise: noise.view(), guidance: None, images: None };
            let parts = pair.network.parts();
            let shape =
                TickShape::new(&inputs, &Prompt::new(&parts, &model).unwrap(), parts.head.steps(), false);
            pair.runner.known.iter().any(|known| *known.shape() == shape)
        };
        for text in [4, 5, 6, 7, 4, 8] {
            pair.compare(&small::inputs(1, 1, &[text]), None);
        }
        assert_eq!([4, 5, 6, 7, 8].map(|text| kept(&mut pair, text)), [true, false, true, true, true]);
        pair.compare(&small::inputs(1, 1, &[5]), None);
        assert!(!kept(&mut pair, 6));
    }
}
