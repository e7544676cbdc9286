//! What all layers of the language model share for one prompt: rotary tables, causal mask, padding.

use tch::{Device, Kind, Tensor};

use super::{
    ModelError,
    tokens::{TokenLayout, duplicate},
};

/// Inverse frequencies theta^(-2i/width) for i < width/2, rounded to `kind`, back in f32.
///
/// `model.to(bfloat16)` in the reference rounds this buffer too, and checkpoints were evaluated with it so.
pub fn inverse_frequencies(theta: f64, width: usize, kind: Kind) -> Result<Tensor, ModelError> {
    let exponent = Tensor::f_arange_start_step(0.0, width as f64, 2.0, (Kind::Float, Device::Cpu))?
        .f_div_scalar(width as f64)?;
    let exact = Tensor::f_pow_scalar(theta, &exponent)?.f_reciprocal()?;
    Ok(exact.f_to_kind(kind)?.f_to_kind(Kind::Float)?)
}

/// Rotary tables (cos, sin), each (positions, width), both halves alike.
pub fn rotary_tables(frequencies: &Tensor, positions: i64) -> Result<(Tensor, Tensor), ModelError> {
    let position = Tensor::f_arange(positions, (Kind::Float, frequencies.device()))?;
    let angles = position.f_unsqueeze(1)?.f_mul(&frequencies.f_unsqueeze(0)?)?;
    let angles = Tensor::f_cat(&[&angles, &angles], -1)?;
    Ok((angles.f_cos()?, angles.f_sin()?))
}

/// Rotates (B, heads, S, width) by tables (S, width): halves [x1, x2] → [x1·cos − x2·sin, x2·cos + x1·sin].
pub(super) fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor, ModelError> {
    let half = x.size().last().copied().unwrap_or(0) / 2;
    let turned = Tensor::f_cat(&[x.f_narrow(-1, half, half)?.f_neg()?, x.f_narrow(-1, 0, half)?], -1)?;
    Ok(x.f_mul(cos)?.f_add(&turned.f_mul(sin)?)?)
}

/// Rotary tables and padding of one prompt layout, shared by all layers.
pub struct SequenceContext {
    pub(super) cos: Tensor,
    pub(super) sin: Tensor,
    /// Boolean (B, 1, S, S); absent where plain causality says it all.
    pub(super) mask: Option<Tensor>,
    /// 1 for real tokens, 0 for padding, (B, S, 1); absent where nothing is padded.
    pub(super) keep: Option<Tensor>,
}

impl SequenceContext {
    /// Tables for the layout's length in `kind`.
    pub fn new(frequencies: &Tensor, layout: &TokenLayout, kind: Kind) -> Result<Self, ModelError> {
        let device = layout.input_ids.device();
        let (cos, sin) = rotary_tables(frequencies, layout.seq_len())?;
        let keep = match &layout.padding {
            Some(padding) => Some(padding.f_unsqueeze(-1)?.f_to_kind(kind)?),
            None => None,
        };
        Ok(Self {
            cos: cos.f_to_kind(kind)?.f_to_device(device)?,
            sin: sin.f_to_kind(kind)?.f_to_device(device)?,
            mask: layout.causal_mask()?,
            keep,
        })
    }

    /// Takes over the padding of a context for a layout of the same shape; no tensor moves.
    ///
    /// # Errors
    /// A context for a layout of another shape.
    pub fn refill(&mut self, other: &Self) -> Result<(), ModelError> {
        for (own, other) in [(&mut self.mask, &other.mask), (&mut self.keep, &other.keep)] {
            if let (Some(own), Some(other)) = (own, other) {
                own.f_copy_(other)?;
            }
        }
        Ok(())
    }

    /// The same in memory of its own.
    ///
    /// # Errors
    /// There is no memory.
    pub fn deep_copy(&self) -> Result<Self, ModelError> {
        Ok(Self {
            cos: duplicate(&self.cos)?,
            sin: duplicate(&self.sin)?,
            mask: self.mask.as_ref().map(duplicate).transpose()?,
            keep: self.keep.as_ref().map(duplicate).transpose()?,
        })
    }

    /// The same of the first `count` tokens alone, on the same memory.
    ///
    /// # Errors
    /// There are fewer.
    pub fn first(&self, count: i64) -> Result<Self, ModelError> {
        let rows = |mask: &Tensor| mask.f_narrow(2, 0, count)?.f_narrow(3, 0, count);
        Ok(Self {
            cos: self.cos.f_narrow(0, 0, count)?,
            sin: self.sin.f_narrow(0, 0, count)?,
            mask: self.mask.as_ref().map(rows).transpose()?,
            keep: self.keep.as_ref().map(|keep| keep.f_narrow(1, 0, count)).transpose()?,
        })
    }

    /// Rotary tables (cos, sin), each (S, width).
    pub fn rotary(&self) -> (&Tensor, &Tensor) {
        (&self.cos, &self.sin)
    }
}
