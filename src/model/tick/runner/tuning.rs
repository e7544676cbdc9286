//! When operators may tune.

use std::cell::{Cell, RefCell};

use tch::{Kind, Tensor};

use super::super::{Parts, TickInputs};
use super::TickRunner;
use crate::model::{
    ModelError,
    layers::{LayerNorm, Linear, RmsNorm},
    operators::{BackboneOperators, PlainOperators, Sight},
    small,
};

/// Plain operators that note at each product whether it might be tuned.
#[derive(Default)]
struct Watched {
    allowed: Cell<bool>,
    noted: RefCell<Vec<bool>>,
}

impl Watched {
    fn note(&self) {
        self.noted.borrow_mut().push(self.allowed.get());
    }
}

impl BackboneOperators for Watched {
    fn identity(&self) -> String {
        "watched".to_owned()
    }

    fn allow_tuning(&self, allowed: bool) {
        self.allowed.set(allowed);
    }

    fn patches(&self, frames: &Tensor, side: i64, columns: i64, kind: Kind) -> Result<Tensor, ModelError> {
        PlainOperators.patches(frames, side, columns, kind)
    }

    fn layer_norm(
        &self,
        x: &mut Tensor,
        addend: Option<&Tensor>,
        norm: &LayerNorm,
    ) -> Result<Tensor, ModelError> {
        PlainOperators.layer_norm(x, addend, norm)
    }

    fn rms_norm(
        &self,
        x: &mut Tensor,
        addend: Option<&Tensor>,
        norm: &RmsNorm,
    ) -> Result<Tensor, ModelError> {
        PlainOperators.rms_norm(x, addend, norm)
    }

    fn norm_rotary(
        &self,
        x: &Tensor,
        heads: [i64; 2],
        norms: [&RmsNorm; 2],
        tables: (&Tensor, &Tensor),
    ) -> Result<[Tensor; 2], ModelError> {
        PlainOperators.norm_rotary(x, heads, norms, tables)
    }

    fn attention(&self, operands: [&Tensor; 3], sight: Sight, first: i64) -> Result<Tensor, ModelError> {
        PlainOperators.attention(operands, sight, first)
    }

    fn swiglu(&self, joined: &Tensor) -> Result<Tensor, ModelError> {
        PlainOperators.swiglu(joined)
    }

    fn linear(&self, x: &Tensor, linear: &Linear) -> Result<Tensor, ModelError> {
        self.note();
        PlainOperators.linear(x, linear)
    }

    fn linear_into(&self, x: &Tensor, linear: &Linear, out: &mut Tensor) -> Result<(), ModelError> {
        self.note();
        PlainOperators.linear_into(x, linear, out)
    }

    fn linear_gelu(&self, x: &Tensor, linear: &Linear) -> Result<Tensor, ModelError> {
        self.note();
        PlainOperators.linear_gelu(x, linear)
    }
}

#[test]
fn products_may_be_tuned_in_the_first_tick_and_not_when_a_prompt_of_another_length_comes() {
    let mut network = small::network(Kind::Float);
    let mut runner = TickRunner::plain();
    let operators = Watched::default();
    let mut run = |runner: &mut TickRunner, text, broken: bool| {
        let (mut model, noise) = small::inputs(1, 1, &[text]);
        if broken {
            model.state.fill(f32::NAN);
        }
        let inputs = TickInputs { model: &model, noise: noise.view(), guidance: None, images: None };
        let parts = &mut Parts { operators: Some(&operators), ..network.parts() };
        assert_eq!(runner.run(&inputs, parts).is_err(), broken);
        let noted = operators.noted.take();
        assert!(!noted.is_empty() && noted.iter().all(|allowed| *allowed == noted[0]));
        assert!(!operators.allowed.get());
        noted[0]
    };
    // A tick that gave nothing does not count.
    assert!(run(&mut runner, 6, true));
    assert!(run(&mut runner, 6, false));
    for text in [6, 9, 6] {
        assert!(!run(&mut runner, text, false), "{text}");
    }
    // What was let go starts anew, as for another mode.
    runner.set_prefix_reuse(true);
    assert!(run(&mut runner, 9, false));
    assert!(!run(&mut runner, 6, false));
}
