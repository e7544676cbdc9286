//! The denoising step's kernels of norm.cu.

use tch::{Kind, Tensor};

use super::machine::{Machine, address};
use super::{ONE_ROUNDING, distance, normal, plain_layer_norm, units};
use crate::cuda::{Kernels, NormArguments, StartArguments};

#[test]
fn residual_and_adaptive_norm_agree_with_the_plain_ones() {
    for machine in Machine::all("residual_and_adaptive_norm_agree_with_the_plain_ones") {
        let kernels = Kernels::new(&machine.gpu).unwrap();
        // Samples, tokens, the normed ones among them, width, parts of the addend.
        let cases = [
            (1, 5, (0, 5), 64, 1),
            (2, 5, (1, 4), 1536, 6),
            (2, 3, (2, 1), 2052, 4),
            (1, 2, (0, 2), 6144, 0),
            (1, 1, (0, 1), 36, 3),
        ];
        for (turn, (samples, tokens, (first, count), width, splits)) in cases.into_iter().enumerate() {
            let before = machine.take(&normal(&[samples, tokens, width], 1));
            let parts = machine.take(&normal(&[splits.max(1), samples, tokens, width], 2));
            let [bias, multiply, add] = [3, 4, 5].map(|seed| machine.take(&normal(&[width], seed)));
            for options in 0..4 {
                let (plain, keep) = (options % 2 == 0, options / 2 == 0);
                let residual = before.copy();
                let out = Tensor::full([samples, count, width], f64::NAN, (Kind::BFloat16, machine.device));
                let arguments = NormArguments {
                    residual: address(&residual),
                    parts: if splits == 0 { 0 } else { address(&parts) },
                    bias: if plain { 0 } else { address(&bias) },
                    multiply: if plain { 0 } else { address(&multiply) },
                    add: if plain { 0 } else { address(&add) },
                    out: address(&out),
                    part_stride: samples * tokens * width,
                    splits: splits as i32,
                    width: width as i32,
                    tokens: tokens as i32,
                    first: first as i32,
                    count: count as i32,
                    keep: i32::from(keep),
                    eps: 1e-5,
                };
                let queue = machine.queue(turn + options);
                // SAFETY: tensors of the sizes that the arguments tell, alive until the result is read.
                unsafe { kernels.residual_norm(&queue, samples as usize, &arguments) }.unwrap();
                queue.finish().unwrap();

                let mut sum = before.copy();
                if splits > 0 {
                    let added = parts.sum_dim_intlist([0i64].as_slice(), false, Kind::Float);
                    sum += if plain { added } else { added + &bias };
                }
                let window = |x: &Tensor| x.narrow(1, first, count);
                let what = format!("{samples} x {tokens} x {width}, {splits} parts, {plain} {keep}");
                let kept = if keep { &sum } else { &before };
                assert!(distance(&window(&residual), &window(kept)) < 1e-5, "residual of {what}");
                let mut outside = residual.copy();
                window(&outside).copy_(&window(&before));
                outside -= &before;
                assert_eq!(outside.abs().max().double_value(&[]), 0.0, "rows beside the window of {what}");
                let normed = plain_layer_norm(&window(&sum), 1e-5).unwrap();
                let expected = if plain { normed } else { normed * &multiply + &add };
                // f32 until the result is rounded, and a little for the order of sums.
                let worst = units(&out, &expected);
                assert!(worst < ONE_ROUNDING, "norm of {what}: {worst}");
            }
        }
    }
}

#[test]
fn the_first_norm_agrees_with_the_plain_one() {
    for machine in Machine::all("the_first_norm_agrees_with_the_plain_one") {
        let kernels = Kernels::new(&machine.gpu).unwrap();
        // Samples, states, horizon, width, parts of the action tokens, whether they have positions.
        let cases = [(1, 1, 4, 64, 1, true), (2, 1, 3, 1536, 5, false), (2, 2, 1, 2052, 2, true)];
        for (turn, (samples, states, horizon, width, splits, placed)) in cases.into_iter().enumerate() {
            let state = machine.take(&normal(&[samples, states, width], 1).to_kind(Kind::BFloat16));
            let parts = machine.take(&normal(&[splits, samples, horizon, width], 2));
            let [bias, multiply, add] = [3, 4, 5].map(|seed| machine.take(&normal(&[width], seed)));
            let positions = machine.take(&normal(&[horizon, width], 6));
            let size = [samples, states + horizon, width];
            let residual = Tensor::full(size, f64::NAN, (Kind::Float, machine.device));
            let out = Tensor::full(size, f64::NAN, (Kind::BFloat16, machine.device));
            let arguments = StartArguments {
                residual: address(&residual),
                states: address(&state),
                parts: address(&parts),
                bias: address(&bias),
                positions: if placed { address(&positions) } else { 0 },
                multiply: address(&multiply),
                add: address(&add),
                out: address(&out),
                part_stride: samples * horizon * width,
                splits: splits as i32,
                width: width as i32,
                state_count: states as i32,
                horizon: horizon as i32,
                eps: 1e-5,
            };
            let queue = machine.queue(turn);
            // SAFETY: tensors of the sizes that the arguments tell, alive until the result is read.
            unsafe { kernels.start_norm(&queue, samples as usize, &arguments) }.unwrap();
            queue.finish().unwrap();

            let mut actions = parts.sum_dim_intlist([0i64].as_slice(), false, Kind::Float) + &bias;
            if placed {
                actions += &positions;
            }
            let tokens = Tensor::cat(&[state.to_kind(Kind::Float), actions], 1);
            let what = format!("{samples} x ({states} + {horizon}) x {width}");
            assert!(distance(&residual, &tokens) < 1e-5, "residual of {what}");
            let expected = plain_layer_norm(&tokens, 1e-5).unwrap() * &multiply + &add;
            let worst = units(&out, &expected);
            assert!(worst < ONE_ROUNDING, "norm of {what}: {worst}");
        }
    }
}
