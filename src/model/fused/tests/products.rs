//! gemm.cu, with `finish` of elementwise.cu behind it.

use std::sync::Arc;

use tch::{Kind, Tensor};

use super::machine::{Machine, address};
use super::{ONE_ROUNDING, distance, normal, units};
use crate::cuda::{Activation, Ahead, Gemm, GemmCall, GemmShape, Gemms, Kernels, Plan, Skinny, Warpgroup};

const FINISHES: [Option<Activation>; 6] = [
    None,
    Some(Activation::GeluTanh),
    Some(Activation::Silu),
    Some(Activation::Relu),
    Some(Activation::GeluErf),
    Some(Activation::None),
];

/// The plain operator.
pub fn activated(x: &Tensor, activation: Activation) -> Tensor {
    match activation {
        Activation::None => x.shallow_clone(),
        Activation::GeluTanh => x.gelu("tanh"),
        Activation::GeluErf => x.gelu("none"),
        Activation::Relu => x.relu(),
        Activation::Silu => x.silu(),
    }
}

/// k in so many parts, or as few as whole chunks allow; every block of a cluster is there in any case.
fn plan(skinny: Skinny, k: usize, parts: usize, prefetch: bool) -> Plan {
    let split = k.div_ceil(parts).next_multiple_of(skinny.chunk());
    let depth = if skinny.cluster > 1 { skinny.cluster } else { k.div_ceil(split) };
    Plan::Own { skinny, split, depth, prefetch }
}

#[test]
fn every_shape_of_the_product_agrees_with_the_plain_one() {
    for machine in Machine::all("every_shape_of_the_product_agrees_with_the_plain_one") {
        // Rows in one and in two blocks of tokens, columns and k that fill no block and chunk.
        let mut cases = vec![(35, 192, 520), (72, 52, 264)];
        let mut shapes = Vec::new();
        for (i, shape) in Skinny::ALL.into_iter().enumerate() {
            shapes.extend([shape, shape.in_clusters(Skinny::CLUSTERS[i % Skinny::CLUSTERS.len()])]);
        }
        if !machine.is_emulated() {
            cases.extend([(51, 1536, 1536), (17, 192, 520), (120, 144, 256)]);
        }
        let tried = check(&machine, machine.gemms(shapes, [], &[5]), &cases);
        assert!(tried > 100, "{tried}");
    }
}

#[test]
fn products_of_a_few_rows_agree_with_the_plain_ones() {
    for machine in Machine::all("products_of_a_few_rows_agree_with_the_plain_ones") {
        // The first shape in every size of cluster, and the widest.
        let shapes = [1, 2, 4, 8].map(|cluster| Skinny::ALL[0].in_clusters(cluster));
        let gemms = machine.gemms(shapes.into_iter().chain([Skinny::ALL[13].in_clusters(8)]), [], &[1, 2]);
        let tried = check(&machine, gemms, &[(3, 100, 24), (1, 4, 1032), (16, 36, 8)]);
        assert!(tried > 40, "{tried}");
    }
}

#[test]
fn every_shape_of_hopper_s_product_agrees_with_the_plain_one() {
    for machine in Machine::all("every_shape_of_hopper_s_product_agrees_with_the_plain_one") {
        let mut cases = vec![(35, 200, 1160), (72, 52, 1032)];
        let mut groups = Vec::new();
        for (i, shape) in Warpgroup::ALL.into_iter().enumerate() {
            groups.extend([shape, shape.in_clusters(Warpgroup::CLUSTERS[i % Warpgroup::CLUSTERS.len()])]);
        }
        if !machine.is_emulated() {
            cases.extend([(51, 1536, 1536), (17, 192, 520), (120, 144, 256), (3, 100, 24)]);
        }
        let least = 2 * groups.len();
        let tried = check(&machine, machine.gemms([], groups, &[]), &cases);
        // Each shape in each case at least once.
        assert!(tried >= least, "{tried} of {least}");
    }
}

/// Each compiled shape in one and two parts, with every end; how many were tried.
fn check(machine: &Machine, mut gemms: Gemms, cases: &[(i64, i64, i64)]) -> usize {
    let kernels = Kernels::new(&machine.gpu).unwrap();
    let (mut tried, mut turn) = (0, 0);
    for &(rows, n, k) in cases {
        let x = machine.take(&normal(&[rows, k], 1).to_kind(Kind::BFloat16));
        let w = machine.take(&(normal(&[n, k], 2) * 0.05).to_kind(Kind::BFloat16));
        let bias = machine.take(&normal(&[n], 3).to_kind(Kind::BFloat16));
        let wide_bias = bias.to_kind(Kind::Float);
        let exact = x.to_kind(Kind::Float).matmul(&w.to_kind(Kind::Float).transpose(0, 1));
        let biased = &exact + &wide_bias;
        let shape = |finish| GemmShape { rows: rows as usize, n: n as usize, k: k as usize, finish };
        let mut ways = Vec::new();
        for skinny in gemms.compiled(rows as usize).unwrap() {
            let parts: &[_] =
                if skinny.cluster > 1 { &[(skinny.cluster, false)] } else { &[(1, false), (2, true)] };
            for &(parts, prefetch) in parts {
                turn += 1;
                for (i, finish) in FINISHES.into_iter().enumerate() {
                    // Emulated they take turns, but for the first shape's.
                    if !machine.is_emulated() || i == turn % FINISHES.len() || skinny == Skinny::ALL[0] {
                        let plan = plan(skinny, k as usize, parts, prefetch);
                        ways.push(Arc::new(Gemm { shape: shape(finish), plan }));
                    }
                }
            }
        }
        for (turn, group) in gemms.compiled_warpgroups(rows as usize).into_iter().enumerate() {
            // Alone and twice; with k that is left over, and more blocks than k has chunks for.
            for parts in [1, 2] {
                let depth = group.cluster * parts;
                let split = (k as usize).div_ceil(group.chunk()).div_ceil(depth) * group.chunk();
                let plan = || Plan::Warpgroup { shape: group, split, depth };
                let finish = FINISHES[turn % FINISHES.len()].filter(|_| parts == 1);
                if split * (depth - 1) < k as usize {
                    ways.push(Arc::new(Gemm { shape: shape(finish), plan: plan() }));
                }
            }
        }
        if !machine.is_emulated() {
            ways.extend(FINISHES.map(|finish| gemms.tuned(&kernels, shape(finish)).unwrap()));
        }
        for gemm in ways {
            let options = |kind| (kind, machine.device);
            let parts = Tensor::full([gemm.plan.parts() as i64, rows, n], f64::NAN, options(Kind::Float));
            let out = Tensor::full([rows, n], f64::NAN, options(Kind::BFloat16));
            let finish = gemm.shape.finish;
            let call = GemmCall {
                activations: address(&x),
                weight: address(&w),
                bias: address(&wide_bias),
                bias_bf16: address(&bias),
                out: address(if finish.is_some() { &out } else { &parts }),
                parts: address(&parts),
                // Any memory will do.
                ahead: Ahead { from: address(&w), bytes: (2 * n * k) as u64 / 16 * 16 * (tried as u64 % 2) },
            };
            tried += 1;
            let queue = machine.queue(tried);
            // SAFETY: tensors of the sizes of the shape, alive until the result is read.
            unsafe { gemms.multiply(&kernels, &queue, &gemm, &call) }.unwrap();
            queue.finish().unwrap();
            let (worst, bound) = match finish {
                // f32 throughout: sums of k products of values around 0.05 in another order.
                None => {
                    let sum = parts.sum_dim_intlist([0i64].as_slice(), false, Kind::Float);
                    (distance(&sum, &exact), 1e-4)
                }
                Some(activation) => (units(&out, &activated(&biased, activation)), ONE_ROUNDING),
            };
            assert!(worst < bound, "{}, {}: {worst}", gemm.shape, gemm.plan.name());
        }
    }
    tried
}
