//! sequence_attention.cu, as the backbone's operators launch it.

use tch::{Kind, Tensor};

use super::machine::Machine;
use super::{HALF_ULP, distance, layout, normal, split_heads};
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
