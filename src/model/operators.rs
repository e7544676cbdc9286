//! The backbone's operators between its matrix products, behind the trait that every way of doing them implements.

use tch::{Kind, Tensor};

use super::{
    ModelError,
    cuda::Stream,
    layers::{LayerNorm, Linear, RmsNorm, backbone_attention, merge_heads},
    sequence::rotate,
    vision::{normalize_pixels, patchify},
};

/// Which keys a query of the backbone sees.
#[derive(Debug, Clone, Copy)]
pub enum Sight<'a> {
    /// All.
    All,
    /// Those at its own place and before it.
    Causal,
    /// Those where this boolean mask (B, 1, S, S) is true.
    Masked(&'a Tensor),
}

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

    /// Whether products of sizes that are met for the first time may be measured until the fastest way is known, which takes
    /// seconds and must not be captured. At first they may not.
    fn allow_tuning(&self, _allowed: bool) {}

    /// Vectors of patches of `side` pixels a side, (N, P, columns), zeros behind the patch's own values, of frames (N, H, W,
    /// 3) of bytes: each (byte − 127.5) / 127.5 in `kind`.
    fn patches(&self, frames: &Tensor, side: i64, columns: i64, kind: Kind) -> Result<Tensor, ModelError>;

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

    /// RMSNorm of each head of queries and keys, and its rotation: `x` (B, S, columns) holds the queries' heads, then the
    /// keys', and rows may lie apart; with tables (S, width) → queries and keys, each (B, heads, S, width).
    fn norm_rotary(
        &self,
        x: &Tensor,
        heads: [i64; 2],
        norms: [&RmsNorm; 2],
        tables: (&Tensor, &Tensor),
    ) -> Result<[Tensor; 2], ModelError>;

    /// Attention of query, key and value, each (B, heads, S, width), fewer heads of key and value than of the query where
    /// several of its heads share one → (B, S - first, heads · width), for the queries from `first` on.
    ///
    /// They see all keys, or those that `sight` lets them see.
    fn attention(&self, operands: [&Tensor; 3], sight: Sight, first: i64) -> Result<Tensor, ModelError>;

    /// silu(gate) · up of rows that hold both, gate first: (…, 2·width) → (…, width).
    fn swiglu(&self, joined: &Tensor) -> Result<Tensor, ModelError>;

    /// A linear layer: (…, in) → (…, out).
    fn linear(&self, x: &Tensor, linear: &Linear) -> Result<Tensor, ModelError>;

    /// [`linear`](Self::linear) of (B, R, in), written to `out` (B, R, out), which may be rows out of the middle of a tensor.
    fn linear_into(&self, x: &Tensor, linear: &Linear, out: &mut Tensor) -> Result<(), ModelError>;

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

    fn patches(&self, frames: &Tensor, side: i64, columns: i64, kind: Kind) -> Result<Tensor, ModelError> {
        let patches = patchify(&normalize_pixels(frames, kind)?, side)?;
        match columns - patches.size().last().copied().unwrap_or(0) {
            0 => Ok(patches),
            more => Ok(patches.f_constant_pad_nd([0, more])?),
        }
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
        heads: [i64; 2],
        norms: [&RmsNorm; 2],
        (cos, sin): (&Tensor, &Tensor),
    ) -> Result<[Tensor; 2], ModelError> {
        let (batch, tokens, _) = x.size3()?;
        let width = cos.size().last().copied().unwrap_or(0);
        let part = |first: i64, heads: i64, norm: &RmsNorm| {
            let columns = x.f_narrow(-1, first * width, heads * width)?;
            let split = columns.f_reshape([batch, tokens, heads, width])?;
            rotate(&norm.forward(&split)?.f_transpose(1, 2)?, cos, sin)
        };
        Ok([part(0, heads[0], norms[0])?, part(heads[0], heads[1], norms[1])?])
    }

    fn attention(
        &self,
        [query, key, value]: [&Tensor; 3],
        sight: Sight,
        first: i64,
    ) -> Result<Tensor, ModelError> {
        let (mask, causal) = match sight {
            Sight::All => (None, false),
            Sight::Causal => (None, true),
            Sight::Masked(mask) => (Some(mask), false),
        };
        // Of all queries: square and causal is the one form that libtorch's fast kernels take.
        let merged = merge_heads(&backbone_attention(query, key, value, mask, causal)?)?;
        if first == 0 {
            return Ok(merged);
        }
        Ok(merged.f_narrow(1, first, query.size4()?.2 - first)?)
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

    fn linear(&self, x: &Tensor, linear: &Linear) -> Result<Tensor, ModelError> {
        Ok(linear.forward(x)?)
    }

    fn linear_into(&self, x: &Tensor, linear: &Linear, out: &mut Tensor) -> Result<(), ModelError> {
        Ok(linear.forward_into(x, out)?)
    }

    fn linear_gelu(&self, x: &Tensor, linear: &Linear) -> Result<Tensor, ModelError> {
        Ok(linear.forward(x)?.f_gelu("tanh")?)
    }
}
