//! A graph run by libtorch, node by node, on the CPU or a GPU: to see what goes into each product, and what a quantised graph
//! makes of it, without TensorRT.
//!
//! It knows the operators of the fused graph in f32, QuantizeLinear and DequantizeLinear among them. Integers of the latter
//! stay in f32, which holds them exactly.

use std::collections::{BTreeMap, HashMap};

use tch::{Device, Kind, Tensor};
use thiserror::Error;

use crate::onnx::{Attribute, Dim, ElementType, Graph, Node, OnnxError, Source, Value};

/// Tensors by name.
pub type NamedTensors = BTreeMap<String, Tensor>;

/// Why a graph did not run.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum InterpreterError {
    #[error(transparent)]
    Onnx(#[from] OnnxError),
    /// libtorch refused, mostly for lack of memory.
    #[error("{node}: {source}")]
    Torch { node: String, source: tch::TchError },
    /// The graph or its inputs are not what this module can run.
    #[error("{what}: expected {expected}, found {found}")]
    Unsupported { what: String, expected: String, found: String },
}

fn unsupported(what: &str, expected: impl Into<String>, found: impl Into<String>) -> InterpreterError {
    InterpreterError::Unsupported { what: what.to_owned(), expected: expected.into(), found: found.into() }
}

/// A constant, ready to be used.
enum Constant {
    Floats(Tensor),
    Integers(Vec<i64>),
    /// Zero points, which are all zero.
    Zeros,
}

/// A graph with its weights on a device.
pub struct Interpreter<'g, 'w> {
    graph: &'g Graph<'w>,
    constants: HashMap<Value, Constant>,
    /// Per node: what nothing needs after it.
    dead_after: Vec<Vec<Value>>,
    device: Device,
}

impl<'g, 'w> Interpreter<'g, 'w> {
    /// Uploads the constants of an f32 graph.
    ///
    /// # Errors
    /// Constants of another type, or no memory.
    pub fn new(graph: &'g Graph<'w>, device: Device) -> Result<Self, InterpreterError> {
        let mut constants = HashMap::new();
        for initializer in graph.initializers() {
            let info = graph.info(initializer.value);
            let constant = match (&initializer.source, info.kind) {
                (Source::Integers(values), _) => Constant::Integers(values.clone()),
                (Source::Bytes(_), _) => Constant::Zeros,
                (source, ElementType::F32) => {
                    let shape: Vec<i64> = info.shape.iter().filter_map(fixed).collect();
                    let upload = |values: Vec<f32>| {
                        Tensor::f_from_slice(&values)?.f_reshape(shape)?.f_to_device(device)
                    };
                    let tensor = upload(source.floats()?);
                    Constant::Floats(
                        tensor
                            .map_err(|source| InterpreterError::Torch { node: info.name.clone(), source })?,
                    )
                }
                _ => return Err(unsupported(&info.name, "a constant of f32", info.to_string())),
            };
            constants.insert(initializer.value, constant);
        }
        let mut last = HashMap::new();
        for (index, node) in graph.nodes().iter().enumerate() {
            node.inputs.iter().chain(&node.outputs).for_each(|value| {
                last.insert(*value, index);
            });
        }
        let outputs: Vec<&str> = graph.outputs().map(|info| info.name.as_str()).collect();
        let mut dead_after = vec![Vec::new(); graph.nodes().len()];
        for (value, index) in last {
            if !outputs.contains(&graph.info(value).name.as_str()) {
                dead_after[index].push(value);
            }
        }
        Ok(Self { graph, constants, dead_after, device })
    }

    /// A constant of the graph, by name.
    pub fn constant(&self, name: &str) -> Option<&Tensor> {
        self.constants.iter().find_map(|(value, constant)| match constant {
            Constant::Floats(tensor) if self.graph.info(*value).name == name => Some(tensor),
            _ => None,
        })
    }

    /// Runs the graph. Each MatMul's first factor is shown to `watch` before, with the name of the second.
    ///
    /// # Errors
    /// Inputs that are not the graph's, an operator that this module does not know, or what `watch` refuses.
    pub fn run<E: From<InterpreterError>>(
        &self,
        inputs: &NamedTensors,
        watch: &mut dyn FnMut(&str, &Tensor) -> Result<(), E>,
    ) -> Result<NamedTensors, E> {
        let mut values: HashMap<Value, Tensor> = HashMap::new();
        for (value, info) in self.graph.input_values().iter().zip(self.graph.inputs()) {
            let given = inputs.get(&info.name);
            let fits = given.filter(|tensor| {
                tensor.dim() == info.shape.len()
                    && tensor
                        .size()
                        .iter()
                        .zip(&info.shape)
                        .all(|(n, dim)| fixed(dim).is_none_or(|d| d == *n))
            });
            let Some(tensor) = fits else {
                let found = given.map_or("none".to_owned(), |tensor| format!("{:?}", tensor.size()));
                return Err(unsupported(&format!("input {:?}", info.name), info.to_string(), found).into());
            };
            let upload = || tensor.f_to_device(self.device)?.f_to_kind(Kind::Float);
            let tensor =
                upload().map_err(|source| InterpreterError::Torch { node: info.name.clone(), source })?;
            values.insert(*value, tensor);
        }
        for (index, node) in self.graph.nodes().iter().enumerate() {
            if let ("MatMul", [x, weight]) = (node.operator, node.inputs.as_slice())
                && let Some(x) = values.get(x)
            {
                watch(&self.graph.info(*weight).name, x)?;
            }
            let outputs = Step { interpreter: self, node, values: &values }.run()?;
            values.extend(node.outputs.iter().copied().zip(outputs));
            for dead in &self.dead_after[index] {
                values.remove(dead);
            }
        }
        let outputs = self.graph.output_values().iter();
        Ok(outputs
            .filter_map(|value| Some((self.graph.info(*value).name.clone(), values.remove(value)?)))
            .collect())
    }

    /// [`run`](Self::run) without anybody watching.
    ///
    /// # Errors
    /// As there.
    pub fn outputs(&self, inputs: &NamedTensors) -> Result<NamedTensors, InterpreterError> {
        self.run(inputs, &mut |_, _| Ok(()))
    }
}

fn fixed(dim: &Dim) -> Option<i64> {
    match dim {
        Dim::Fixed(size) => Some(*size as i64),
        Dim::Symbol(_) => None,
    }
}

/// One node with what is known when its turn comes.
struct Step<'a, 'g, 'w> {
    interpreter: &'a Interpreter<'g, 'w>,
    node: &'a Node,
    values: &'a HashMap<Value, Tensor>,
}

impl Step<'_, '_, '_> {
    fn run(&self) -> Result<Vec<Tensor>, InterpreterError> {
        let torch = |source| InterpreterError::Torch { node: self.node.name.clone(), source };
        let one = |tensor: Result<Tensor, tch::TchError>| tensor.map(|tensor| vec![tensor]).map_err(torch);
        match self.node.operator {
            "MatMul" => one(self.x(0)?.f_matmul(self.x(1)?)),
            "Add" => one(self.x(0)?.f_add(self.x(1)?)),
            "Mul" => one(self.x(0)?.f_mul(self.x(1)?)),
            "Tanh" => one(self.x(0)?.f_tanh()),
            "Sigmoid" => one(self.x(0)?.f_sigmoid()),
            "Relu" => one(self.x(0)?.f_relu()),
            // All is f32 here, so a cast changes nothing.
            "Identity" | "Cast" => Ok(vec![self.x(0)?.shallow_clone()]),
            "Softmax" => one(self.x(0)?.f_softmax(-1, Kind::Float)),
            "LayerNormalization" => {
                let x = self.x(0)?;
                let width = x.size().last().copied().unwrap_or(1);
                let bias = if self.node.inputs.len() > 2 { Some(self.x(2)?) } else { None };
                let eps = self.float("epsilon")?;
                one(x.f_layer_norm([width], Some(self.x(1)?), bias, eps, false))
            }
            "Reshape" => {
                let x = self.x(0)?;
                let size = x.size();
                let target: Vec<i64> = self
                    .integers(1)?
                    .iter()
                    .enumerate()
                    // Zero stands for the same axis' length before.
                    .map(|(axis, n)| if *n == 0 { size.get(axis).copied().unwrap_or(0) } else { *n })
                    .collect();
                one(x.f_reshape(target))
            }
            "Transpose" => one(self.x(0)?.f_permute(self.axes("perm")?)),
            "Concat" => {
                let parts = (0..self.node.inputs.len()).map(|i| self.x(i)).collect::<Result<Vec<_>, _>>()?;
                one(Tensor::f_cat(&parts, self.integer("axis")?))
            }
            "Slice" => {
                let (from, to, axis) = (self.integers(1)?, self.integers(2)?, self.integers(3)?);
                let ([from], [to], [axis]) = (from, to, axis) else {
                    return Err(unsupported(&self.node.name, "a slice of one axis", format!("{axis:?}")));
                };
                one(self.x(0)?.f_slice(*axis, *from, *to, 1))
            }
            "Split" => {
                let (x, axis) = (self.x(0)?, self.integer("axis")?);
                let mut first = 0;
                let parts = self.integers(1)?.iter().map(|length| {
                    first += length;
                    x.f_narrow(axis, first - length, *length).map_err(torch)
                });
                parts.collect()
            }
            // A scale per output channel is along the last axis, where it broadcasts by itself.
            "QuantizeLinear" => {
                let (x, scale) = (self.x(0)?, self.scale()?);
                one(x.f_div(scale).and_then(|x| x.f_round()).and_then(|x| x.f_clamp(-128.0, 127.0)))
            }
            "DequantizeLinear" => one(self.x(0)?.f_mul(self.scale()?)),
            other => Err(unsupported(&self.node.name, "an operator of the fused graph in f32", other)),
        }
    }

    fn x(&self, input: usize) -> Result<&Tensor, InterpreterError> {
        let value = self.node.inputs.get(input);
        let constant = |value: &Value| match self.interpreter.constants.get(value) {
            Some(Constant::Floats(tensor)) => Some(tensor),
            _ => None,
        };
        value.and_then(|value| self.values.get(value).or_else(|| constant(value))).ok_or_else(|| {
            unsupported(&self.node.name, "a floating-point tensor", format!("none as input {input}"))
        })
    }

    fn integers(&self, input: usize) -> Result<&[i64], InterpreterError> {
        let constant = self.node.inputs.get(input).and_then(|value| self.interpreter.constants.get(value));
        match constant {
            Some(Constant::Integers(values)) => Ok(values),
            _ => Err(unsupported(&self.node.name, "constant integers", format!("none as input {input}"))),
        }
    }

    /// The scale of a Q or DQ node, whose zero point must be zero.
    fn scale(&self) -> Result<&Tensor, InterpreterError> {
        let zero = self.node.inputs.get(2).and_then(|value| self.interpreter.constants.get(value));
        let (x, scale) = (self.x(0)?, self.x(1)?);
        let along_last = scale.dim() == 0 || self.integer("axis")? == x.dim() as i64 - 1;
        if matches!(zero, Some(Constant::Zeros)) && along_last {
            return Ok(scale);
        }
        let expected = "a zero point of zero, and scales along the last axis";
        Err(unsupported(&self.node.name, expected, format!("{:?}", self.node.attributes)))
    }

    fn attribute<T>(
        &self,
        wanted: &str,
        take: impl Fn(&Attribute) -> Option<T>,
    ) -> Result<T, InterpreterError> {
        let found = self.node.attributes.iter().find(|attribute| attribute.name_and_type().0 == wanted);
        found
            .and_then(take)
            .ok_or_else(|| unsupported(&self.node.name, format!("the attribute {wanted}"), "none"))
    }

    fn integer(&self, name: &str) -> Result<i64, InterpreterError> {
        self.attribute(name, |attribute| match attribute {
            Attribute::Int(_, value) => Some(*value),
            _ => None,
        })
    }

    fn float(&self, name: &str) -> Result<f64, InterpreterError> {
        self.attribute(name, |attribute| match attribute {
            Attribute::Float(_, value) => Some(f64::from(*value)),
            _ => None,
        })
    }

    fn axes(&self, name: &str) -> Result<Vec<i64>, InterpreterError> {
        self.attribute(name, |attribute| match attribute {
            Attribute::Ints(_, values) => Some(values.clone()),
            _ => None,
        })
    }
}
