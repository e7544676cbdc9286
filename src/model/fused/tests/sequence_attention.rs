//! sequence_attention.cu, as the backbone's operators launch it.

use tch::{Kind, Tensor};

use super::machine::{Machine, address};
use super::{HALF_ULP, RmsNorm, distance, layout, normal, split_heads};
use crate::cuda::{
    Kernels, RotaryArguments, RotaryHeads, SequenceAttention, SequenceAttentionArguments, Strides,
};
use crate::model::operators::{BackboneOperators as _, PlainOperators, Sight};

/// Query, key and value as they lie in one product: heads of each side by side, one row per token.
fn split(joined: &Tensor, heads: [i64; 2], width: i64) -> [Tensor; 3] {
    let part =
        |first: i64, count: i64| split_heads(&joined.narrow(2, first * width, count * width), count).unwrap();
    [part(0, heads[0]), part(heads[0], heads[1]), part(heads[0] + heads[1], heads[1])]
}

/// The plain operators in f32.
fn expected(operands: &[Tensor; 3], sight: Sight, first: i64) -> Tensor {
    let [q, k, v] = operands.each_ref().map(|x| x.to_kind(Kind::Float));
    PlainOperators.attention([&q, &k, &v], sight, first).unwrap()
}

/// What the kernel may be off: the softmax's weights are rounded before they meet values up to 5, and the result is.
const BOUND: f64 = 6.0 * HALF_ULP;

#[test]
fn attention_among_patches_and_tokens_agrees_with_the_plain_one() {
    for machine in Machine::all("attention_among_patches_and_tokens_agrees_with_the_plain_one") {
        // Samples, tokens, heads of query and of key, width.
        let mut cases = vec![
            (1, 1, [1, 1], 72),
            (1, 15, [2, 2], 72),
            (2, 16, [2, 1], 16),
            (1, 17, [4, 2], 128),
            (1, 48, [3, 3], 8),
            (2, 63, [2, 2], 72),
            (1, 64, [2, 1], 24),
            (3, 65, [1, 1], 40),
            (1, 100, [3, 3], 72),
            // More tiles of keys than there is room for.
            (1, 324, [1, 1], 72),
            (1, 324, [1, 1], 128),
            (1, 530, [1, 1], 16),
        ];
        if !machine.is_emulated() {
            cases.extend([(1, 324, [16, 16], 72), (3, 324, [16, 16], 72), (1, 122, [16, 8], 128)]);
            cases.extend([(2, 284, [16, 8], 128), (1, 1024, [16, 16], 72), (1, 1500, [16, 8], 128)]);
        }
        for (turn, (samples, tokens, heads, width)) in cases.into_iter().enumerate() {
            let operators = machine.operators(turn);
            let columns = (heads[0] + 2 * heads[1]) * width;
            let joined = machine.take(&normal(&[samples, tokens, columns], 1).to_kind(Kind::BFloat16));
            let operands = split(&joined, heads, width);
            for sight in [Sight::All, Sight::Causal] {
                for first in [0, tokens / 3, tokens - 1] {
                    let found = operators.own_attention(operands.each_ref(), sight, first).unwrap();
                    let found = found.unwrap_or_else(|| panic!("heads of {width} are taken"));
                    assert_eq!(found.kind(), Kind::BFloat16);
                    let worst = distance(&found, &expected(&operands, sight, first));
                    let what = format!("{samples} x {tokens} x {heads:?} x {width}, {sight:?} from {first}");
                    assert!(worst < BOUND, "{what}: {worst}");
                }
            }
        }
    }
}

#[test]
fn a_score_far_above_the_others_takes_all_the_weight_wherever_it_stands() {
    for machine in Machine::all("a_score_far_above_the_others_takes_all_the_weight_wherever_it_stands") {
        let (tokens, width) = (150, 72);
        for (turn, key) in [0, 15, 16, 63, 64, 127, 149].into_iter().enumerate() {
            let operators = machine.operators(turn);
            let mut operands =
                [1, 2, 3].map(|seed| normal(&[1, 1, tokens, width], seed).to_kind(Kind::BFloat16));
            // Scores of some 3000, where the others reach 100: the softmax of the others underflows.
            let _ = operands[0].fill_(10.0);
            let _ = operands[1].narrow(2, key, 1).fill_(35.0);
            let operands = operands.map(|x| machine.take(&x));
            let found = operators.own_attention(operands.each_ref(), Sight::All, 0).unwrap().unwrap();
            let value =
                operands[2].narrow(2, key, 1).reshape([1, 1, width]).expand([1, tokens, width], false);
            assert_eq!(distance(&found, &value), 0.0, "key {key}");
        }
    }
}

#[test]
fn prompts_of_different_lengths_attend_as_their_mask_says() {
    for machine in Machine::all("prompts_of_different_lengths_attend_as_their_mask_says") {
        let rows = [(20, 60), (3, 41), (9, 60)];
        let layout = layout(&rows, machine.device);
        let mask = layout.causal_mask().unwrap().unwrap();
        let (heads, width, tokens) = ([4, 2], 16, 80);
        for (turn, count) in [tokens, 37, tokens].into_iter().enumerate() {
            let operators = machine.operators(turn);
            // Of the first tokens alone the mask is a part of the whole prompt's.
            let mask = mask.narrow(2, 0, count).narrow(3, 0, count);
            let joined = machine.take(&normal(&[3, count, 8 * width], 4).to_kind(Kind::BFloat16));
            let operands = split(&joined, heads, width);
            for first in [0, 21] {
                let sight = Sight::Masked(&mask);
                let found = operators.own_attention(operands.each_ref(), sight, first).unwrap().unwrap();
                let worst = distance(&found, &expected(&operands, sight, first));
                assert!(worst < BOUND, "{count} tokens from {first}: {worst}");
            }
        }
        // A query that sees no key gets zeros, not what is no number.
        let operators = machine.operators(0);
        let nothing = mask.zeros_like();
        let joined = machine.take(&normal(&[3, tokens, 8 * width], 4).to_kind(Kind::BFloat16));
        let operands = split(&joined, heads, width);
        let found =
            operators.own_attention(operands.each_ref(), Sight::Masked(&nothing), 0).unwrap().unwrap();
        assert_eq!(found.abs().max().double_value(&[]), 0.0);
    }
}

#[test]
fn attention_that_starts_while_its_operands_are_still_rotated_waits_for_them() {
    for machine in Machine::all("attention_that_starts_while_its_operands_are_still_rotated_waits_for_them") {
        let kernels = Kernels::new(&machine.gpu).unwrap();
        let (tokens, heads, width) = (70, [4, 2], 16);
        let attention = SequenceAttention::new(&machine.gpu, width as usize).unwrap();
        let bf16 = |size: &[i64], seed| machine.take(&normal(size, seed).to_kind(Kind::BFloat16));
        let joined = bf16(&[1, tokens, 8 * width], 1);
        let (cos, sin) = (bf16(&[tokens, width], 2), bf16(&[tokens, width], 3));
        let norms = [4, 5].map(|seed| RmsNorm::new(bf16(&[width], seed), 1e-6));
        let [q, k] =
            PlainOperators.norm_rotary(&joined, heads, [&norms[0], &norms[1]], (&cos, &sin)).unwrap();
        let [_, _, v] = split(&joined, heads, width);
        let expected = expected(&[q, k, v.shallow_clone()], Sight::Causal, 0);
        for turn in 0..3 {
            let room = |size: &[i64]| Tensor::full(size, f64::NAN, (Kind::BFloat16, machine.device));
            let rotated = heads.map(|heads| room(&[1, heads, tokens, width]));
            let out = room(&[1, tokens, heads[0] * width]);
            let part = |number: usize| RotaryHeads {
                weight: address(norms[number].parameters().0),
                out: address(&rotated[number]),
                heads: heads[number] as i32,
            };
            let rotation = RotaryArguments {
                input: address(&joined),
                cos: address(&cos),
                sin: address(&sin),
                query: part(0),
                key: part(1),
                stride: 8 * width,
                rows: tokens as i32,
                tokens: tokens as i32,
                width: width as i32,
                eps: 1e-6,
            };
            let by_head = Strides { sample: 0, row: width, head: tokens * width };
            let arguments = SequenceAttentionArguments {
                query: address(&rotated[0]),
                key: address(&rotated[1]),
                value: address(&v),
                mask: 0,
                out: address(&out),
                query_stride: by_head,
                key_stride: by_head,
                value_stride: Strides { sample: 0, row: 8 * width, head: width },
                mask_sample: 0,
                mask_row: 0,
                queries: tokens as i32,
                keys: tokens as i32,
                first: 0,
                group: 2,
                causal: 1,
                slots: 0,
                scale: (std::f64::consts::LOG2_E / (width as f64).sqrt()) as f32,
            };
            let queue = machine.queue(turn);
            // SAFETY: tensors of the sizes that the arguments tell, alive until the result is read.
            unsafe {
                kernels.norm_rotary(&queue, &rotation).unwrap();
                attention.attend(&queue, (1, heads[0] as usize), &arguments).unwrap();
            }
            queue.finish().unwrap();
            // Keys and queries, too, differ by a tipped rounding here and there.
            let worst = distance(&out, &expected);
            assert!(worst < 2.0 * BOUND, "{worst}");
        }
    }
}

#[test]
fn operands_that_the_kernel_does_not_take_go_the_plain_way() {
    for machine in Machine::all("operands_that_the_kernel_does_not_take_go_the_plain_way") {
        let operators = machine.operators(0);
        // A width that is no multiple of 8; values one after the other in another direction; f32.
        let odd = [1, 2, 3].map(|seed| normal(&[1, 2, 9, 12], seed).to_kind(Kind::BFloat16));
        let turned =
            [1, 2, 3].map(|seed| normal(&[1, 2, 16, 9], seed).to_kind(Kind::BFloat16).transpose(2, 3));
        let wide = [1, 2, 3].map(|seed| normal(&[1, 2, 9, 16], seed));
        for operands in [odd, turned, wide] {
            let operands = operands.map(|x| x.to_device(machine.device));
            assert!(operators.own_attention(operands.each_ref(), Sight::Causal, 2).unwrap().is_none());
            let found = operators.attention(operands.each_ref(), Sight::Causal, 2).unwrap();
            assert!(distance(&found, &expected(&operands, Sight::Causal, 2)) < BOUND);
        }
    }
}
