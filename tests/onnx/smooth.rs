//! Smoothing: the same numbers from a graph that rounds better.

use std::collections::BTreeMap;

use groot_policy::engine::calibration::smoothing;
use groot_policy::onnx::quantise::quantise;
use groot_policy::onnx::smooth::smooth;
use groot_policy::onnx::{ElementType, Graph, Source};
use ndarray::{Array2, ArrayD, Ix2};

use crate::runner::{Runner, array, floats};

const ROWS: usize = 24;
const INPUTS: usize = 16;
const OUTPUTS: usize = 12;

/// Deterministic values between −1 and 1 without structure.
fn values(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919 + seed * 104_729) as f32 * 0.618_034).sin()).collect()
}

/// x·W, with a norm of constant scale before it or without.
fn product<'w>(normed: bool) -> Graph<'w> {
    let mut graph = Graph::new("product");
    let x = graph.input("x", ElementType::F32, [ROWS.into(), INPUTS.into()]).unwrap();
    let constant = |graph: &mut Graph<'w>, name: &str, shape: &[usize], seed| {
        let source = Source::Values(values(shape.iter().product(), seed));
        graph.initializer(name, ElementType::F32, shape, source).unwrap()
    };
    let weight = constant(&mut graph, "weight", &[INPUTS, OUTPUTS], 1);
    let x = if normed {
        let (scale, bias) =
            (constant(&mut graph, "s", &[INPUTS], 2), constant(&mut graph, "b", &[INPUTS], 3));
        graph.layer_normalization(x, scale, Some(bias), 1e-5).unwrap()
    } else {
        x
    };
    let y = graph.matmul(x, weight).unwrap();
    graph.output("y", y).unwrap();
    graph
}

/// Activations with one channel that is a hundred times as large as the others.
fn with_outliers() -> Array2<f32> {
    let mut x = Array2::from_shape_vec((ROWS, INPUTS), values(ROWS * INPUTS, 4)).unwrap();
    x.column_mut(5).mapv_inplace(|value| 100.0 * value);
    x
}

fn run(runner: &mut Runner, graph: &Graph, stem: &str, x: &Array2<f32>) -> ArrayD<f32> {
    let model = runner.write(graph, stem).0.model;
    let inputs = BTreeMap::from([("x".to_owned(), floats(&x.clone().into_dyn()))]);
    array(&runner.run(&model, &inputs)["y"])
}

fn rms(a: &ArrayD<f32>, b: &ArrayD<f32>) -> f64 {
    let sum: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    (sum / a.len() as f64).sqrt()
}

#[test]
fn a_smoothed_product_is_the_same_in_f32_with_a_norm_before_it_and_without() {
    let mut runner = Runner::start();
    let x = with_outliers();
    let factors = BTreeMap::from([(
        "weight".to_owned(),
        (0..INPUTS).map(|i| 2f32.powi(i as i32 % 7 - 3)).collect::<Vec<f32>>(),
    )]);
    for (normed, operators) in [(true, vec!["LayerNormalization", "MatMul"]), (false, vec!["Mul", "MatMul"])]
    {
        let plain = run(&mut runner, &product(normed), &format!("plain{normed}"), &x);
        let mut graph = product(normed);
        smooth(&mut graph, &factors).unwrap();
        // The norm's own scale and bias take the factors up; else there is one more operator.
        assert_eq!(graph.nodes().iter().map(|node| node.operator).collect::<Vec<_>>(), operators);
        let smoothed = run(&mut runner, &graph, &format!("smoothed{normed}"), &x);
        // Powers of two change no digit of any product.
        assert_eq!(plain, smoothed);
    }
}

#[test]
fn smoothing_saves_the_small_channels_beside_a_large_one() {
    let mut runner = Runner::start();
    let x = with_outliers();
    let exact = run(&mut runner, &product(false), "exact", &x);
    let columns =
        |x: &Array2<f32>| x.columns().into_iter().map(|c| c.fold(0f32, |m, v| m.max(v.abs()))).collect();
    let rows = |w: &Array2<f32>| w.rows().into_iter().map(|r| r.fold(0f32, |m, v| m.max(v.abs()))).collect();
    let weight = Array2::from_shape_vec((INPUTS, OUTPUTS), values(INPUTS * OUTPUTS, 1)).unwrap();
    let (largest, weights): (Vec<f32>, Vec<f32>) = (columns(&x), rows(&weight));
    let error = |runner: &mut Runner, alpha: Option<f32>| {
        let mut graph = product(false);
        let mut range = largest.iter().copied().fold(0f32, f32::max);
        if let Some(alpha) = alpha {
            let factors = smoothing(&largest, &weights, alpha).unwrap();
            range = largest.iter().zip(&factors).map(|(x, s)| x / s).fold(0f32, f32::max);
            smooth(&mut graph, &BTreeMap::from([("weight".to_owned(), factors)])).unwrap();
        }
        quantise(&mut graph, &BTreeMap::from([("weight".to_owned(), range)])).unwrap();
        let found = run(runner, &graph, &format!("int8{alpha:?}"), &x);
        rms(&found, &exact)
    };
    let (plain, smoothed) = (error(&mut runner, None), error(&mut runner, Some(0.5)));
    println!("rms of the error: {plain:.4}, smoothed {smoothed:.4}");
    // A step of the activations is the range over 127; each of the other channels loses a uniform part of it times its
    // weight, so the error's variance is step²/12·|w|² a column. Smoothed by halves, the range is ten times smaller, and the
    // large channel's own weights, now the largest, are rounded ten times more coarsely.
    let step = f64::from(100.0 / 127f32);
    let norm =
        weight.into_dimensionality::<Ix2>().unwrap().mapv(|w| f64::from(w).powi(2)).sum() / OUTPUTS as f64;
    let expected = (step * step / 12.0 * norm).sqrt();
    assert!(plain > expected / 2.0 && plain < expected * 2.0, "{plain}, expected {expected}");
    assert!(smoothed < plain / 2.0, "{smoothed}");
}

#[test]
fn factors_that_make_no_sense_are_refused_by_name() {
    for (name, factors) in [
        ("other", vec![1.0; INPUTS]),
        ("weight", vec![1.0; INPUTS - 1]),
        ("weight", vec![0.0; INPUTS]),
        ("weight", vec![f32::NAN; INPUTS]),
    ] {
        let error = smooth(&mut product(true), &BTreeMap::from([(name.to_owned(), factors)])).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
    }
}
