//! Memory of an engine's inputs and outputs: tensors of libtorch whose address never changes.

use tch::{Device, Kind, Tensor};

use super::super::ModelError;
use crate::tensorrt::{Context, DataType, DeviceMemory, Engine, ShapeRange};

/// One input or output, as large as it ever gets.
pub struct Buffer {
    name: String,
    /// One-dimensional, of the engine's type.
    memory: Tensor,
    kind: Kind,
    range: ShapeRange,
    /// What of it is in use.
    shape: Vec<i64>,
}

impl Buffer {
    /// Memory for the largest shape of `name` that the engine takes.
    pub fn new(engine: &Engine, name: &str, device: Device) -> Result<Self, ModelError> {
        let tensor = engine.tensor(name)?;
        let kind = element_kind(engine, name)?;
        let range = if tensor.is_dynamic() {
            engine.shape_range(name, 0)?
        } else {
            ShapeRange::fixed(tensor.shape.clone())
        };
        let elements: i64 = range.max.iter().product();
        let memory = Tensor::f_zeros([elements], (kind, device))?;
        let shape = range.max.clone();
        Ok(Self { name: name.to_owned(), memory, kind, range, shape })
    }

    /// Memory for an input or output of one shape, which must be `expected` where that is given.
    pub fn fixed(
        engine: &Engine,
        name: &str,
        expected: Option<&[i64]>,
        device: Device,
    ) -> Result<Self, ModelError> {
        let buffer = Self::new(engine, name, device)?;
        let fits = buffer.range.min == buffer.range.max && expected.is_none_or(|shape| shape == buffer.shape);
        if fits {
            return Ok(buffer);
        }
        Err(ModelError::Input {
            what: "shape of an engine's input or output",
            expected: match expected {
                Some(shape) => format!("{name:?} of {shape:?}, as the checkpoint has it"),
                None => format!("{name:?} of one fixed shape"),
            },
            found: format!("{:?} to {:?}", buffer.range.min, buffer.range.max),
        })
    }

    /// Memory for an output of this shape.
    pub fn output(engine: &Engine, name: &str, shape: &[i64], device: Device) -> Result<Self, ModelError> {
        let kind = element_kind(engine, name)?;
        let memory = Tensor::f_zeros([shape.iter().product::<i64>()], (kind, device))?;
        let range = ShapeRange::fixed(shape);
        Ok(Self { name: name.to_owned(), memory, kind, range, shape: shape.to_vec() })
    }

    /// Number of axes.
    pub fn rank(&self) -> usize {
        self.range.max.len()
    }

    /// Whether the engine takes this shape; `what` names it for people.
    pub fn check(&self, shape: &[i64], what: &'static str) -> Result<(), ModelError> {
        let ShapeRange { min, max, .. } = &self.range;
        let fits = shape.len() == min.len()
            && shape.iter().zip(min.iter().zip(max)).all(|(n, (min, max))| min <= n && n <= max);
        if fits {
            return Ok(());
        }
        // The axis before the last counts tokens.
        let tokens = |shape: &[i64]| shape.iter().rev().nth(1).copied().unwrap_or_default();
        Err(ModelError::Input {
            what,
            expected: format!(
                "{} to {}, which the TensorRT engine was built for; for other prompts or cameras build one with \
                 `engine_builder --text-tokens MIN,OPT,MAX --image-tokens MIN,OPT,MAX`",
                tokens(min),
                tokens(max)
            ),
            found: tokens(shape).to_string(),
        })
    }

    /// Tells the context the shape in use, where the engine leaves it open.
    pub fn announce(&self, context: &mut Context) -> Result<(), ModelError> {
        if self.range.min != self.range.max {
            context.set_shape(&self.name, &self.shape)?;
        }
        Ok(())
    }

    /// Gives the memory to the context, which keeps it alive.
    pub fn bind(&self, context: &mut Context) -> Result<(), ModelError> {
        let bytes = self.memory.numel() * self.kind.elt_size_in_bytes();
        let owner = Box::new(self.memory.shallow_clone());
        // SAFETY: the tensor has as many bytes on the engine's GPU (`TensorRtVelocity::new` compares the devices), and the
        // context keeps a handle on it.
        let memory = unsafe { DeviceMemory::external(self.memory.data_ptr(), bytes, Some(owner)) };
        Ok(context.bind(&self.name, memory)?)
    }

    /// Chooses the shape in use; the address stays. Says nothing to the context where nothing changes.
    pub fn resize(&mut self, shape: &[i64], context: &mut Context) -> Result<(), ModelError> {
        if self.shape != shape {
            context.set_shape(&self.name, shape)?;
            self.shape = shape.to_vec();
        }
        Ok(())
    }

    /// What is in use, in its shape: a view.
    pub fn view(&self) -> Result<Tensor, ModelError> {
        Ok(self.memory.f_narrow(0, 0, self.shape.iter().product())?.f_view(self.shape.as_slice())?)
    }

    /// Copies values in, converted to the engine's type, on the device.
    pub fn fill(&self, values: &Tensor) -> Result<(), ModelError> {
        if values.size() != self.shape {
            return Err(ModelError::Input {
                what: "input of a TensorRT engine",
                expected: format!("{:?} of {:?}", self.name, self.shape),
                found: format!("{:?}", values.size()),
            });
        }
        Ok(self.view()?.f_copy_(values)?)
    }
}

/// libtorch's type for that of an engine's input or output.
fn element_kind(engine: &Engine, name: &str) -> Result<Kind, ModelError> {
    let data_type = engine.tensor(name)?.data_type;
    kind_of(data_type).ok_or_else(|| ModelError::Input {
        what: "type of an engine's input or output",
        expected: "f32, f16 or bf16".to_owned(),
        found: format!("{data_type} for {name:?}"),
    })
}

/// libtorch's type for TensorRT's.
fn kind_of(data_type: DataType) -> Option<Kind> {
    match data_type {
        DataType::F32 => Some(Kind::Float),
        DataType::F16 => Some(Kind::Half),
        DataType::Bf16 => Some(Kind::BFloat16),
        _ => None,
    }
}
