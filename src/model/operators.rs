//! The backbone's operators between its matrix products, behind the trait that every way of doing them implements.

use tch::Tensor;

use super::{
    ModelError,
    cuda::Stream,
    layers::{LayerNorm, Linear, RmsNorm},
    sequence::rotate,
};

/// What stands between the products of vision tower and language model, each as one operator.
///
/// All tensors are of the model's type and on its device. An `addend` is added to `x` in place first: the residual stream
/// takes up what the last half of a layer made, and its norm is taken at once.
pub trait BackboneOperators: Send {
    /// What they are, for logs and diagnostics.
    fn identity(&self) -> String;

    /// Queues on libtorch's current stream, which `stream` is from now on.
    ///
    /// # Errors
    /// The stream belongs to another device.
    fn queue_on(&mut self, _stream: &Stream) -> Result<(), ModelError> {
        Ok(())
    }

    /// LayerNorm of `x` over the last axis.
    fn layer_norm(
        &self,
        x: &mut Tensor,
        addend: Option<&Tensor>,
        norm: &LayerNorm,
    ) -> Result<Tensor, ModelError>;

    /// RMSNorm of `x` over the last axis.
    fn rms_norm(&self, x: &mut Tensor, addend: Option<&Tensor>, norm: &RmsNorm)
    -> Result<Tensor, ModelError>;

    /// RMSNorm of each head and rotation: `x` (B, S, heads · width), whose rows may lie apart, and tables (S, width) →
    /// (B, heads, S, width).
    fn norm_rotary(
        &self,
        x: &Tensor,
        heads: i64,
        norm: &RmsNorm,
        tables: (&Tensor, &Tensor),
    ) -> Result<Tensor, ModelError>;

    /// silu(gate) · up of rows that hold both, gate first: (…, 2·width) → (…, width).
    fn swiglu(&self, joined: &Tensor) -> Result<Tensor, ModelError>;

    /// A linear layer and the tanh form of GELU.
    fn linear_gelu(&self, x: &Tensor, linear: &Linear) -> Result<Tensor, ModelError>;
}

/// The operators as libtorch has them, one after the other; they round where the plain path rounds.
#[derive(Debug, Clone, Copy, Default)]
pub struct PlainOperators;

fn take_up(x: &mut Tensor, addend: Option<&Tensor>) -> Result<(), ModelError> {
    if let Some(addend) = addend {
        // In place; what comes back is `x` itself.
        drop(x.f_add_(addend)?);
    }
    Ok(())
}

impl BackboneOperators for PlainOperators {
    fn identity(&self) -> String {
        "libtorch".to_owned()
    }

    fn layer_norm(
        &self,
        x: &mut Tensor,
        addend: Option<&Tensor>,
        norm: &LayerNorm,
    ) -> Result<Tensor, ModelError> {
        take_up(x, addend)?;
        Ok(norm.forward(x)?)
    }

    fn rms_norm(
        &self,
        x: &mut Tensor,
        addend: Option<&Tensor>,
        norm: &RmsNorm,
    ) -> Result<Tensor, ModelError> {
        take_up(x, addend)?;
        Ok(norm.forward(x)?)
    }

    fn norm_rotary(
        &self,
        x: &Tensor,
        heads: i64,
        norm: &RmsNorm,
        (cos, sin): (&Tensor, &Tensor),
    ) -> Result<Tensor, ModelError> {
        let size = x.size();
        let split = x.f_reshape([size[0], size[1], heads, size[2] / heads.max(1)])?;
        rotate(&norm.forward(&split)?.f_transpose(1, 2)?, cos, sin)
    }

    fn swiglu(&self, joined: &Tensor) -> Result<Tensor, ModelError> {
        let halves = joined.f_chunk(2, -1)?;
        match halves.as_slice() {
            [gate, up] => Ok(gate.f_silu()?.f_mul(up)?),
            _ => Err(ModelError::Input {
                what: "input of a gate",
                expected: "an even number of columns".to_owned(),
                found: format!("{:?}", joined.size()),
            }),
        }
    }

    fn linear_gelu(&self, x: &Tensor, linear: &Linear) -> Result<Tensor, ModelError> {
        Ok(linear.forward(x)?.f_gelu("tanh")?)
    }
}
