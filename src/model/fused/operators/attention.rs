//! The backbone's attention by the own kernel.

use std::sync::Arc;

use tch::{Kind, Tensor};

use super::super::super::{ModelError, operators::Sight};
use super::Operators;
use crate::cuda::{CudaError, SequenceAttention, SequenceAttentionArguments, Strides};

/// The strides of (B, heads, S, width).
fn strides(tensor: &Tensor) -> Strides {
    match tensor.stride()[..] {
        [sample, head, row, _] => Strides { sample, row, head },
        _ => Strides::default(),
    }
}

impl Operators {
    /// The kernel for heads of `width`, compiled the first time. That is before anything is captured, since the operators have
    /// to agree with the plain ones first.
    fn attention_of(&self, width: usize) -> Result<Arc<SequenceAttention>, CudaError> {
        let mut all = self.attentions.borrow_mut();
        if let Some(known) = all.get(&width) {
            return Ok(Arc::clone(known));
        }
        let made = Arc::new(SequenceAttention::new(&self.gpu, width)?);
        all.insert(width, Arc::clone(&made));
        Ok(made)
    }

    /// See [`attention`](super::BackboneOperators::attention); None for operands that the own kernel does not take.
    ///
    /// # Errors
    /// No NVRTC, or CUDA refuses.
    pub(in super::super) fn own_attention(
        &self,
        [query, key, value]: [&Tensor; 3],
        sight: Sight,
        first: i64,
    ) -> Result<Option<Tensor>, ModelError> {
        let follows_rotation = self.rotated.take() == query.data_ptr() as u64;
        let (&[batch, heads, rows, width], &[_, key_heads, keys, _]) = (&query.size()[..], &key.size()[..])
        else {
            return Ok(None);
        };
        let vectors = |tensor: &Tensor| {
            let stride = tensor.stride();
            (tensor.data_ptr() as u64).is_multiple_of(16)
                && stride.last() == Some(&1)
                && stride.iter().rev().skip(1).all(|stride| stride % 8 == 0)
        };
        let mut fits = SequenceAttention::takes(width.max(0) as usize)
            && (1..=rows).contains(&(rows - first))
            && rows <= i64::from(i32::MAX)
            && keys == rows
            && key_heads > 0
            && heads % key_heads == 0
            && key.size() == [batch, key_heads, keys, width]
            && value.size() == key.size();
        for tensor in [query, key, value] {
            fits = fits
                && tensor.f_kind()? == Kind::BFloat16
                && tensor.device() == self.device
                && vectors(tensor);
        }
        if let Sight::Masked(mask) = sight {
            fits = fits
                && mask.f_kind()? == Kind::Bool
                && mask.device() == self.device
                && mask.size() == [batch, 1, rows, keys]
                && mask.stride().last() == Some(&1);
        }
        if !fits {
            return Ok(None);
        }
        let kernel = self.attention_of(width as usize)?;
        let out = Tensor::f_empty([batch, rows - first, heads * width], (Kind::BFloat16, self.device))?;
        let query_stride = strides(query);
        let (mask, mask_stride) = match sight {
            Sight::Masked(mask) => (mask.data_ptr() as u64, strides(mask)),
            Sight::All | Sight::Causal => (0, Strides::default()),
        };
        let arguments = SequenceAttentionArguments {
            query: query.data_ptr() as u64 + (first * query_stride.row) as u64 * 2,
            key: key.data_ptr() as u64,
            value: value.data_ptr() as u64,
            mask: if mask == 0 { 0 } else { mask + (first * mask_stride.row) as u64 },
            out: out.data_ptr() as u64,
            query_stride,
            key_stride: strides(key),
            value_stride: strides(value),
            mask_sample: mask_stride.sample,
            mask_row: mask_stride.row,
            queries: (rows - first) as i32,
            keys: keys as i32,
            first: first as i32,
            group: (heads / key_heads) as i32,
            causal: i32::from(matches!(sight, Sight::Causal)),
            slots: 0,
            scale: (std::f64::consts::LOG2_E / (width as f64).sqrt()) as f32,
        };
        // Right behind the rotation, as both operators are used, it need not wait for that to be over before it starts; the
        // kernel itself waits.
        let queue = if follows_rotation {
            self.overlapping.continued();
            &self.overlapping
        } else {
            &self.queue
        };
        // SAFETY: the tensors' kinds, sizes, strides and device were checked; libtorch frees memory in the order of the stream
        // that this is queued on.
        unsafe { kernel.attend(queue, (batch as usize, heads as usize), &arguments)? };
        Ok(Some(out))
    }
}
