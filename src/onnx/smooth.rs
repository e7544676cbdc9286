//! Outliers moved from activations into weights, channel by channel, before both are quantised (SmoothQuant, Xiao et al.
//! 2022): x·W = (x / s)·(s ⊙ W) with a factor s for each input channel of a product.
//!
//! The factors themselves come from [`smoothing`](crate::engine::calibration::smoothing). Where the activations come straight
//! out of a norm with constant scale, 1/s goes into that scale and costs nothing; elsewhere one multiplication is put in
//! between, which engine builders fuse with what stands before it.

use std::collections::{BTreeMap, HashMap};

use super::error::OnnxError;
use super::graph::{Dim, Graph, Node, Source, Value};
use super::quantise::check_names;

/// Smooths the products whose weights are named in `factors`, which hold one factor for each row of the weight (in, out).
///
/// # Errors
/// A name that is no product's weight, or factors that are not as many positive numbers as the weight has rows. The graph is of
/// no use then.
pub fn smooth<'w>(graph: &mut Graph<'w>, factors: &BTreeMap<String, Vec<f32>>) -> Result<(), OnnxError> {
    check_names(graph, "weight to smooth", factors.keys())?;
    let mut scaled: Vec<Value> = Vec::new();
    let mut nodes = graph.take_nodes();
    let places = Places::new(&nodes, graph.output_values());
    // What stands in front of a product in its place: made once all nodes are in order again.
    let mut inserted: HashMap<usize, Value> = HashMap::new();
    for index in 0..nodes.len() {
        let Node { operator: "MatMul", inputs, .. } = &nodes[index] else { continue };
        let [activations, weight] = *inputs.as_slice() else { continue };
        let name = graph.info(weight).name.clone();
        let Some(own) = factors.get(&name) else { continue };
        let rows = match *graph.shape(weight) {
            [Dim::Fixed(rows), Dim::Fixed(_)] => rows,
            _ => return Err(graph.error("Mul", "a weight (in, out)", graph.info(weight).to_string())),
        };
        if own.len() != rows || own.iter().any(|factor| !(factor.is_finite() && *factor > 0.0)) {
            let found = format!("{} for {name}, from {:?} on", own.len(), own.first());
            return Err(OnnxError::request(
                "factors of the smoothing",
                format!("{rows} positive numbers"),
                found,
            ));
        }
        let inverse: Vec<f32> = own.iter().map(|factor| factor.recip()).collect();
        match places.norm_before(&nodes, graph, activations) {
            Some(norm) => fold(graph, &mut nodes[norm], &name, &inverse)?,
            None => {
                let kind = graph.kind(activations);
                let value = Source::Values(inverse);
                let constant = graph.initializer(&format!("{name}.smoothing"), kind, [rows], value)?;
                inserted.insert(index, constant);
            }
        }
        if !scaled.contains(&weight) {
            scaled.push(weight);
            let own = own.clone();
            graph.replace_source(weight, |source| scale_rows(source, own));
        }
    }
    for (index, node) in nodes.into_iter().enumerate() {
        let node = match inserted.get(&index) {
            None => node,
            Some(constant) => {
                // Node names count from here on, and no other node has this place.
                let before = graph.enter(&format!("smooth{index}"));
                let activations = graph.mul(node.inputs[0], *constant)?;
                graph.leave(before);
                Node { inputs: [&[activations], &node.inputs[1..]].concat(), ..node }
            }
        };
        graph.push_node(node);
    }
    Ok(())
}

/// Multiplies row i of a matrix by factor i.
fn scale_rows(source: Source<'_>, factors: Vec<f32>) -> Source<'_> {
    Source::Compute(Box::new(move || {
        let mut values = source.floats()?;
        let columns = (values.len() / factors.len().max(1)).max(1);
        for (row, factor) in values.chunks_exact_mut(columns).zip(&factors) {
            row.iter_mut().for_each(|value| *value *= factor);
        }
        Ok(values)
    }))
}

/// Multiplies scale and bias of a norm.
fn fold(graph: &mut Graph<'_>, norm: &mut Node, name: &str, inverse: &[f32]) -> Result<(), OnnxError> {
    for (place, what) in [(1, "scale"), (2, "bias")] {
        let Some(&old) = norm.inputs.get(place) else { continue };
        let kind = graph.kind(old);
        let values = graph.constant_floats(old)?;
        let values = values.iter().zip(inverse).map(|(value, inverse)| value * inverse).collect();
        let value = Source::Values(values);
        norm.inputs[place] =
            graph.initializer(&format!("{name}.norm_{what}"), kind, [inverse.len()], value)?;
    }
    Ok(())
}

/// Who makes and who takes each value.
struct Places {
    maker: HashMap<Value, usize>,
    takers: HashMap<Value, usize>,
}

impl Places {
    fn new(nodes: &[Node], outputs: &[Value]) -> Self {
        let mut places = Self { maker: HashMap::new(), takers: HashMap::new() };
        for (index, node) in nodes.iter().enumerate() {
            node.outputs.iter().for_each(|value| {
                places.maker.insert(*value, index);
            });
            node.inputs.iter().for_each(|value| *places.takers.entry(*value).or_default() += 1);
        }
        outputs.iter().for_each(|value| *places.takers.entry(*value).or_default() += 1);
        places
    }

    /// The norm whose output, perhaps cast to another type, is this value and goes nowhere else.
    fn norm_before(&self, nodes: &[Node], graph: &Graph, mut value: Value) -> Option<usize> {
        loop {
            if self.takers.get(&value) != Some(&1) {
                return None;
            }
            let maker = *self.maker.get(&value)?;
            match nodes.get(maker)?.operator {
                "Cast" => value = *nodes[maker].inputs.first()?,
                "LayerNormalization" => {
                    let constant = |value: &Value| graph.is_constant(*value);
                    return nodes[maker].inputs.iter().skip(1).all(constant).then_some(maker);
                }
                _ => return None,
            }
        }
    }
}
