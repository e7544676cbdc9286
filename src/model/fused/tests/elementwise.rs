//! The denoising step's kernels of elementwise.cu.

use tch::{Kind, Tensor};

use super::machine::{Machine, address};
use super::products::activated;
use super::{ONE_ROUNDING, distance, normal, units};
use crate::cuda::{Activation, EulerArguments, FinishArguments, Kernels};

#[test]
fn a_step_of_the_integration_adds_the_velocity_and_rounds_a_copy() {
    for machine in Machine::all("a_step_of_the_integration_adds_the_velocity_and_rounds_a_copy") {
        let kernels = Kernels::new(&machine.gpu).unwrap();
        for (turn, (rows, dim, columns, padded, splits)) in
            [(3, 20, 24, 24, 5), (50, 128, 128, 128, 1), (1, 4, 8, 16, 4)].into_iter().enumerate()
        {
            let noise = machine.take(&normal(&[rows, dim], 1));
            let parts = machine.take(&normal(&[splits, rows, columns], 2));
            let bias = machine.take(&normal(&[columns], 3));
            let nan = |size: [i64; 2], kind| Tensor::full(size, f64::NAN, (kind, machine.device));
            let actions = nan([rows, dim], Kind::Float);
            let velocity = nan([rows, dim], Kind::Float);
            let rounded = nan([rows, padded], Kind::BFloat16);
            let arguments = EulerArguments {
                noise: address(&noise),
                actions: address(&actions),
                parts: 0,
                bias: address(&bias),
                velocity: 0,
                rounded: address(&rounded),
                part_stride: rows * columns,
                splits: splits as i32,
                rows: rows as i32,
                dim: dim as i32,
                columns: columns as i32,
                padded: padded as i32,
                factor: 0.25,
            };
            let check = |expected: &Tensor, bound: f64, what: &str| {
                assert!(distance(&actions, expected) <= bound, "{what}: {rows} x {dim}");
                let padded = actions.constant_pad_nd([0, padded - dim]).to_kind(Kind::BFloat16);
                assert_eq!(distance(&rounded, &padded), 0.0, "{what}, rounded: {rows} x {dim}");
            };
            let run = |arguments: &EulerArguments| {
                let queue = machine.queue(turn);
                // SAFETY: tensors of the sizes that the arguments tell, alive until the result is read.
                unsafe { kernels.euler(&queue, arguments) }.unwrap();
                queue.finish().unwrap();
            };
            run(&arguments);
            check(&noise, 0.0, "start");
            let sum = parts.sum_dim_intlist([0i64].as_slice(), false, Kind::Float) + &bias;
            let sum = sum.narrow(1, 0, dim);
            run(&EulerArguments { noise: 0, parts: address(&parts), ..arguments });
            check(&(&noise + &sum * 0.25), 1e-6, "step");
            assert!(velocity.isnan().all().int64_value(&[]) == 1, "a velocity that nobody asked for");
            // With noise again: the first step of all, kept.
            run(&EulerArguments { parts: address(&parts), velocity: address(&velocity), ..arguments });
            check(&(&noise + &sum * 0.25), 1e-6, "step from noise");
            assert!(distance(&velocity, &sum) < 1e-6, "velocity: {rows} x {dim}");
        }
    }
}

#[test]
fn a_split_product_ends_as_the_plain_operators_do() {
    for machine in Machine::all("a_split_product_ends_as_the_plain_operators_do") {
        let kernels = Kernels::new(&machine.gpu).unwrap();
        let all =
            [Activation::None, Activation::GeluTanh, Activation::Relu, Activation::Silu, Activation::GeluErf];
        for (turn, (rows, columns, splits)) in
            [(3, 100, 16), (17, 64, 1), (5, 516, 7)].into_iter().enumerate()
        {
            let parts = machine.take(&normal(&[splits, rows, columns], 1));
            let bias = machine.take(&normal(&[columns], 2));
            for (i, activation) in all.into_iter().enumerate() {
                let biased = i != 2;
                let out = Tensor::full([rows, columns], f64::NAN, (Kind::BFloat16, machine.device));
                let arguments = FinishArguments {
                    parts: address(&parts),
                    bias: if biased { address(&bias) } else { 0 },
                    out: address(&out),
                    part_stride: rows * columns,
                    count: rows * columns,
                    splits: splits as i32,
                    columns: columns as i32,
                    activation: activation as i32,
                };
                let queue = machine.queue(turn + i);
                // SAFETY: tensors of the sizes that the arguments tell, alive until the result is read.
                unsafe { kernels.finish(&queue, &arguments) }.unwrap();
                queue.finish().unwrap();
                let sum = parts.sum_dim_intlist([0i64].as_slice(), false, Kind::Float);
                let expected = activated(&if biased { sum + &bias } else { sum }, activation);
                let worst = units(&out, &expected);
                assert!(worst < ONE_ROUNDING, "{activation:?} of {splits} x {rows} x {columns}: {worst}");
            }
        }
    }
}

#[test]
fn what_timings_are_made_with_is_spread_evenly_and_differs_by_seed() {
    for machine in Machine::all("what_timings_are_made_with_is_spread_evenly_and_differs_by_seed") {
        let kernels = Kernels::new(&machine.gpu).unwrap();
        let [a, b] = [1, 2].map(|seed| {
            let out = Tensor::full([5001], f64::NAN, (Kind::BFloat16, machine.device));
            let queue = machine.queue(seed as usize);
            // SAFETY: as many values as the tensor holds.
            unsafe { kernels.fill(&queue, address(&out), 5001, seed, 0.5) }.unwrap();
            queue.finish().unwrap();
            out.to_kind(Kind::Double)
        });
        for values in [&a, &b] {
            // Even in ±0.5: a deviation of 0.5 / √3.
            assert!(values.abs().max().double_value(&[]) <= 0.5);
            assert!(values.mean(Kind::Double).double_value(&[]).abs() < 0.02);
            assert!((values.std(true).double_value(&[]) - 0.2887).abs() < 0.01);
        }
        assert!(distance(&a, &b) > 0.1);
    }
}
