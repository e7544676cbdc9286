//! The backbone's products by cuBLASLt: they need a real GPU; the emulated one has none.

use tch::{Kind, Tensor};

use super::machine::Machine;
use super::normal;
use crate::model::{
    layers::{JoinedLinear, Loader},
    operators::{BackboneOperators, PlainOperators},
    random::RandomWeights,
    small,
};

/// The largest difference, in parts of the value and of the root mean square of all.
fn apart(found: &Tensor, expected: &Tensor) -> f64 {
    let wide = |x: &Tensor| x.to_kind(Kind::Double);
    let (found, expected) = (wide(found), wide(expected));
    let spread = expected.square().mean(Kind::Double).sqrt();
    ((&found - &expected).abs() / (expected.abs() + spread)).max().double_value(&[])
}

#[test]
fn products_of_sizes_that_were_tuned_are_libtorch_s_but_for_rounding_and_others_are_left_to_it() {
    let (model, eagle) = small::configs();
    let weights = RandomWeights::new(&model, &eagle, 5);
    for machine in Machine::all("products_of_sizes_that_were_tuned") {
        let at = Loader::new(&weights, machine.device, Kind::BFloat16).at("backbone.model");
        let layer = at.at("vision_model.vision_model.encoder.layers.0");
        let attn = layer.at("self_attn");
        let parts = [&attn.at("q_proj"), &attn.at("k_proj"), &attn.at("v_proj")];
        let (with_bias, _) = JoinedLinear::load(parts).unwrap();
        let mlp = at.at("language_model.model.layers.0.mlp");
        let (without, _) =
            JoinedLinear::load_without_bias([&mlp.at("gate_proj"), &mlp.at("up_proj")]).unwrap();
        let operators = machine.operators(0);
        let bf16 =
            |rows: i64, columns: i64| machine.take(&normal(&[1, rows, columns], 1).to_kind(Kind::BFloat16));
        for (linear, gelu) in [(with_bias.all(), false), (with_bias.all(), true), (without.all(), false)] {
            let (n, k) = linear.weight().size2().unwrap();
            let x = bf16(48, k);
            let run = |x: &Tensor, operators: &dyn BackboneOperators| {
                let product =
                    if gelu { operators.linear_gelu(x, linear) } else { operators.linear(x, linear) };
                product.unwrap()
            };
            let expected = run(&x, &PlainOperators);
            let own = |x: &Tensor| operators.own_product(x, linear, gelu, None).unwrap();
            // Four roundings to bf16.
            let close = |found: &Tensor| apart(found, &expected) < 1.0 / 64.0;
            assert!(own(&x).is_none() && close(&run(&x, &operators)), "before it is tuned");
            operators.allow_tuning(true);
            assert!(close(&run(&x, &operators)), "while it is tuned");
            operators.allow_tuning(false);
            let found = own(&x);
            assert_eq!(found.is_some(), !machine.is_emulated(), "{n} x {k}, GELU {gelu}");
            assert!(close(&found.unwrap_or_else(|| run(&x, &operators))), "after it");
            let longer = bf16(49, k);
            assert!(own(&longer).is_none(), "another number of rows");
            assert!(apart(&run(&longer, &operators), &run(&longer, &PlainOperators)) < 1.0 / 64.0);
            if !gelu {
                // Rows out of the middle of a tensor, as a kept prefix has them, wherever they begin.
                for first in [0, 1, 64] {
                    let room =
                        machine.take(&Tensor::full([1, 200, n], f64::NAN, (Kind::BFloat16, machine.device)));
                    operators.linear_into(&x, linear, &mut room.narrow(1, first, 48)).unwrap();
                    assert!(close(&room.narrow(1, first, 48)), "from row {first}");
                    let written = room.isfinite().sum(Kind::Int64).int64_value(&[]);
                    assert_eq!(written, 48 * n, "nothing beside them");
                }
            }
        }
    }
}
