//! attention.cu.

use tch::{Kind, Tensor};

use super::machine::{Machine, address};
use super::{HALF_ULP, attention, distance, merge_heads, normal, split_heads};
use crate::cuda::{Ahead, AttentionArguments, Kernels};

#[test]
fn attention_agrees_with_the_plain_one_for_ragged_lengths() {
    for machine in Machine::all("attention_agrees_with_the_plain_one_for_ragged_lengths") {
        let kernels = Kernels::new(&machine.gpu).unwrap();
        // Heads, their width, samples, queries, keys.
        let mut cases = vec![
            (3, 48, 1, 51, None),
            (2, 48, 1, 51, Some(37)),
            (2, 48, 1, 17, Some(1)),
            (4, 16, 2, 17, Some(170)),
            (2, 48, 1, 3, Some(400)),
            (4, 16, 1, 16, None),
            (1, 32, 2, 5, None),
            (2, 64, 2, 33, Some(162)),
            (1, 96, 1, 18, Some(20)),
            (1, 128, 1, 16, None),
        ];
        if !machine.is_emulated() {
            cases.extend([(32, 48, 1, 51, None), (32, 48, 1, 51, Some(37)), (8, 48, 1, 3, Some(400))]);
        }
        for (turn, (heads, width, samples, queries, keys)) in cases.into_iter().enumerate() {
            let kernel = kernels.attention(width as usize).unwrap();
            let columns = heads * width * if keys.is_none() { 3 } else { 1 };
            let rows = machine.take(&normal(&[samples, queries, columns], 1).to_kind(Kind::BFloat16));
            let joined = rows.to_kind(Kind::Float);
            let width_all = heads * width;
            let count = keys.unwrap_or(queries);
            // Keys and values lie among those of other blocks.
            let cross = machine.take(&normal(&[samples, count, 4 * width_all], 3).to_kind(Kind::BFloat16));
            let (k, v) = match keys {
                Some(_) => {
                    let wide = cross.to_kind(Kind::Float);
                    (wide.narrow(2, width_all, width_all), wide.narrow(2, 2 * width_all, width_all))
                }
                None => (joined.narrow(2, width_all, width_all), joined.narrow(2, 2 * width_all, width_all)),
            };
            // In a batch, the second sample has fewer keys.
            let short = if samples > 1 && keys.is_some() { count - 9 } else { count };
            let lengths = machine.take(&Tensor::from_slice(&[count as i32, short as i32]));
            let places = Tensor::arange(count, (Kind::Int, machine.device));
            let mask = places.unsqueeze(0).less_tensor(&lengths.narrow(0, 0, samples).unsqueeze(1));
            let mask = mask.reshape([samples, 1, 1, count]);
            let split = |x: &Tensor| split_heads(&x.contiguous(), heads).unwrap();
            let expected =
                attention(&split(&joined.narrow(2, 0, width_all)), &split(&k), &split(&v), Some(&mask));
            let expected = merge_heads(&expected.unwrap()).unwrap();
            let out = Tensor::full([samples, queries, width_all], f64::NAN, (Kind::BFloat16, machine.device));
            let own = keys.is_none();
            let base = address(&cross);
            let arguments = AttentionArguments {
                queries: address(&rows),
                keys: if own { address(&rows) } else { base } + 2 * width_all as u64,
                values: if own { address(&rows) } else { base } + 4 * width_all as u64,
                lengths: if own { 0 } else { address(&lengths) },
                out: address(&out),
                // Any memory will do.
                ahead: Ahead { from: address(&cross), bytes: 16 * (turn as u64 % 2) },
                columns: columns as i32,
                key_stride: if own { columns } else { 4 * width_all } as i32,
                query_count: queries as i32,
                key_count: count as i32,
                early: i32::from(!own),
                scale: (std::f64::consts::LOG2_E / (width as f64).sqrt()) as f32,
            };
            let sizes = (samples as usize, heads as usize, width as usize);
            let queue = machine.queue(turn);
            // SAFETY: tensors of the sizes that the arguments tell, alive until the result is read.
            unsafe { kernels.attend(&queue, &kernel, sizes, &arguments) }.unwrap();
            queue.finish().unwrap();
            // The weights of the softmax are rounded before they meet the values, and the result is: two roundings.
            // Values reach 5, of which the absolute part of the distance keeps a fifth.
            let worst = distance(&out, &expected);
            assert!(
                worst < 8.0 * HALF_ULP,
                "{heads} heads of {width}, {samples} x {queries} over {keys:?}: {worst}"
            );
        }
    }
}
