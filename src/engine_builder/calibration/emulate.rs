//! How accurate a quantised graph is: both graphs on libtorch, over the calibration inputs.

use anyhow::{Context, Result};
use tch::Device;

use super::{
    super::{
        graph::{EngineGraph, GraphRequest},
        interpreter::Interpreter,
        tables::Measured,
        verify::Distance,
    },
    inputs::CalibrationInputs,
};
use crate::{checkpoint::Checkpoint, engine::fused::names, model::device::to_host, onnx::Graph};

/// The velocities of a quantised f32 graph, which should take prompts of any length, against those of the plain one, step by step.
///
/// # Errors
/// Inputs that cannot be read or do not fit the graphs, or no memory.
pub fn emulate(
    checkpoint: &Checkpoint,
    request: GraphRequest,
    quantised: &Graph,
    inputs: &dyn CalibrationInputs,
    device: Device,
) -> Result<Measured> {
    let plain = EngineGraph::from(request.any_length()).graph(checkpoint, false)?;
    let plain = Interpreter::new(&plain, device)?;
    let quantised = Interpreter::new(quantised, device)?;
    let mut distance = Distance::default();
    for index in 0..inputs.len() {
        let sample = inputs.read(index)?;
        let velocity = |interpreter: &Interpreter| -> Result<Vec<f32>> {
            let outputs = interpreter.outputs(&sample.tensors)?;
            let velocity = outputs.get(names::VELOCITY).context("expected a velocity, found none")?;
            Ok(to_host(velocity)?)
        };
        distance.velocity.push(sample.step, &velocity(&plain)?, &velocity(&quantised)?)?;
    }
    let mut measured = Measured { name: "explicit INT8, emulated".to_owned(), ..Measured::default() };
    measured.add("f32 graph", &distance);
    measured.notes.push(format!("on the {} calibration inputs, by libtorch in f32", inputs.len()));
    Ok(measured)
}
