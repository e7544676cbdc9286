//! What the language model makes of the text before the first image, which stays until that text changes.
//!
//! Attention is causal, so that no token before the first image token sees an image: while the instruction is unchanged, the
//! keys and values of these tokens in every layer and their features are the same in each tick.

use ndarray::Array2;
use tch::Tensor;

use super::super::{
    ModelError,
    language::{LanguageModel, Projections, SequenceContext},
    operators::BackboneOperators,
    tokens::TokenLayout,
};

/// Memory for the prefix of prompts of one shape, at fixed addresses, and what was last computed into it.
pub struct Prefix {
    /// See [`Projections`].
    projections: Vec<Tensor>,
    /// (B, prefix, D), after the final norm.
    features: Tensor,
    length: i64,
    /// Ids and validity of the tokens that all this was computed from; None before that.
    tokens: Option<(Array2<i64>, Array2<bool>)>,
}

impl Prefix {
    /// Memory for prompts of this layout's shape and as long a prefix; None where there is none.
    ///
    /// # Errors
    /// There is no memory.
    pub fn new(language: &LanguageModel, layout: &TokenLayout) -> Result<Option<Self>, ModelError> {
        let length = layout.prefix() as i64;
        if length == 0 {
            return Ok(None);
        }
        let options = (language.kind(), layout.input_ids.device());
        let (batch, all) = (layout.batch(), layout.seq_len());
        // All zero, since a capture that comes first reads it.
        let projections = language
            .layers()
            .iter()
            .map(|layer| Ok(Tensor::f_zeros([batch, all, layer.projected()], options)?))
            .collect::<Result<_, ModelError>>()?;
        let features = Tensor::f_zeros([batch, length, language.width()], options)?;
        Ok(Some(Self { projections, features, length, tokens: None }))
    }

    /// Whether this is the prefix of these prompts.
    pub fn is_of(&self, layout: &TokenLayout) -> bool {
        let (ids, valid) = layout.prefix_tokens();
        self.tokens.as_ref().is_some_and(|(own_ids, own_valid)| *own_ids == ids && *own_valid == valid)
    }

    /// Says that what is queued last computes the prefix of these prompts; None: that nobody knows what is there.
    pub fn set_tokens(&mut self, layout: Option<&TokenLayout>) {
        self.tokens = layout.map(|layout| {
            let (ids, valid) = layout.prefix_tokens();
            (ids.to_owned(), valid.to_owned())
        });
    }

    /// Queues the computation. Nothing in here waits for the device, so that it can be captured.
    ///
    /// # Errors
    /// libtorch or the operators refuse.
    pub fn compute(
        &mut self,
        language: &LanguageModel,
        layout: &TokenLayout,
        context: &SequenceContext,
        operators: &dyn BackboneOperators,
    ) -> Result<(), ModelError> {
        let words = language.words(&layout.input_ids.f_narrow(1, 0, self.length)?)?;
        let kept = Projections { layers: &self.projections, known: 0 };
        let context = context.first(self.length)?;
        let features = language.forward_kept(words, &context, operators, Some(kept))?;
        Ok(self.features.f_copy_(&features)?)
    }

    /// Features (B, S, D) of the whole prompt, of which only the tokens after the prefix are computed, from the embeddings
    /// (B, S, D) of all.
    ///
    /// # Errors
    /// libtorch or the operators refuse.
    pub fn complete(
        &self,
        language: &LanguageModel,
        embeddings: &Tensor,
        context: &SequenceContext,
        operators: &dyn BackboneOperators,
    ) -> Result<Tensor, ModelError> {
        let rest = embeddings.size().get(1).copied().unwrap_or(0) - self.length;
        let rest = embeddings.f_narrow(1, self.length, rest)?.f_contiguous()?;
        let kept = Projections { layers: &self.projections, known: self.length };
        let rest = language.forward_kept(rest, context, operators, Some(kept))?;
        Ok(Tensor::f_cat(&[&self.features, &rest], 1)?)
    }
}

#[cfg(test)]
mod tests {
    use ndarray::Array3;
    use tch::Kind;

    use super::super::{
        Parts, Stage, TickInputs,
        buffers::{Prompt, StaticTick, TickShape},
        runner::TickRunner,
    };
    use crate::{
        model::{ModelError, network::Network, operators::PlainOperators, probe::Probe, small},
        processor::ModelInputs,
    };

    type Inputs = (ModelInputs, Array3<f32>);

    /// What other orders of summation may make of actions of order 1: on their way from the words through the layers of the
    /// language model and the denoising steps they take up some thirty-six terms, each rounded to 6e-8.
    const ROUNDING: f32 = 36.0 * 6e-8;
    /// What the prefix of another instruction makes of them, at the least.
    const STALE: f32 = 50.0 * ROUNDING;

    fn distance(a: &Array3<f32>, b: &Array3<f32>) -> f32 {
        (a - b).mapv(f32::abs).fold(0.0, |a: f32, b| a.max(*b))
    }

    fn eager(network: &mut Network, (model, noise): &Inputs) -> Array3<f32> {
        network.run(model, noise.view(), None, &mut Probe::off()).unwrap().0
    }

    /// One network, run eagerly and with the prefix kept.
    struct Pair {
        network: Network,
        runner: TickRunner,
    }

    impl Pair {
        fn new(kind: Kind) -> Self {
            let mut runner = TickRunner::plain();
            runner.set_prefix_reuse(true);
            Self { network: small::network(kind), runner }
        }

        fn run(&mut self, (model, noise): &Inputs) -> Array3<f32> {
            let inputs = TickInputs { model, noise: noise.view(), guidance: None, images: None };
            self.runner.run(&inputs, &mut self.network.parts()).unwrap().0
        }

        fn compare(&mut self, inputs: &Inputs) {
            let (expected, found) = (eager(&mut self.network, inputs), self.run(inputs));
            let distance = distance(&found, &expected);
            assert!(distance < ROUNDING, "{distance}");
            assert_eq!(self.run(inputs), found, "what is kept is what was computed");
        }
    }

    /// The same with other words before the images in each prompt of the batch.
    fn other_words((model, noise): &Inputs) -> Inputs {
        let mut model = model.clone();
        for (mut ids, valid) in model.input_ids.outer_iter_mut().zip(model.attention_mask.outer_iter()) {
            let words = ids.iter_mut().zip(valid).skip_while(|(_, valid)| !**valid);
            for (id, _) in words.take_while(|(id, _)| **id != i64::from(small::IMAGE_TOKEN)) {
                *id = (*id + 37) % 80;
            }
        }
        (model, noise.clone())
    }

    /// The same prompt with the frames of other inputs.
    fn other_images((model, noise): &Inputs, other: &Inputs) -> Inputs {
        (ModelInputs { images: other.0.images.clone(), ..model.clone() }, noise.clone())
    }

    #[test]
    fn a_kept_prefix_gives_what_the_whole_prompt_gives_but_for_rounding() {
        let mut pair = Pair::new(Kind::Float);
        // One prompt, another length, other numbers of images, batches of one length and of several.
        for (images, texts) in [
            (2, &[6][..]),
            (2, &[9]),
            (1, &[6]),
            (3, &[6]),
            (2, &[6]),
            (1, &[6, 6]),
            (2, &[4, 7]),
            (2, &[7, 4]),
            (1, &[5, 9, 12]),
        ] {
            let inputs = small::inputs(4, images, texts);
            pair.compare(&inputs);
            pair.compare(&other_images(&inputs, &small::inputs(5, images, texts)));
            pair.compare(&other_words(&inputs));
            pair.compare(&inputs);
        }
    }

    #[test]
    fn a_changed_instruction_is_followed_in_the_very_next_tick() {
        for texts in [&[8][..], &[8, 8], &[5, 8]] {
            let mut pair = Pair::new(Kind::Float);
            let one = small::inputs(1, 2, texts);
            let other = other_words(&one);
            let [first, second] = [&one, &other].map(|inputs| eager(&mut pair.network, inputs));
            assert!(distance(&first, &second) > STALE, "the instruction does not matter");
            for _ in 0..3 {
                assert!(distance(&pair.run(&one), &first) < ROUNDING);
                assert!(distance(&pair.run(&other), &second) < ROUNDING);
                assert!(distance(&pair.run(&other), &second) < ROUNDING);
            }
            assert_eq!(pair.runner.statistics().0, 1);
        }
    }

    #[test]
    fn a_word_after_the_images_is_followed_too_and_leaves_the_prefix() {
        let mut pair = Pair::new(Kind::Float);
        let one = small::inputs(1, 1, &[8]);
        let mut other = one.clone();
        let last = other.0.input_ids.ncols() - 1;
        other.0.input_ids[(0, last)] = (other.0.input_ids[(0, last)] + 1) % 80;
        for inputs in [&one, &other, &one] {
            pair.compare(inputs);
        }
    }

    #[test]
    fn the_text_before_the_images_may_move_behind_them() {
        // As many tokens of each kind, but another prefix: a shape of its own.
        let mut pair = Pair::new(Kind::Float);
        let one = small::inputs(1, 1, &[8]);
        let mut other = one.clone();
        other.0.input_ids.swap((0, 2), (0, 5));
        assert_eq!(other.0.input_ids[(0, 2)], i64::from(small::IMAGE_TOKEN));
        for inputs in [&one, &other, &one, &other] {
            pair.compare(inputs);
        }
        assert_eq!(pair.runner.statistics().0, 2);
    }

    #[test]
    fn without_text_before_the_first_image_nothing_is_kept() {
        let mut pair = Pair::new(Kind::Float);
        let mut inputs = small::inputs(1, 1, &[8]);
        inputs.0.input_ids.swap((0, 0), (0, 4));
        let expected = eager(&mut pair.network, &inputs);
        assert_eq!(pair.run(&inputs), expected);
        assert_eq!(pair.run(&inputs), expected);
    }

    #[test]
    fn shapes_that_were_let_go_come_back_with_a_prefix_of_their_own() {
        let mut pair = Pair::new(Kind::Float);
        for text in [4, 5, 6, 7, 8, 9, 4, 5, 9] {
            pair.compare(&small::inputs(1, 1, &[text]));
        }
    }

    #[test]
    fn in_bf16_a_kept_prefix_is_as_near_to_f32_as_the_whole_prompt_is() {
        let inputs = small::inputs(1, 2, &[9]);
        let exact = eager(&mut small::network(Kind::Float), &inputs);
        let mut pair = Pair::new(Kind::BFloat16);
        let whole = distance(&eager(&mut pair.network, &inputs), &exact);
        let kept = distance(&pair.run(&inputs), &exact);
        assert!(kept < 2.0 * whole, "{kept} from f32, the whole prompt {whole}");
        assert_eq!(pair.run(&inputs), pair.run(&inputs));
    }

    /// A tick on memory that stays, and what computes its prefix.
    struct Tick {
        network: Network,
        tick: StaticTick,
    }

    impl Tick {
        fn new(inputs: &Inputs) -> Self {
            let mut network = small::network(Kind::Float);
            let (shape, prompt) = Self::prompt(&mut network, inputs);
            let tick = StaticTick::new(shape, &prompt, &network.parts()).unwrap();
            Self { network, tick }
        }

        fn prompt(network: &mut Network, (model, noise): &Inputs) -> (TickShape, Prompt) {
            let parts = network.parts();
            let prompt = Prompt::new(&parts, model).unwrap();
            let inputs = TickInputs { model, noise: noise.view(), guidance: None, images: None };
            (TickShape::new(&inputs, &prompt, parts.head.steps(), true), prompt)
        }

        fn fill(&mut self, inputs: &Inputs) {
            let (shape, prompt) = Self::prompt(&mut self.network, inputs);
            assert_eq!(shape, *self.tick.shape());
            let (model, noise) = inputs;
            let inputs = TickInputs { model, noise: noise.view(), guidance: None, images: None };
            self.tick.fill(&inputs, &prompt, None).unwrap();
        }

        /// Computes the prefix if it is due, and says whether it was.
        fn refresh(&mut self) -> bool {
            let mut computed = false;
            let parts = Parts { operators: Some(&PlainOperators), ..self.network.parts() };
            let compute = |tick: &mut StaticTick| {
                computed = true;
                tick.run_prefix(&parts)
            };
            self.tick.refresh_prefix(compute).unwrap();
            computed
        }

        fn actions(&mut self) -> Array3<f32> {
            let parts = &mut self.network.parts();
            Stage::ALL.into_iter().try_for_each(|stage| self.tick.run(stage, parts)).unwrap();
            self.tick.read().unwrap()
        }
    }

    #[test]
    fn the_prefix_is_computed_when_the_text_before_the_images_changes_and_only_then() {
        let one = small::inputs(1, 2, &[6]);
        let mut tick = Tick::new(&one);
        let mut after = one.clone();
        let last = after.0.input_ids.ncols() - 1;
        after.0.input_ids[(0, last)] = (after.0.input_ids[(0, last)] + 1) % 80;
        let images = other_images(&one, &small::inputs(2, 2, &[6]));
        let words = other_words(&one);
        for (inputs, due) in [
            (&one, true),
            (&one, false),
            (&images, false),
            (&after, false),
            (&words, true),
            (&words, false),
            (&one, true),
        ] {
            tick.fill(inputs);
            assert_eq!(tick.refresh(), due);
        }
    }

    #[test]
    fn the_stages_read_what_is_kept_and_do_not_compute_it_again() {
        let one = small::inputs(1, 2, &[6]);
        let words = other_words(&one);
        let mut tick = Tick::new(&one);
        tick.fill(&one);
        assert!(tick.refresh());
        let first = tick.actions();
        // As no tick of a runner does: another prompt is in place, and nobody computes its prefix.
        tick.fill(&words);
        let stale = tick.actions();
        assert!(tick.refresh());
        let second = tick.actions();
        assert!(distance(&stale, &second) > STALE);
        tick.fill(&one);
        assert!(tick.refresh());
        assert_eq!(tick.actions(), first);
    }

    #[test]
    fn a_prefix_whose_computation_failed_is_due_again() {
        let one = small::inputs(1, 2, &[6]);
        let mut tick = Tick::new(&one);
        tick.fill(&one);
        assert!(tick.refresh());
        let expected = tick.actions();
        tick.fill(&other_words(&one));
        let failed = tick.tick.refresh_prefix(|_| {
            Err(ModelError::Cuda { what: "queueing a captured graph", reason: "no device".to_owned() })
        });
        failed.unwrap_err();
        // Even for the text that was there before: nobody knows what was overwritten.
        tick.fill(&one);
        assert!(tick.refresh());
        assert_eq!(tick.actions(), expected);
    }
}
