//! The few layers everything is made of, and the loader that fills them from a checkpoint.

use tch::{Device, Kind, TchError, Tensor};

use super::{ModelError, random::RandomWeights};
use crate::checkpoint::{WeightKind, Weights};

/// Where weights come from.
#[derive(Clone, Copy)]
pub enum WeightSource<'a> {
    /// The files of a checkpoint.
    Files(&'a Weights),
    /// A seed.
    Random(&'a RandomWeights),
}

impl<'a> From<&'a Weights> for WeightSource<'a> {
    fn from(weights: &'a Weights) -> Self {
        Self::Files(weights)
    }
}

impl<'a> From<&'a RandomWeights> for WeightSource<'a> {
    fn from(weights: &'a RandomWeights) -> Self {
        Self::Random(weights)
    }
}

/// Where weights come from and where they go.
#[derive(Clone)]
pub struct Loader<'a> {
    source: WeightSource<'a>,
    prefix: String,
    device: Device,
    kind: Kind,
}

impl<'a> Loader<'a> {
    /// Loads to `device` as `kind`, whatever type the source has.
    pub fn new(source: impl Into<WeightSource<'a>>, device: Device, kind: Kind) -> Self {
        Self { source: source.into(), prefix: String::new(), device, kind }
    }

    /// The same loader, one module further down.
    pub fn at(&self, module: impl std::fmt::Display) -> Self {
        Self { prefix: format!("{}{module}.", self.prefix), ..self.clone() }
    }

    /// Where tensors go.
    pub fn device(&self) -> Device {
        self.device
    }

    /// What type tensors take.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The tensor `name` below this module.
    pub fn tensor(&self, name: &str) -> Result<Tensor, ModelError> {
        let name = format!("{}{name}", self.prefix);
        match self.source {
            WeightSource::Files(weights) => {
                let view = weights.get(&name)?;
                self.upload(view.bytes, &extents(view.shape), view.kind)
            }
            WeightSource::Random(weights) => {
                weights.values(&name, 0, &extents(weights.shape(&name)?), self.device, self.kind)
            }
        }
    }

    /// Row `index` of the first axis of `name`, without reading the others.
    pub fn slice(&self, name: &str, index: usize) -> Result<Tensor, ModelError> {
        let name = format!("{}{name}", self.prefix);
        match self.source {
            WeightSource::Files(weights) => {
                let view = weights.get(&name)?;
                let (count, rest) = rows(&name, view.shape, index)?;
                let length = view.bytes.len() / count;
                self.upload(&view.bytes[index * length..(index + 1) * length], &rest, view.kind)
            }
            WeightSource::Random(weights) => {
                let (_, rest) = rows(&name, weights.shape(&name)?, index)?;
                let length: i64 = rest.iter().product();
                weights.values(&name, index as i64 * length, &rest, self.device, self.kind)
            }
        }
    }

    fn upload(&self, bytes: &[u8], shape: &[i64], kind: WeightKind) -> Result<Tensor, ModelError> {
        let kind = match kind {
            WeightKind::F32 => Kind::Float,
            WeightKind::F16 => Kind::Half,
            WeightKind::Bf16 => Kind::BFloat16,
        };
        let tensor = Tensor::f_from_data_size(bytes, shape, kind)?;
        Ok(tensor.f_to_device(self.device)?.f_to_kind(self.kind)?)
    }
}

fn extents(shape: &[usize]) -> Vec<i64> {
    shape.iter().map(|&n| n as i64).collect()
}

/// The number of rows of a stack and the shape of one, once it is sure that the row `index` is there.
fn rows(name: &str, shape: &[usize], index: usize) -> Result<(usize, Vec<i64>), ModelError> {
    let (&count, rest) = shape.split_first().unwrap_or((&0, &[]));
    if index < count {
        return Ok((count, extents(rest)));
    }
    Err(ModelError::Input {
        what: "embodiment index",
        expected: format!("below {count}, the first axis of {name}"),
        found: index.to_string(),
    })
}

/// y = x·Wᵀ + b with W stored (out, in).
#[derive(Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// Reads `weight` and `bias`.
    pub fn load(at: &Loader) -> Result<Self, ModelError> {
        Ok(Self { weight: at.tensor("weight")?, bias: Some(at.tensor("bias")?) })
    }

    /// Reads `weight` alone.
    pub fn load_without_bias(at: &Loader) -> Result<Self, ModelError> {
        Ok(Self { weight: at.tensor("weight")?, bias: None })
    }

    /// The same for inputs with zeros behind them, `inputs` values in all; as it is where it has so many.
    ///
    /// # Errors
    /// There is no memory.
    pub fn padded(&self, inputs: i64) -> Result<Self, ModelError> {
        let more = inputs - self.weight.size2()?.1;
        let weight = match more {
            0 => self.weight.shallow_clone(),
            _ => self.weight.f_constant_pad_nd([0, more])?.f_contiguous()?,
        };
        Ok(Self { weight, bias: self.bias.as_ref().map(Tensor::shallow_clone) })
    }

    /// (…, in) → (…, out).
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        x.f_linear(&self.weight, self.bias.as_ref())
    }

    /// [`forward`](Self::forward) of (B, R, in), written to `out` (B, R, out), which may be rows out of the middle of a tensor.
    ///
    /// # Errors
    /// libtorch refuses.
    pub fn forward_into(&self, x: &Tensor, out: &mut Tensor) -> Result<(), TchError> {
        if self.bias.is_none() && out.is_contiguous() {
            // The product itself writes there: on a GPU a copy less to be launched.
            let (outputs, inputs) = self.weight.size2()?;
            let rows = out.f_view([-1, outputs])?;
            drop(x.f_reshape([-1, inputs])?.f_mm_out(&rows, &self.weight.f_transpose(0, 1)?)?);
            return Ok(());
        }
        out.f_copy_(&self.forward(x)?)
    }

    /// (out, in).
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// (out).
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }
}

/// Linear layers of the same input, their weights in one piece of memory, so that one product can do for all of them.
#[derive(Debug)]
pub struct JoinedLinear {
    all: Linear,
}

impl JoinedLinear {
    /// Reads `weight` and `bias` of each; returns them also one by one, as views.
    ///
    /// # Errors
    /// A tensor is missing, or they are not of the same input.
    pub fn load<const N: usize>(parts: [&Loader; N]) -> Result<(Self, [Linear; N]), ModelError> {
        Self::join(parts.map(Linear::load))
    }

    /// Reads `weight` of each; returns them also one by one, as views.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_without_bias<const N: usize>(parts: [&Loader; N]) -> Result<(Self, [Linear; N]), ModelError> {
        Self::join(parts.map(Linear::load_without_bias))
    }

    fn join<const N: usize>(
        parts: [Result<Linear, ModelError>; N],
    ) -> Result<(Self, [Linear; N]), ModelError> {
        let mut loaded = Vec::with_capacity(N);
        for part in parts {
            loaded.push(part?);
        }
        let weights: Vec<&Tensor> = loaded.iter().map(|part| &part.weight).collect();
        let biases: Vec<&Tensor> = loaded.iter().filter_map(|part| part.bias.as_ref()).collect();
        let bias = if biases.is_empty() { None } else { Some(Tensor::f_cat(&biases, 0)?) };
        let all = Linear { weight: Tensor::f_cat(&weights, 0)?, bias };
        let mut first = 0;
        let views = loaded
            .iter()
            .map(|part| {
                let rows = part.weight.size().first().copied().unwrap_or(0);
                let view = |joined: &Tensor| joined.f_narrow(0, first, rows);
                let bias = all.bias.as_ref().map(view).transpose()?;
                let part = Linear { weight: view(&all.weight)?, bias };
                first += rows;
                Ok(part)
            })
            .collect::<Result<Vec<_>, ModelError>>()?;
        // As many as came in.
        let views = views.try_into().unwrap_or_else(|_| unreachable!());
        Ok((Self { all }, views))
    }

    /// All as one: (…, in) → (…, sum of all out), side by side in their order.
    pub fn all(&self) -> &Linear {
        &self.all
    }

    /// Columns of [`all`](Self::all)'s result.
    pub fn outputs(&self) -> i64 {
        self.all.weight.size().first().copied().unwrap_or(0)
    }
}

/// Layer normalisation over the last axis, computed in f32 inside.
#[derive(Debug)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    /// Reads `weight` and `bias`.
    pub fn load(at: &Loader, eps: f64) -> Result<Self, ModelError> {
        Ok(Self::new(at.tensor("weight")?, at.tensor("bias")?, eps))
    }

    /// From a weight and a bias that are there already.
    pub fn new(weight: Tensor, bias: Tensor, eps: f64) -> Self {
        Self { weight, bias, eps }
    }

    /// Weight, bias, epsilon.
    pub fn parameters(&self) -> (&Tensor, &Tensor, f64) {
        (&self.weight, &self.bias, self.eps)
    }

    /// Same shape out as in.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        x.f_layer_norm(self.weight.size(), Some(&self.weight), Some(&self.bias), self.eps, false)
    }
}

/// Layer normalisation without parameters over the last axis.
pub fn plain_layer_norm(x: &Tensor, eps: f64) -> Result<Tensor, TchError> {
    let width = x.size().last().copied().unwrap_or(1);
    x.f_layer_norm::<Tensor>([width], None, None, eps, false)
}

/// Root-mean-square normalisation over the last axis.
///
/// The reference's type rule: square, mean and rsqrt in f32, back to the model's type, then the weight.
#[derive(Debug)]
pub struct RmsNorm {
    weight: Tensor,
    eps: f64,
}

impl RmsNorm {
    /// Reads `weight`.
    pub fn load(at: &Loader, eps: f64) -> Result<Self, ModelError> {
        Ok(Self::new(at.tensor("weight")?, eps))
    }

    /// From a weight that is there already.
    pub fn new(weight: Tensor, eps: f64) -> Self {
        Self { weight, eps }
    }

    /// Weight, epsilon.
    pub fn parameters(&self) -> (&Tensor, f64) {
        (&self.weight, self.eps)
    }

    /// Same shape out as in.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        let kind = x.f_kind()?;
        let wide = x.f_to_kind(Kind::Float)?;
        let mean = wide.f_square()?.f_mean_dim(-1, true, Kind::Float)?;
        let normed = wide.f_mul(&mean.f_add_scalar(self.eps)?.f_rsqrt()?)?;
        normed.f_to_kind(kind)?.f_mul(&self.weight)
    }
}

/// (B, T, heads·width) → (B, heads, T, width).
pub fn split_heads(x: &Tensor, heads: i64) -> Result<Tensor, TchError> {
    let size = x.size();
    let (batch, length, width) = (size[0], size[1], size[2]);
    x.f_reshape([batch, length, heads, width / heads])?.f_transpose(1, 2)
}

/// (B, heads, T, width) → (B, T, heads·width).
pub fn merge_heads(x: &Tensor) -> Result<Tensor, TchError> {
    let size = x.size();
    let (batch, heads, length, width) = (size[0], size[1], size[2], size[3]);
    x.f_transpose(1, 2)?.f_reshape([batch, length, heads * width])
}

/// Scaled dot-product attention over (B, heads, T, width), scale width^-0.5. `mask` is boolean, true = attend.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>) -> Result<Tensor, TchError> {
    Tensor::f_scaled_dot_product_attention(q, k, v, mask, 0.0, false, None, false)
}

/// The backbone's attention: as [`attention`], causal where asked for, with grouped key/value heads where there are fewer
/// of them (query head h reads key/value head h / (heads / key/value heads)).
///
/// On the CPU a bf16 model attends in f32 and rounds once: libtorch's CPU kernel would round the probabilities too.
pub fn backbone_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: Option<&Tensor>,
    causal: bool,
) -> Result<Tensor, TchError> {
    let grouped = q.size().get(1) != k.size().get(1);
    let attend = |q: &Tensor, k: &Tensor, v: &Tensor| {
        Tensor::f_scaled_dot_product_attention(q, k, v, mask, 0.0, causal, None, grouped)
    };
    let kind = q.f_kind()?;
    if q.device().is_cuda() || kind == Kind::Float {
        return attend(q, k, v);
    }
    let wide = |x: &Tensor| x.f_to_kind(Kind::Float);
    attend(&wide(q)?, &wide(k)?, &wide(v)?)?.f_to_kind(kind)
}

/// sin and cos of t·exp(exponent), f32, each (timesteps, frequencies), from f32 exponents.
///
/// From the exponential on in f64: libtorch's f32 exponential differs between CPUs in the last digit, which a timestep of
/// 999 makes 6e-5 of the angle. In f64 the result is the same everywhere and as near as can be to each of them.
pub fn sinusoids(timesteps: &[i64], exponent: &Tensor) -> Result<(Tensor, Tensor), TchError> {
    let frequencies = exponent.f_to_kind(Kind::Double)?.f_exp()?;
    let t = Tensor::f_from_slice(timesteps)?.f_to_kind(Kind::Double)?.f_unsqueeze(1)?;
    let angles = t.f_mul(&frequencies)?;
    Ok((angles.f_sin()?.f_to_kind(Kind::Float)?, angles.f_cos()?.f_to_kind(Kind::Float)?))
}
