//! INT8 by explicit quantisation: QuantizeLinear and DequantizeLinear around chosen products.
//!
//! Activations have one scale per tensor, from ranges that a calibration measured; weights have one per output channel,
//! from their own largest values. All zero points are zero. TensorRT (weakly and strongly typed) and ONNX Runtime read
//! the pairs as integer products.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::element::{self, ElementType};
use super::error::OnnxError;
use super::graph::{Attribute, Dim, Graph, Initializer, Node, Source, Value};

/// The largest magnitude of an INT8 value that is used: −128 has no opposite.
const STEPS: f32 = 127.0;
/// Scale of a channel or a tensor that is all zero: any does, but it must not be zero itself.
const SMALLEST_SCALE: f32 = f32::MIN_POSITIVE;

/// A product of activations with a constant weight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Product {
    /// Name of the weight, e.g. `action_head.model.transformer_blocks.0.ff.net.2.weight`.
    pub weight: String,
    /// The activations that it multiplies: make them an output of the graph to measure their range.
    pub activations: Value,
}

/// The products of a graph that can be quantised, in the order in which they run.
pub fn products(graph: &Graph) -> Vec<Product> {
    let constants: BTreeSet<&str> = graph
        .initializers()
        .iter()
        .map(|initializer| graph.info(initializer.value))
        .filter(|info| info.kind == ElementType::F32 && info.shape.len() == 2)
        .map(|info| info.name.as_str())
        .collect();
    let matmuls = graph.nodes().iter().filter(|node| node.operator == "MatMul");
    matmuls
        .filter_map(|node| {
            let [activations, weight] = *node.inputs.as_slice() else { return None };
            let weight = &graph.info(weight).name;
            constants.contains(weight.as_str()).then(|| Product { weight: weight.clone(), activations })
        })
        .collect()
}

/// Quantises the products whose weights are named in `ranges`, with the largest magnitude of their activations.
///
/// # Errors
/// A name that is no product's weight, a range that is no positive number, or a graph that is not in f32: with opset 17
/// the scales, and so what they give back, are f32.
pub fn quantise(graph: &mut Graph, ranges: &BTreeMap<String, f32>) -> Result<(), OnnxError> {
    let known: BTreeSet<String> = products(graph).into_iter().map(|product| product.weight).collect();
    for (name, range) in ranges {
        if !known.contains(name) {
            let expected = format!("the f32 weight of one of the graph's {} products", known.len());
            return Err(OnnxError::request("weight to quantise", expected, format!("{name:?}")));
        }
        if !(range.is_finite() && *range > 0.0) {
            let found = format!("{range} for {name}");
            return Err(OnnxError::request("range of activations", "a positive number", found));
        }
    }
    let zero =
        graph.initializer("int8_zero", ElementType::I8, [], Source::Bytes(Box::new(|| Ok(vec![0]))))?;
    let mut weights = BTreeMap::new();
    for node in graph.take_nodes() {
        let Node { operator: "MatMul", ref inputs, .. } = node else {
            graph.push_node(node);
            continue;
        };
        let [activations, weight] = *inputs.as_slice() else {
            graph.push_node(node);
            continue;
        };
        let name = graph.info(weight).name.clone();
        let Some(range) = ranges.get(&name) else {
            graph.push_node(node);
            continue;
        };
        let activations = quantised_activations(graph, activations, &name, *range, zero)?;
        let weight = match weights.get(&name) {
            Some(known) => *known,
            None => {
                let quantised = quantised_weight(graph, weight, &name)?;
                weights.insert(name, quantised);
                quantised
            }
        };
        graph.push_node(Node { inputs: vec![activations, weight], ..node });
    }
    Ok(())
}

fn quantised_activations(
    graph: &mut Graph,
    x: Value,
    weight: &str,
    range: f32,
    zero: Value,
) -> Result<Value, OnnxError> {
    let scale = Source::Values(vec![(range / STEPS).max(SMALLEST_SCALE)]);
    let scale = graph.initializer(&format!("{weight}.input_scale"), ElementType::F32, [], scale)?;
    let shape = graph.shape(x).to_vec();
    let stored = vec![(ElementType::I8, shape.clone())];
    let integers = graph.node("QuantizeLinear", &[x, scale, zero], vec![], stored)[0];
    let inputs = [integers, scale, zero];
    Ok(graph.node("DequantizeLinear", &inputs, vec![], vec![(ElementType::F32, shape)])[0])
}

/// Stores a weight (in, out) as integers with a scale per output, and gives back what they stand for.
fn quantised_weight<'w>(graph: &mut Graph<'w>, weight: Value, name: &str) -> Result<Value, OnnxError> {
    let [Dim::Fixed(inputs), Dim::Fixed(outputs)] = *graph.shape(weight) else {
        return Err(graph.error("QuantizeLinear", "a weight (in, out)", graph.info(weight).to_string()));
    };
    let Some(at) = graph.initializers().iter().position(|initializer| initializer.value == weight) else {
        return Err(graph.error("QuantizeLinear", "a constant weight", name));
    };
    let Initializer { source, .. } = graph.initializers_mut().remove(at);
    let source: Arc<Source<'w>> = Arc::new(source);
    let of_scales = Arc::clone(&source);
    let scales = Source::Compute(Box::new(move || Ok(channel_scales(&floats(&of_scales)?, outputs))));
    let scales = graph.initializer(&format!("{name}.scale"), ElementType::F32, [outputs], scales)?;
    let bytes = Source::Bytes(Box::new(move || Ok(channel_integers(&floats(&source)?, outputs))));
    let integers = graph.initializer(&format!("{name}.int8"), ElementType::I8, [inputs, outputs], bytes)?;
    let shape = vec![(ElementType::F32, vec![Dim::Fixed(inputs), Dim::Fixed(outputs)])];
    Ok(graph.node("DequantizeLinear", &[integers, scales], vec![Attribute::Int("axis", 1)], shape)[0])
}

/// The values of a floating-point source.
fn floats(source: &Source) -> Result<Vec<f32>, OnnxError> {
    match source {
        Source::Values(values) => Ok(values.clone()),
        Source::Compute(compute) => compute(),
        Source::Stored(view) => Ok(element::decode(view)),
        // `products` lists f32 constants only, and those have one of the sources above.
        Source::Integers(_) | Source::Booleans(_) | Source::Bytes(_) => Ok(Vec::new()),
    }
}

/// Largest magnitude of each column over the number of steps.
fn channel_scales(weight: &[f32], outputs: usize) -> Vec<f32> {
    let mut largest = vec![0f32; outputs];
    for row in weight.chunks_exact(outputs) {
        for (largest, value) in largest.iter_mut().zip(row) {
            *largest = largest.max(value.abs());
        }
    }
    largest.into_iter().map(|largest| (largest / STEPS).max(SMALLEST_SCALE)).collect()
}

/// Each value over its column's scale, rounded to the nearest integer, ties to even as the operator does.
fn channel_integers(weight: &[f32], outputs: usize) -> Vec<i8> {
    let scales = channel_scales(weight, outputs);
    let rows = weight.chunks_exact(outputs);
    rows.flat_map(|row| row.iter().zip(&scales))
        // Within ±127 by the choice of the scale; the cast saturates besides.
        .map(|(value, scale)| (value / scale).round_ties_even() as i8)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_weight_is_within_half_a_step_of_its_channel() {
        let outputs = 5;
        let weight: Vec<f32> =
            (0..60).map(|i| ((i * 37) as f32).sin() * [1e-4, 1.0, 30.0, 0.0, 1e3][i % outputs]).collect();
        let scales = channel_scales(&weight, outputs);
        let integers = channel_integers(&weight, outputs);
        assert_eq!(integers.len(), weight.len());
        for (i, (value, integer)) in weight.iter().zip(&integers).enumerate() {
            let scale = scales[i % outputs];
            assert!((value - f32::from(*integer) * scale).abs() <= scale * 0.501, "{i}");
        }
        for column in [0, 1, 2, 4] {
            let most = integers.iter().skip(column).step_by(outputs).map(|v| v.unsigned_abs()).max();
            assert_eq!(most, Some(127), "column {column}");
        }
    }
}
