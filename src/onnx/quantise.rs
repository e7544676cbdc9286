//! INT8 by explicit quantisation: QuantizeLinear and DequantizeLinear around chosen products.
//!
//! Activations have one scale per tensor, from ranges that a calibration measured; weights have one per output channel,
//! from their own largest values. All zero points are zero. TensorRT (weakly and strongly typed) and ONNX Runtime read
//! the pairs as integer products.
//!
//! Two habits of TensorRT 8.6 decide how the pairs are written, and later versions take them as well: weights stay
//! floating-point constants with a pair of their own behind them, since integer constants are refused there, and both
//! operators name their zero point, in the shape of the scale.
//!
//! Scales have the type of what they scale. Up to opset 18 that is f32 alone; an f16 or bf16 graph becomes one of opset 19,
//! for strongly typed networks (TensorRT 10 and later).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use half::{bf16, f16};

use super::element::ElementType;
use super::error::OnnxError;
use super::graph::{Attribute, Dim, Graph, Node, Source, Value};
use crate::engine::calibration::{LEVELS, channel_scales};

/// The first operator set in which scales may be f16 or bf16.
const OPSET_OF_NARROW_SCALES: i64 = 19;

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
        .filter(|info| info.kind.is_float() && info.shape.len() == 2)
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

/// Refuses names that are no product's weight.
pub(super) fn check_names<'a>(
    graph: &Graph,
    what: &'static str,
    names: impl Iterator<Item = &'a String>,
) -> Result<(), OnnxError> {
    let known: BTreeSet<String> = products(graph).into_iter().map(|product| product.weight).collect();
    for name in names {
        if !known.contains(name) {
            let expected = format!("the weight of one of the graph's {} products", known.len());
            return Err(OnnxError::request(what, expected, format!("{name:?}")));
        }
    }
    Ok(())
}

/// Quantises the products whose weights are named in `ranges`, with the largest magnitude of their activations.
///
/// # Errors
/// A name that is no product's weight, a range that is no positive number, a weight that is not finite, or a graph of f16
/// or bf16 with an operator that opset 19 writes otherwise.
pub fn quantise(graph: &mut Graph, ranges: &BTreeMap<String, f32>) -> Result<(), OnnxError> {
    check_names(graph, "weight to quantise", ranges.keys())?;
    for (name, range) in ranges {
        if !(range.is_finite() && *range > 0.0) {
            let found = format!("{range} for {name}");
            return Err(OnnxError::request("range of activations", "a positive number", found));
        }
    }
    let narrow = products(graph).iter().any(|product| {
        ranges.contains_key(&product.weight) && graph.kind(product.activations) != ElementType::F32
    });
    if narrow {
        graph.raise_opset(OPSET_OF_NARROW_SCALES)?;
    }
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
        let activations = quantised_activations(graph, activations, &name, *range)?;
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

fn quantised_activations(graph: &mut Graph, x: Value, weight: &str, range: f32) -> Result<Value, OnnxError> {
    let kind = graph.kind(x);
    let scale = Source::Values(vec![storable(range / LEVELS, kind)]);
    let scale = graph.initializer(&format!("{weight}.input_scale"), kind, [], scale)?;
    let zero = graph.int8_zeros(&[])?;
    Ok(pair(graph, x, scale, zero, vec![]))
}

/// What a weight (in, out) is after its own pair, with a scale per output.
fn quantised_weight<'w>(graph: &mut Graph<'w>, weight: Value, name: &str) -> Result<Value, OnnxError> {
    let [Dim::Fixed(_), Dim::Fixed(outputs)] = *graph.shape(weight) else {
        return Err(graph.error("QuantizeLinear", "a weight (in, out)", graph.info(weight).to_string()));
    };
    let kind = graph.kind(weight);
    let mut shared: Option<Arc<Source<'w>>> = None;
    graph.replace_source(weight, |source| {
        let source = Arc::new(source);
        shared = Some(Arc::clone(&source));
        Source::Compute(Box::new(move || source.floats()))
    });
    let source = shared.ok_or_else(|| graph.error("QuantizeLinear", "a constant weight", name))?;
    let of = name.to_owned();
    let scales = Source::Compute(Box::new(move || {
        let scales = channel_scales(&source.floats()?, outputs, false).map_err(|error| {
            OnnxError::request("weight to quantise", "finite values", format!("{of}: {error}"))
        })?;
        Ok(scales.into_iter().map(|scale| storable(scale, kind)).collect())
    }));
    let scales = graph.initializer(&format!("{name}.scale"), kind, [outputs], scales)?;
    let zeros = graph.int8_zeros(&[outputs])?;
    Ok(pair(graph, weight, scales, zeros, vec![Attribute::Int("axis", 1)]))
}

fn pair(graph: &mut Graph, x: Value, scale: Value, zero: Value, attributes: Vec<Attribute>) -> Value {
    let (kind, shape) = (graph.kind(x), graph.shape(x).to_vec());
    let stored = vec![(ElementType::I8, shape.clone())];
    let integers = graph.node("QuantizeLinear", &[x, scale, zero], attributes.clone(), stored)[0];
    graph.node("DequantizeLinear", &[integers, scale, zero], attributes, vec![(kind, shape)])[0]
}

/// A scale as its type can hold it: not zero, and rounded up, so that what it scales stays within 127 steps.
fn storable(scale: f32, kind: ElementType) -> f32 {
    match kind {
        ElementType::F16 => {
            let nearest = f16::from_f32(scale);
            let bits = nearest.to_bits();
            let up = if nearest.to_f32() < scale { f16::from_bits(bits + 1) } else { nearest };
            up.max(f16::MIN_POSITIVE_SUBNORMAL).to_f32()
        }
        ElementType::Bf16 => {
            let nearest = bf16::from_f32(scale);
            let bits = nearest.to_bits();
            let up = if nearest.to_f32() < scale { bf16::from_bits(bits + 1) } else { nearest };
            up.max(bf16::MIN_POSITIVE).to_f32()
        }
        _ => scale.max(f32::MIN_POSITIVE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_in_a_narrow_type_is_never_below_what_was_asked_for_and_next_to_it() {
        for scale in [1e-9, 3e-6, 4.3e-5, 0.001, 0.3, 1.0, 17.1] {
            for (kind, part) in [(ElementType::F16, 1.0 / 1024.0), (ElementType::Bf16, 1.0 / 128.0)] {
                let stored = storable(scale, kind);
                // One unit in the last place, or the least number of f16.
                let above = scale * (1.0 + part) + 6e-8;
                assert!(stored >= scale && stored <= above, "{scale} as {}: {stored}", kind.name());
            }
            assert_eq!(storable(scale, ElementType::F32), scale);
        }
        assert!(storable(0.0, ElementType::F16) > 0.0 && storable(0.0, ElementType::Bf16) > 0.0);
    }
}
