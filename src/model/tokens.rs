//! Which tokens of the prompt are images, text and padding; made once per prompt and kept while it is unchanged.

use ndarray::{Array2, ArrayView2, s};
use tch::{Device, Kind, Tensor};

use super::ModelError;

/// One group of tokens gathered out of each row of the batch.
#[derive(Debug)]
pub struct TokenGroup {
    /// Flat positions in the (B·S) token list, shape (B·L). Rows with fewer tokens repeat one of their own.
    index: Tensor,
    length: i64,
    batch: i64,
    /// True where a gathered token counts, shape (B, 1, 1, L); absent where all do.
    pub mask: Option<Tensor>,
}

impl TokenGroup {
    fn new(positions: &[Vec<i64>], seq_len: usize, device: Device) -> Result<Self, ModelError> {
        let length = positions.iter().map(Vec::len).max().unwrap_or(0);
        let ragged = positions.iter().any(|row| row.len() != length);
        let mut flat = Vec::with_capacity(length * positions.len());
        let mut mask = Vec::with_capacity(length * positions.len());
        for (row, own) in positions.iter().enumerate() {
            let base = (row * seq_len) as i64;
            flat.extend(own.iter().map(|p| base + p));
            mask.extend(own.iter().map(|_| true));
            for _ in own.len()..length {
                flat.push(base + own.first().copied().unwrap_or(0));
                mask.push(false);
            }
        }
        let batch = positions.len() as i64;
        let mask = if ragged {
            Some(Tensor::f_from_slice(&mask)?.f_reshape([batch, 1, 1, length as i64])?.f_to_device(device)?)
        } else {
            None
        };
        let index = Tensor::f_from_slice(&flat)?.f_to_device(device)?;
        Ok(Self { index, length: length as i64, batch, mask })
    }

    /// Takes over a group of the same shape; no tensor moves.
    fn refill(&mut self, other: &Self) -> Result<(), ModelError> {
        self.index.f_copy_(&other.index)?;
        if let (Some(mask), Some(other)) = (&mut self.mask, &other.mask) {
            mask.f_copy_(other)?;
        }
        Ok(())
    }

    fn deep_copy(&self) -> Result<Self, ModelError> {
        let mask = self.mask.as_ref().map(duplicate).transpose()?;
        Ok(Self { index: duplicate(&self.index)?, length: self.length, batch: self.batch, mask })
    }

    /// (B, S, D) → (B, L, D).
    pub fn gather(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        let width = x.size().last().copied().unwrap_or(0);
        let rows = x.f_reshape([-1, width])?.f_index_select(0, &self.index)?;
        Ok(rows.f_reshape([self.batch, self.length, width])?)
    }

    /// Flat positions of the group's tokens, shape (B·L).
    pub fn index(&self) -> &Tensor {
        &self.index
    }

    /// Tokens per row.
    pub fn len(&self) -> i64 {
        self.length
    }

    /// Whether no row has such a token.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }
}

/// A tensor of the same values in memory of its own.
pub(super) fn duplicate(tensor: &Tensor) -> Result<Tensor, ModelError> {
    let mut copy = tensor.f_empty_like()?;
    copy.f_copy_(tensor)?;
    Ok(copy)
}

/// The layout of a batch of prompts.
#[derive(Debug)]
pub struct TokenLayout {
    ids: Array2<i64>,
    valid: Array2<bool>,
    /// Token ids on the device, shape (B, S).
    pub input_ids: Tensor,
    /// Image tokens.
    pub image: TokenGroup,
    /// Everything that is neither image nor padding.
    pub text: TokenGroup,
    /// True where a token is real, shape (B, S); absent where there is no padding.
    pub padding: Option<Tensor>,
    prefix: usize,
}

impl TokenLayout {
    /// Sorts the tokens of (B, S) `ids`; `valid` is the attention mask.
    pub fn new(
        ids: ArrayView2<i64>,
        valid: ArrayView2<bool>,
        image_token: i64,
        device: Device,
    ) -> Result<Self, ModelError> {
        if ids.dim() != valid.dim() || ids.is_empty() {
            return Err(ModelError::Input {
                what: "attention mask",
                expected: format!("the shape of the token ids, {:?}, not empty", ids.dim()),
                found: format!("{:?}", valid.dim()),
            });
        }
        let (batch, seq_len) = ids.dim();
        let mut image = vec![Vec::new(); batch];
        let mut text = vec![Vec::new(); batch];
        for ((row, position), &id) in ids.indexed_iter() {
            if valid[(row, position)] {
                let group = if id == image_token { &mut image } else { &mut text };
                group[row].push(position as i64);
            }
        }
        // Attention over no key at all has no value.
        for (name, group) in [("image tokens", &image), ("text tokens", &text)] {
            if let Some(row) = group.iter().position(Vec::is_empty) {
                return Err(ModelError::Input {
                    what: name,
                    expected: "at least one in each prompt of the batch".to_owned(),
                    found: format!("none in prompt {row}"),
                });
            }
        }
        let prefix = image.iter().filter_map(|row| row.first()).min().map_or(0, |&first| first as usize);
        let shape = [batch as i64, seq_len as i64];
        let flat: Vec<i64> = ids.iter().copied().collect();
        let padding = if valid.iter().all(|&v| v) {
            None
        } else {
            let flat: Vec<bool> = valid.iter().copied().collect();
            Some(Tensor::f_from_slice(&flat)?.f_reshape(shape)?.f_to_device(device)?)
        };
        Ok(Self {
            ids: ids.to_owned(),
            valid: valid.to_owned(),
            input_ids: Tensor::f_from_slice(&flat)?.f_reshape(shape)?.f_to_device(device)?,
            image: TokenGroup::new(&image, seq_len, device)?,
            text: TokenGroup::new(&text, seq_len, device)?,
            padding,
            prefix,
        })
    }

    /// Everything that decides the shape of any of its tensors, and which there are.
    pub fn shape(&self) -> Vec<i64> {
        let optional = [&self.image.mask, &self.text.mask, &self.padding];
        let mut shape = vec![self.batch(), self.seq_len(), self.image.len(), self.text.len()];
        shape.extend(optional.map(|tensor| i64::from(tensor.is_some())));
        shape
    }

    /// Takes over a layout of the same shape; no tensor moves.
    ///
    /// # Errors
    /// A layout of another shape.
    pub fn refill(&mut self, other: &Self) -> Result<(), ModelError> {
        if self.shape() != other.shape() {
            return Err(ModelError::Input {
                what: "layout of the prompt",
                expected: format!("{:?}", self.shape()),
                found: format!("{:?}", other.shape()),
            });
        }
        self.input_ids.f_copy_(&other.input_ids)?;
        self.image.refill(&other.image)?;
        self.text.refill(&other.text)?;
        if let (Some(padding), Some(other)) = (&mut self.padding, &other.padding) {
            padding.f_copy_(other)?;
        }
        self.ids.clone_from(&other.ids);
        self.valid.clone_from(&other.valid);
        self.prefix = other.prefix;
        Ok(())
    }

    /// The same in memory of its own.
    ///
    /// # Errors
    /// There is no memory.
    pub fn deep_copy(&self) -> Result<Self, ModelError> {
        Ok(Self {
            ids: self.ids.clone(),
            valid: self.valid.clone(),
            input_ids: duplicate(&self.input_ids)?,
            image: self.image.deep_copy()?,
            text: self.text.deep_copy()?,
            padding: self.padding.as_ref().map(duplicate).transpose()?,
            prefix: self.prefix,
        })
    }

    /// Whether this is the layout of these prompts.
    pub fn matches(&self, ids: ArrayView2<i64>, valid: ArrayView2<bool>) -> bool {
        self.ids == ids && self.valid == valid
    }

    /// Tokens before the first image token of any prompt of the batch, padding included: no image can be seen from them.
    pub fn prefix(&self) -> usize {
        self.prefix
    }

    /// Ids and validity of the [`prefix`](Self::prefix), (B, prefix).
    pub fn prefix_tokens(&self) -> (ArrayView2<'_, i64>, ArrayView2<'_, bool>) {
        (self.ids.slice(s![.., ..self.prefix]), self.valid.slice(s![.., ..self.prefix]))
    }

    /// Prompts in the batch.
    pub fn batch(&self) -> i64 {
        self.ids.nrows() as i64
    }

    /// Tokens per prompt, padding included.
    pub fn seq_len(&self) -> i64 {
        self.ids.ncols() as i64
    }

    /// Key mask of causal self-attention under left padding, boolean (B, 1, S, S); absent where nothing is padded.
    ///
    /// A padded query may attend itself, so that its softmax has a value; its output is zeroed afterwards.
    pub fn causal_mask(&self) -> Result<Option<Tensor>, ModelError> {
        let Some(padding) = &self.padding else { return Ok(None) };
        let (batch, s) = (self.batch(), self.seq_len());
        let options = (Kind::Bool, padding.device());
        let causal = Tensor::f_ones([s, s], options)?.f_tril(0)?;
        let own = Tensor::f_eye(s, (Kind::Float, padding.device()))?.f_to_kind(Kind::Bool)?;
        let keys = padding.f_reshape([batch, 1, 1, s])?;
        Ok(Some(causal.f_logical_and(&keys)?.f_logical_or(&own)?))
    }
}
