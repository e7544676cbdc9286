//! An engine of any graph, run on libtorch's tensors without a policy around it.

use std::sync::Arc;

use cudarc::driver::CudaStream;
use tch::{Device, Kind, Tensor};

use super::super::{ModelError, device::synchronize};
use super::buffers::Buffer;
use crate::tensorrt::{Context, Engine};

/// An engine with its inputs, ready to run again and again.
pub struct SingleRun {
    /// First, so that it is dropped before the memory that it works on.
    context: Context,
    stream: Arc<CudaStream>,
    output: Buffer,
    _inputs: Vec<Buffer>,
    device: Device,
}

impl SingleRun {
    /// Gives the engine its inputs, converted to its types, and memory for the one output that is wanted, of the shape that
    /// these inputs lead to.
    ///
    /// # Errors
    /// Inputs that the engine does not have or was not built for, another GPU, or no memory.
    pub fn new(
        engine: &Engine,
        inputs: &[(&str, Tensor)],
        output: (&str, &[i64]),
        device: Device,
    ) -> Result<Self, ModelError> {
        let mut context = Context::new(engine)?;
        let gpu = context.device().cloned().filter(|gpu| device == Device::Cuda(gpu.ordinal()));
        let gpu = gpu.ok_or_else(|| ModelError::Device {
            requested: format!("{device:?}"),
            reason: "the TensorRT engine was loaded for another GPU".to_owned(),
        })?;
        let mut buffers = Vec::new();
        for (name, values) in inputs {
            let mut buffer = Buffer::new(engine, name, device)?;
            buffer.bind(&mut context)?;
            buffer.announce(&mut context)?;
            buffer.resize(&values.size(), &mut context)?;
            buffer.fill(values)?;
            buffers.push(buffer);
        }
        let (name, shape) = output;
        let found = context.shape(name)?;
        if found != shape {
            return Err(ModelError::Input {
                what: "shape of an engine's output",
                expected: format!("{shape:?} for {name:?}"),
                found: format!("{found:?}"),
            });
        }
        let output = Buffer::output(engine, name, shape, device)?;
        output.bind(&mut context)?;
        // SAFETY: null is the default stream, which always is, and libtorch's current one on this thread.
        let stream = unsafe { gpu.external_stream(std::ptr::null_mut()) };
        Ok(Self { context, stream, output, _inputs: buffers, device })
    }

    /// Runs the engine and waits for it.
    ///
    /// # Errors
    /// What TensorRT refuses.
    pub fn run(&mut self) -> Result<(), ModelError> {
        self.context.enqueue(&self.stream)?;
        synchronize(self.device);
        Ok(())
    }

    /// The output of the last run, f32.
    pub fn output(&self) -> Result<Tensor, ModelError> {
        Ok(self.output.view()?.f_to_kind(Kind::Float)?.f_add_scalar(0.0)?)
    }
}
