//! The backbone's kernels of norm.cu and elementwise.cu, as its operators launch them.

use tch::{Kind, Tensor};

use super::machine::Machine;
use super::{HALF_ULP, ONE_ROUNDING, RmsNorm, distance, mean_square, normal, units};
use crate::{
    cuda::Activation,
    model::{
        layers::LayerNorm,
        operators::{BackboneOperators, PlainOperators},
        probe::Probe,
        small,
        tick::{Parts, TickInputs, runner::TickRunner},
        trial::{Trial, agree},
    },
};

/// The part of the values that are not the same: where each rounding is in its place, those that f32's own tipped.
fn differing(a: &Tensor, b: &Tensor) -> f64 {
    a.ne_tensor(b).to_kind(Kind::Double).mean(Kind::Double).double_value(&[])
}

#[test]
fn the_backbone_s_operators_agree_with_the_plain_ones() {
    for machine in Machine::all("the_backbone_s_operators_agree_with_the_plain_ones") {
        let bf16 = |size: &[i64], seed| machine.take(&normal(size, seed).to_kind(Kind::BFloat16));
        // One, two and three passes of a row.
        let mut cases = vec![(5, 64), (3, 1152), (2, 4608), (1, 8192), (1, 52)];
        if !machine.is_emulated() {
            cases.extend([(51, 2048), (170, 4608)]);
        }
        for (turn, (rows, width)) in cases.into_iter().enumerate() {
            let operators = machine.operators(turn);
            let (x, y) = (bf16(&[1, rows, width], 1), bf16(&[1, rows, width], 2));
            let (weight, bias) = (bf16(&[width], 3), bf16(&[width], 4));
            let sum = &x + &y;
            let norm = RmsNorm::new(weight.shallow_clone(), 1e-6);
            let centred = LayerNorm::new(weight.shallow_clone(), bias.shallow_clone(), 1e-6);
            for addend in [None, Some(&y)] {
                let input = if addend.is_some() { &sum } else { &x };
                let mut residual = x.copy();
                let found = operators.rms_norm(&mut residual, addend, &norm).unwrap();
                assert_eq!(distance(&residual, input), 0.0, "residual of {rows} x {width}");
                // The same roundings in the same places; the mean's last f32 digit may tip one of them: a unit of bf16's
                // last place twice.
                let expected = norm.forward(input).unwrap();
                let worst = distance(&found, &expected);
                assert!(worst <= 4.0 * HALF_ULP, "RMSNorm {rows} x {width}: {worst}");
                assert!(differing(&found, &expected) <= 0.02, "roundings of RMSNorm {rows} x {width}");
                let mut residual = x.copy();
                let found = operators.layer_norm(&mut residual, addend, &centred).unwrap();
                assert_eq!(distance(&residual, input), 0.0, "residual of {rows} x {width}");
                let wide = |x: &Tensor| x.to_kind(Kind::Float);
                let expected =
                    wide(input).layer_norm([width], Some(&wide(&weight)), Some(&wide(&bias)), 1e-6, false);
                let worst = units(&found, &expected);
                assert!(worst < ONE_ROUNDING, "LayerNorm {rows} x {width}: {worst}");
            }
            let gate = bf16(&[1, rows, 2 * width], 5);
            let found = operators.swiglu(&gate).unwrap();
            let expected = gate.narrow(2, 0, width).silu() * gate.narrow(2, width, width);
            assert!(distance(&found, &expected) <= 4.0 * HALF_ULP, "SwiGLU {rows} x {width}");
            assert!(differing(&found, &expected) <= 0.02, "roundings of SwiGLU {rows} x {width}");
            for (activation, name) in [(Activation::GeluTanh, "tanh"), (Activation::GeluErf, "none")] {
                let found = operators.bias_activation(&x, Some(&bias), activation).unwrap();
                let expected = (&x + &bias).to_kind(Kind::Float).gelu(name);
                assert!(units(&found, &expected) < ONE_ROUNDING, "GELU {name} {rows} x {width}");
            }
            let found = operators.bias_activation(&x, None, Activation::Silu).unwrap();
            let expected = x.to_kind(Kind::Float).silu();
            assert!(units(&found, &expected) < ONE_ROUNDING, "SiLU {rows} x {width}");
        }
        for (turn, (samples, tokens, heads, width)) in
            [(1, 51, 3, 128), (2, 37, 2, 128), (1, 1, 1, 64), (1, 5, 2, 256)].into_iter().enumerate()
        {
            let operators = machine.operators(turn);
            // Fewer heads of keys than of queries, and what is not rotated behind them.
            let key_heads = i64::max(heads / 2, 1);
            let x = bf16(&[samples, tokens, (heads + key_heads) * width + 256], 6);
            let (cos, sin) = (bf16(&[tokens, width], 8), bf16(&[tokens, width], 9));
            let norms = [7, 10].map(|seed| RmsNorm::new(bf16(&[width], seed), 1e-6));
            let all = [heads, key_heads];
            let found = operators.norm_rotary(&x, all, [&norms[0], &norms[1]], (&cos, &sin)).unwrap();
            for (part, (first, heads)) in [(0, heads), (heads, key_heads)].into_iter().enumerate() {
                let split = x.narrow(2, first * width, heads * width);
                let split = split.reshape([samples, tokens, heads, width]);
                let normed = norms[part].forward(&split).unwrap().transpose(1, 2);
                let half = width / 2;
                let turned = Tensor::cat(&[-normed.narrow(-1, half, half), normed.narrow(-1, 0, half)], -1);
                let expected = &normed * &cos + &turned * &sin;
                // Products of values up to 4 cancel: a tipped rounding of each shows against 1 in the distance.
                let worst = distance(&found[part], &expected);
                let what = format!("{samples} x {tokens} x {heads} x {width}, part {part}");
                assert!(worst < 16.0 * HALF_ULP, "rotation {what}: {worst}");
                assert!(differing(&found[part], &expected) <= 0.02, "roundings of {what}");
            }
        }
    }
}

#[test]
fn patches_are_those_of_the_plain_operators_bit_by_bit_with_zeros_behind_them() {
    for machine in Machine::all("patches_are_those_of_the_plain_operators") {
        for (turn, (images, rows, columns, side, width)) in
            [(1, 2, 3, 14, 592), (3, 4, 2, 14, 588), (2, 2, 2, 4, 48), (1, 1, 5, 2, 16)]
                .into_iter()
                .enumerate()
        {
            let operators = machine.operators(turn);
            tch::manual_seed(turn as i64);
            let size = [images, rows * side, columns * side, 3];
            let frames = Tensor::randint(256, size, (Kind::Uint8, tch::Device::Cpu));
            let expected = PlainOperators.patches(&frames, side, width, Kind::BFloat16).unwrap();
            assert_eq!(expected.size(), [images, rows * columns, width]);
            let found = operators.patches(&machine.take(&frames), side, width, Kind::BFloat16).unwrap();
            assert_eq!(differing(&found.to_device(tch::Device::Cpu), &expected), 0.0);
            let wide = operators.patches(&machine.take(&frames), side, width, Kind::Float).unwrap();
            assert_eq!(wide.kind(), Kind::Float);
        }
    }
}

#[test]
fn the_whole_backbone_on_fused_operators_gives_the_plain_features() {
    let (model, eagle) = small::configs();
    let trial = Trial::new(&model, &eagle);
    let mut network = small::network(Kind::BFloat16);
    let (features, layout) = trial.features(network.backbone()).unwrap();
    let exact = trial.features(small::network(Kind::Float).backbone()).unwrap().0;
    let joined = trial.joined_features(network.backbone(), &layout, &PlainOperators).unwrap();
    let Some(machine) = Machine::all("the_whole_backbone").into_iter().find(Machine::is_emulated) else {
        panic!("the emulated GPU is always there")
    };
    let operators = machine.operators(0);
    let fused = trial.joined_features(network.backbone(), &layout, &operators).unwrap();
    let cosine = agree("fused operators", &fused, &features).unwrap();
    // As near to f32 as libtorch's own operators are, which round more often.
    let error = |found: &Tensor| mean_square(found, &exact);
    assert!(error(&fused) < 1.2 * error(&joined), "{} against {}", error(&fused), error(&joined));
    assert!(cosine > 0.9999, "{cosine}");
}

#[test]
fn whole_ticks_on_fused_operators_are_as_near_to_f32_as_on_plain_ones_with_and_without_a_kept_prefix() {
    let Some(machine) = Machine::all("whole_ticks").into_iter().find(Machine::is_emulated) else {
        panic!("the emulated GPU is always there")
    };
    // One prompt; a batch of prompts of different lengths, padded.
    for (turn, texts) in [&[9][..], &[5, 8]].into_iter().enumerate() {
        let (model, noise) = small::inputs(1, 2, texts);
        let mut exact = small::network(Kind::Float);
        let exact = exact.run(&model, noise.view(), None, &mut Probe::off()).unwrap().0;
        let mut network = small::network(Kind::BFloat16);
        let mut error = |operators: &dyn BackboneOperators, reuse: bool| {
            let mut runner = TickRunner::plain();
            runner.set_prefix_reuse(reuse);
            let inputs = TickInputs { model: &model, noise: noise.view(), guidance: None, images: None };
            let parts = &mut Parts { operators: Some(operators), ..network.parts() };
            let first = runner.run(&inputs, parts).unwrap().0;
            assert_eq!(runner.run(&inputs, parts).unwrap().0, first);
            (&first - &exact).mapv(|x| x * x).mean().unwrap().sqrt()
        };
        let plain = error(&PlainOperators, false);
        for reuse in [false, true] {
            let found = error(&machine.operators(turn), reuse);
            assert!(found < 1.5 * plain, "{texts:?}, prefix kept: {reuse}: {found} against {plain}");
        }
    }
}
