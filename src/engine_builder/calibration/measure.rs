//! The ranges of each product's activations: the f32 graph on libtorch, over all samples.

use std::collections::BTreeMap;

use tch::Device;
use thiserror::Error;

use super::{
    super::{
        graph::{EngineGraph, GraphRequest},
        interpreter::{Interpreter, InterpreterError},
    },
    inputs::{CalibrationInputs, InputsError},
};
use crate::{
    checkpoint::Checkpoint,
    engine::{
        EngineError,
        calibration::{ActivationRanges, ChannelMax, Histogram, RangeRule, smoothing},
    },
    model::{ModelError, device::to_host},
    onnx::{OnnxError, quantise::products, smooth::smooth},
};

/// Why there are no ranges.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MeasureError {
    #[error(transparent)]
    Onnx(#[from] OnnxError),
    #[error(transparent)]
    Interpreter(#[from] InterpreterError),
    #[error(transparent)]
    Inputs(#[from] InputsError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A network whose activations overflow gives no ranges.
    #[error(
        "activations of {product}: expected finite values, found {count} that are not; check the weights and the calibration \
         inputs"
    )]
    NonFinite { product: String, count: u64 },
}

/// The range of each product's activations by `rule`. With `smooth_quant`, outliers are shared with the weights by that strength
/// first, and the ranges are those of the smoothed activations. `done` is told how many samples were run, of all passes.
///
/// # Errors
/// Samples that cannot be read or do not fit the graph, or activations that are not finite.
pub fn measure(
    checkpoint: &Checkpoint,
    request: GraphRequest,
    inputs: &dyn CalibrationInputs,
    rule: RangeRule,
    smooth_quant: Option<f32>,
    device: Device,
    done: &mut dyn FnMut(u64),
) -> Result<ActivationRanges, MeasureError> {
    let mut graph = EngineGraph::from(request.any_length()).graph(checkpoint, false)?;
    let names: Vec<String> = products(&graph).into_iter().map(|product| product.weight).collect();
    let mut count = 0;
    let mut told = || {
        count += 1;
        done(count);
    };
    let mut factors = BTreeMap::new();
    if let Some(alpha) = smooth_quant {
        let interpreter = Interpreter::new(&graph, device)?;
        let mut seen: BTreeMap<String, ChannelMax> = BTreeMap::new();
        watch(&interpreter, inputs, &mut told, &mut |product, channels, values| {
            if names.iter().any(|name| name == product) {
                let seen = seen.entry(product.to_owned()).or_insert_with(|| ChannelMax::new(channels));
                seen.observe(&values).map_err(|_| non_finite(product, &values))?;
            }
            Ok(())
        })?;
        for (product, activations) in seen {
            let missing = || InterpreterError::Unsupported {
                what: product.clone(),
                expected: "a constant weight".to_owned(),
                found: "none".to_owned(),
            };
            let weight = interpreter.constant(&product).ok_or_else(missing)?;
            let largest =
                weight.f_abs().and_then(|weight| weight.f_amax([-1], false)).map_err(ModelError::from)?;
            let own = smoothing(activations.values(), &to_host(&largest)?, alpha)?;
            factors.insert(product, own);
        }
        drop(interpreter);
        smooth(&mut graph, &factors)?;
    }
    let interpreter = Interpreter::new(&graph, device)?;
    let mut seen: BTreeMap<String, Histogram> = BTreeMap::new();
    watch(&interpreter, inputs, &mut told, &mut |product, _, values| {
        if names.iter().any(|name| name == product) {
            let seen = seen.entry(product.to_owned()).or_default();
            seen.observe(values.iter().copied());
            if seen.non_finite() > 0 {
                return Err(non_finite(product, &values));
            }
        }
        Ok(())
    })?;
    // Activations that are always zero may have any range.
    let range =
        |seen: &Histogram| rule.range(seen).map_or(1.0, |range| (range as f32).max(f32::MIN_POSITIVE));
    let ranges = seen.into_iter().map(|(product, seen)| (product, range(&seen))).collect();
    Ok(ActivationRanges { ranges, factors })
}

/// What looks at a product: its name, its number of channels, and what goes into it.
type See<'a> = dyn FnMut(&str, usize, Vec<f32>) -> Result<(), MeasureError> + 'a;

/// Runs all samples, and shows what goes into each product with its name and its number of channels.
fn watch(
    interpreter: &Interpreter,
    inputs: &dyn CalibrationInputs,
    told: &mut dyn FnMut(),
    see: &mut See,
) -> Result<(), MeasureError> {
    for index in 0..inputs.len() {
        let sample = inputs.read(index)?;
        interpreter.run::<MeasureError>(&sample.tensors, &mut |product, x| {
            // Attention's own products have no constant factor.
            if interpreter.constant(product).is_none() {
                return Ok(());
            }
            let channels = x.size().last().copied().and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
            see(product, channels, to_host(x)?)
        })?;
        told();
    }
    Ok(())
}

fn non_finite(product: &str, values: &[f32]) -> MeasureError {
    let count = values.iter().filter(|value| !value.is_finite()).count() as u64;
    MeasureError::NonFinite { product: product.to_owned(), count }
}
