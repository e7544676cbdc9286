//! The graphs of the shapes last seen.

#[cfg(test)]
mod tuning;

use std::collections::VecDeque;
use std::time::Instant;

use ndarray::Array3;

use super::{
    super::{
        ModelError,
        cuda::{EnteredStream, Stream, trim_memory},
        network::{StageTimes, refuse_non_finite},
    },
    Parts, Stage, TickInputs,
    buffers::{Prompt, StaticTick, TickShape},
    captured::{CapturedTick, Split},
};

/// Shapes whose graphs are kept. Each keeps memory of its own on the GPU.
const MAX_SHAPES: usize = 4;

/// A shape that was seen.
enum Known {
    /// Seen once: its stages have run operation by operation, which sets up all that libtorch sets up once. They are captured
    /// when the shape comes again, so that no tick pays for both, and a shape that never comes again for neither.
    Fresh(StaticTick),
    /// Its stages are captured.
    Captured(CapturedTick),
    /// They could not be captured, or nothing is: they run operation by operation on the same memory.
    Plain(StaticTick),
}

impl Known {
    fn shape(&self) -> &TickShape {
        match self {
            Self::Fresh(tick) | Self::Plain(tick) => tick.shape(),
            Self::Captured(captured) => captured.tick().shape(),
        }
    }
}

/// Runs ticks on memory that stays, captured as graphs per shape of the inputs.
pub struct TickRunner {
    /// The one used last comes first.
    known: VecDeque<Known>,
    /// The prompt last seen.
    prompt: Option<Prompt>,
    /// None where nothing is captured.
    stream: Option<Stream>,
    split: Split,
    reuse_prefix: bool,
    /// Whether a tick was run: that is the one in which products are tuned. A robot may move in those after it.
    begun: bool,
}

impl TickRunner {
    /// A runner that captures on `stream`, which is not the default one and nobody else's.
    pub fn capturing(stream: Stream, split: Split) -> Self {
        Self { stream: Some(stream), split, ..Self::plain() }
    }

    /// A runner that does the same without capturing anything, on any device.
    pub fn plain() -> Self {
        Self {
            known: VecDeque::new(),
            prompt: None,
            stream: None,
            split: Split::default(),
            reuse_prefix: false,
            begun: false,
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

    /// Lets go of all shapes.
    pub fn forget(&mut self) {
        self.known.clear();
        self.begun = false;
    }

    /// Makes the runner's stream the current one; everything of the network must run on one stream.
    ///
    /// # Errors
    /// CUDA refuses.
    pub fn enter(&self) -> Result<Option<EnteredStream>, ModelError> {
        self.stream.as_ref().map(Stream::enter).transpose()
    }

    /// The runner's own stream; None where nothing is captured.
    pub fn stream(&self) -> Option<&Stream> {
        self.stream.as_ref()
    }

    /// Shapes that are known, and nodes of the graphs of the one used last.
    pub fn statistics(&self) -> (usize, usize) {
        let nodes = match self.known.front() {
            Some(Known::Captured(captured)) => captured.nodes(),
            Some(Known::Fresh(_) | Known::Plain(_)) | None => 0,
        };
        (self.known.len(), nodes)
    }

    /// Runs a tick; the runner's stream must be the current one. In the very first tick the operators may tune their products
    /// ([`BackboneOperators::allow_tuning`](super::super::operators::BackboneOperators::allow_tuning)). The first tick of a shape runs operation by operation; the
    /// second does too, and takes longer, since it is captured then, and the graphs are replayed and held against it.
    ///
    /// # Errors
    /// What does not fit, what the device reports, or values that are not finite. A capture that fails is no error: it is
    /// logged, and ticks of that shape run operation by operation.
    pub fn run(
        &mut self,
        inputs: &TickInputs,
        parts: &mut Parts,
    ) -> Result<(Array3<f32>, StageTimes), ModelError> {
        let prompt = match self.prompt.take().filter(|prompt| prompt.matches(inputs.model)) {
            Some(prompt) => prompt,
            None => Prompt::new(parts, inputs.model)?,
        };
        let prompt = &*self.prompt.insert(prompt);
        let shape = TickShape::new(inputs, prompt, parts.head.steps(), self.reuse_prefix);
        let place = self.known.iter().position(|known| *known.shape() == shape);
        let mut known = match (place.and_then(|place| self.known.remove(place)), self.stream) {
            (Some(Known::Fresh(mut tick)), Some(stream)) => {
                let (expected, times) = run_plainly(&mut tick, inputs, prompt, parts, Some(stream))?;
                let known = capture(tick, inputs, prompt, parts, (stream, self.split), &expected)?;
                self.known.push_front(known);
                return Ok((expected, times));
            }
            (Some(known), _) => known,
            (None, stream) => {
                // Before memory for another is taken.
                self.known.truncate(MAX_SHAPES - 1);
                let tick = StaticTick::new(shape, prompt, parts)?;
                if stream.is_some() { Known::Fresh(tick) } else { Known::Plain(tick) }
            }
        };
        let operators = parts.operators;
        let allow_tuning = |allowed| operators.iter().for_each(|operators| operators.allow_tuning(allowed));
        let answer = match &mut known {
            Known::Captured(captured) => captured.run(inputs, prompt, parts),
            Known::Fresh(tick) | Known::Plain(tick) => {
                allow_tuning(!self.begun);
                let answer = run_plainly(tick, inputs, prompt, parts, self.stream);
                allow_tuning(false);
                answer
            }
        };
        self.begun |= answer.is_ok();
        self.known.push_front(known);
        answer
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
    (stream, split): (Stream, Split),
    expected: &Array3<f32>,
) -> Result<Known, ModelError> {
    let start = Instant::now();
    tick.forget();
    // What the earlier run worked in would lie idle beside the graphs' own memory.
    trim_memory()?;
    let shape = tick.shape().clone();
    let replayed = CapturedTick::new(tick, parts, stream, split).and_then(|mut captured| {
        let (found, _) = captured.run(inputs, prompt, parts)?;
        Ok((captured, difference(&found, expected)))
    });
    let reason = match replayed {
        Ok((captured, difference)) if difference <= MOST_DIFFERENCE => {
            let nodes = captured.nodes();
            let took = start.elapsed().as_secs_f64() * 1e3;
            tracing::info!(
                "captured a tick as CUDA graphs of {nodes} nodes in {took:.0} ms; replayed, they differ from the run operation \
                 by operation by {difference:e} of the largest action: {shape:?}"
            );
            return Ok(Known::Captured(captured));
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
    stream: Option<Stream>,
) -> Result<(Array3<f32>, StageTimes), ModelError> {
    let wait = || stream.as_ref().map_or(Ok(()), Stream::wait);
    let mut before = Instant::now();
    let mut took = || std::mem::replace(&mut before, Instant::now()).elapsed();
    tick.fill(inputs, prompt, stream.as_ref())?;
    tick.refresh_prefix(|tick| tick.run_prefix(parts))?;
    let mut run = |stage| tick.run(stage, parts).and_then(|()| wait());
    run(Stage::Vision)?;
    let vision = took();
    run(Stage::Language)?;
    let language = took();
    run(Stage::ActionHead)?;
    let actions = tick.read()?;
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
