//! The layers that the networks are made of, in terms of the graph's operators.

use std::ops::{Deref, DerefMut};

use super::element::ElementType;
use super::error::OnnxError;
use super::graph::{Dim, Graph, Source, Value};
use super::host;
use crate::checkpoint::{TensorView, Weights};

/// How a LayerNorm is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NormStyle {
    /// The operator LayerNormalization: one node, which TensorRT from 8.6 on reads as its normalisation layer, with
    /// statistics in f32.
    #[default]
    Operator,
    /// Mean, difference, square, square root and quotient one by one, for readers without the operator (TensorRT 8.5).
    Explicit,
}

/// In which types a graph computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    /// Weights and activations. f32 leaves the choice to the engine builder; f16 and bf16 spell it out.
    pub kind: ElementType,
    pub norms: NormStyle,
    /// Norms, with what multiplies and shifts them, in f32 whatever `kind` is.
    pub norms_in_f32: bool,
    /// Softmax in f32 whatever `kind` is.
    pub softmax_in_f32: bool,
}

impl Style {
    /// A graph of this type with norms and softmax in f32.
    pub fn new(kind: ElementType) -> Self {
        Self { kind, norms: NormStyle::default(), norms_in_f32: true, softmax_in_f32: true }
    }

    pub(super) fn check(&self) -> Result<(), OnnxError> {
        if self.kind.is_float() {
            return Ok(());
        }
        Err(OnnxError::request("type of the graph", "f32, f16 or bf16", self.kind.name()))
    }

    pub(super) fn norm_kind(&self) -> ElementType {
        if self.norms_in_f32 { ElementType::F32 } else { self.kind }
    }
}

impl Default for Style {
    fn default() -> Self {
        Self::new(ElementType::F32)
    }
}

/// A Linear, or a part of several that are joined along their outputs.
#[derive(Clone, Copy)]
pub struct Part<'w> {
    /// (out, in).
    pub weight: TensorView<'w>,
    pub bias: Option<TensorView<'w>>,
    /// Multiplies weight and bias.
    pub scale: f64,
}

/// A graph under construction together with where its weights come from.
pub struct Builder<'w> {
    pub graph: Graph<'w>,
    pub weights: &'w Weights,
    pub style: Style,
}

impl<'w> Deref for Builder<'w> {
    type Target = Graph<'w>;

    fn deref(&self) -> &Graph<'w> {
        &self.graph
    }
}

impl<'w> DerefMut for Builder<'w> {
    fn deref_mut(&mut self) -> &mut Graph<'w> {
        &mut self.graph
    }
}

impl<'w> Builder<'w> {
    pub fn new(name: &str, weights: &'w Weights, style: Style) -> Result<Self, OnnxError> {
        style.check()?;
        Ok(Self { graph: Graph::new(name), weights, style })
    }

    /// Builds one part of the network under a name that its nodes carry.
    pub fn at<R>(
        &mut self,
        place: &str,
        build: impl FnOnce(&mut Self) -> Result<R, OnnxError>,
    ) -> Result<R, OnnxError> {
        let before = self.graph.enter(place);
        let result = build(self);
        self.graph.leave(before);
        result
    }

    /// The graph's own type.
    pub fn narrow(&mut self, x: Value) -> Result<Value, OnnxError> {
        let kind = self.style.kind;
        self.graph.cast(x, kind)
    }

    /// `weight` and, if the checkpoint has it, `bias` of a module.
    pub fn part(&self, module: &str, with_bias: bool, scale: f64) -> Result<Part<'w>, OnnxError> {
        let weights = self.weights;
        let weight = weights.get(&format!("{module}.weight"))?;
        let bias = if with_bias { Some(weights.get(&format!("{module}.bias"))?) } else { None };
        Ok(Part { weight, bias, scale })
    }

    /// y = x·Wᵀ + b.
    pub fn linear(&mut self, x: Value, module: &str) -> Result<Value, OnnxError> {
        let part = self.part(module, true, 1.0)?;
        self.joined(x, module, vec![part])
    }

    /// y = x·Wᵀ.
    pub fn linear_without_bias(&mut self, x: Value, module: &str) -> Result<Value, OnnxError> {
        let part = self.part(module, false, 1.0)?;
        self.joined(x, module, vec![part])
    }

    /// Several Linears of one input as one product: their outputs side by side. All have a bias or none has.
    pub fn joined(&mut self, x: Value, name: &str, parts: Vec<Part<'w>>) -> Result<Value, OnnxError> {
        let widths = |part: &Part| match *part.weight.shape {
            [outputs, inputs] => Some((outputs, inputs)),
            _ => None,
        };
        let sizes: Option<Vec<(usize, usize)>> = parts.iter().map(widths).collect();
        let sizes = sizes.unwrap_or_default();
        let inputs = match sizes.split_first() {
            Some(((_, inputs), rest)) if rest.iter().all(|(_, other)| other == inputs) => *inputs,
            _ => {
                return Err(self.error(
                    "MatMul",
                    "weights (out, in) of one input width",
                    format!("{sizes:?}"),
                ));
            }
        };
        let outputs: usize = sizes.iter().map(|(outputs, _)| outputs).sum();
        let biases: Vec<_> = parts.iter().filter_map(|part| Some((part.bias?, part.scale))).collect();
        if !biases.is_empty() && biases.len() != parts.len() {
            return Err(self.error("MatMul", "a bias for all parts or for none", biases.len().to_string()));
        }
        let weight = move || {
            if let [only] = parts.as_slice() {
                return Ok(host::transposed(&only.weight, only.scale));
            }
            let mut out = vec![0f32; inputs * outputs];
            let mut first = 0;
            for (part, (width, _)) in parts.iter().zip(&sizes) {
                let turned = host::transposed(&part.weight, part.scale);
                for (to, from) in out.chunks_exact_mut(outputs).zip(turned.chunks_exact(*width)) {
                    to[first..first + width].copy_from_slice(from);
                }
                first += width;
            }
            Ok(out)
        };
        let bias = (!biases.is_empty()).then(|| {
            let scaled = biases
                .iter()
                .flat_map(|(bias, scale)| host::vector(bias).into_iter().map(move |v| v * scale));
            host::narrow(&scaled.collect::<Vec<f64>>())
        });
        self.affine(x, name, (inputs, outputs), Source::Compute(Box::new(weight)), bias)
    }

    /// y = x·W + b with W (in, out) and b computed by the exporter.
    pub fn affine(
        &mut self,
        x: Value,
        name: &str,
        (inputs, outputs): (usize, usize),
        weight: Source<'w>,
        bias: Option<Vec<f32>>,
    ) -> Result<Value, OnnxError> {
        let kind = self.style.kind;
        let weight = self.initializer(&format!("{name}.weight"), kind, [inputs, outputs], weight)?;
        let x = self.narrow(x)?;
        let product = self.matmul(x, weight)?;
        match bias {
            None => Ok(product),
            Some(bias) => {
                let bias =
                    self.initializer(&format!("{name}.bias"), kind, [outputs], Source::Values(bias))?;
                self.add(product, bias)
            }
        }
    }

    /// LayerNorm over the last axis, in the norms' type; scale and bias of `module` if there is one.
    pub fn layer_norm(&mut self, x: Value, module: Option<&str>, eps: f64) -> Result<Value, OnnxError> {
        let kind = self.style.norm_kind();
        let x = self.cast(x, kind)?;
        let affine = match module {
            Some(module) => {
                let (scale, bias) = (format!("{module}.weight"), format!("{module}.bias"));
                Some((self.stored(&scale, kind)?, self.stored(&bias, kind)?))
            }
            None => None,
        };
        match self.style.norms {
            NormStyle::Operator => {
                let (scale, bias) = match affine {
                    Some((scale, bias)) => (scale, Some(bias)),
                    None => match self.shape(x).last() {
                        Some(Dim::Fixed(width)) => {
                            let width = *width;
                            (self.ones(width, kind)?, None)
                        }
                        _ => return Err(self.error("LayerNormalization", "a known width", "none")),
                    },
                };
                self.layer_normalization(x, scale, bias, eps)
            }
            NormStyle::Explicit => {
                let mean = self.reduce_mean(x)?;
                let centred = self.sub(x, mean)?;
                let square = self.mul(centred, centred)?;
                let variance = self.reduce_mean(square)?;
                let eps = self.scalar(eps, kind)?;
                let variance = self.add(variance, eps)?;
                let deviation = self.sqrt(variance)?;
                let normed = self.div(centred, deviation)?;
                match affine {
                    Some((scale, bias)) => {
                        let scaled = self.mul(normed, scale)?;
                        self.add(scaled, bias)
                    }
                    None => Ok(normed),
                }
            }
        }
    }

    /// A tensor of the checkpoint as a constant, under its own name.
    pub fn stored(&mut self, name: &str, kind: ElementType) -> Result<Value, OnnxError> {
        let view = self.weights.get(name)?;
        self.initializer(name, kind, view.shape, Source::Stored(view))
    }

    /// x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³))).
    pub fn gelu_tanh(&mut self, x: Value) -> Result<Value, OnnxError> {
        let kind = self.kind(x);
        let square = self.mul(x, x)?;
        let cube = self.mul(square, x)?;
        let factor = self.scalar(0.044_715, kind)?;
        let cubic = self.mul(cube, factor)?;
        let inner = self.add(x, cubic)?;
        let root = self.scalar((2.0 / std::f64::consts::PI).sqrt(), kind)?;
        let inner = self.mul(inner, root)?;
        let tanh = self.tanh(inner)?;
        self.half_of_one_plus(x, tanh)
    }

    /// x/2·(1 + erf(x/√2)).
    pub fn gelu_erf(&mut self, x: Value) -> Result<Value, OnnxError> {
        let kind = self.kind(x);
        let root = self.scalar(std::f64::consts::FRAC_1_SQRT_2, kind)?;
        let inner = self.mul(x, root)?;
        let erf = self.erf(inner)?;
        self.half_of_one_plus(x, erf)
    }

    /// x/2·(1 + y).
    fn half_of_one_plus(&mut self, x: Value, y: Value) -> Result<Value, OnnxError> {
        let kind = self.kind(x);
        let one = self.scalar(1.0, kind)?;
        let sum = self.add(y, one)?;
        let product = self.mul(x, sum)?;
        let half = self.scalar(0.5, kind)?;
        self.mul(product, half)
    }

    /// x·sigmoid(x).
    pub fn silu(&mut self, x: Value) -> Result<Value, OnnxError> {
        let sigmoid = self.sigmoid(x)?;
        self.mul(x, sigmoid)
    }

    /// (B, T, heads·width) → (B, heads, T, width).
    pub fn split_heads(&mut self, x: Value, heads: usize) -> Result<Value, OnnxError> {
        let split = self.with_heads(x, heads)?;
        self.transpose(split, &[0, 2, 1, 3])
    }

    /// (B, T, heads·width) → (B, heads, width, T), as the first factor of the scores needs keys.
    pub fn split_heads_turned(&mut self, x: Value, heads: usize) -> Result<Value, OnnxError> {
        let split = self.with_heads(x, heads)?;
        self.transpose(split, &[0, 2, 3, 1])
    }

    /// (B, T, heads·width) → (B, T, heads, width).
    pub fn with_heads(&mut self, x: Value, heads: usize) -> Result<Value, OnnxError> {
        match *self.shape(x) {
            [batch, length, Dim::Fixed(width)] if heads > 0 && width.is_multiple_of(heads) => {
                self.reshape(x, &[batch, length, heads.into(), (width / heads).into()])
            }
            _ => {
                let found = self.info(x).to_string();
                Err(self.error("Reshape", format!("(B, T, a multiple of {heads} heads)"), found))
            }
        }
    }

    /// (B, heads, T, width) → (B, T, heads·width).
    pub fn merge_heads(&mut self, x: Value) -> Result<Value, OnnxError> {
        let turned = self.transpose(x, &[0, 2, 1, 3])?;
        match *self.shape(turned) {
            [batch, length, Dim::Fixed(heads), Dim::Fixed(width)] => {
                self.reshape(turned, &[batch, length, (heads * width).into()])
            }
            _ => {
                let found = self.info(x).to_string();
                Err(self.error("Reshape", "(B, heads, T, width)", found))
            }
        }
    }

    /// softmax(q·k + bias)·v of q (B, heads, T, width), scaled already, k (B, heads, width, L), v (B, heads, L, width).
    /// The bias, f32 or the softmax's type, hides keys where it is very negative.
    pub fn attention(
        &mut self,
        q: Value,
        k: Value,
        v: Value,
        bias: Option<Value>,
    ) -> Result<Value, OnnxError> {
        let scores = self.matmul(q, k)?;
        let kind = if self.style.softmax_in_f32 { ElementType::F32 } else { self.style.kind };
        let mut scores = self.cast(scores, kind)?;
        if let Some(bias) = bias {
            scores = self.add(scores, bias)?;
        }
        let probabilities = self.softmax(scores)?;
        let probabilities = self.narrow(probabilities)?;
        self.matmul(probabilities, v)
    }

    /// The type in which scores get their bias.
    pub fn softmax_kind(&self) -> ElementType {
        if self.style.softmax_in_f32 { ElementType::F32 } else { self.style.kind }
    }

    /// From a boolean that says which keys count: 0 there, elsewhere half the most negative value, which no score makes
    /// infinite.
    pub fn bias_of(&mut self, keep: Value) -> Result<Value, OnnxError> {
        let kind = self.softmax_kind();
        let zero = self.scalar(0.0, kind)?;
        let hidden = self.scalar(-f64::from(kind.largest()) / 2.0, kind)?;
        self.select(keep, zero, hidden)
    }
}
