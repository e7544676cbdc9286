//! Prompts of different length in one batch.

use ndarray::{Array2, s};

use super::{IMAGE_TOKEN_ID, PAD_TOKEN_ID};

/// Prompts padded on the **left** to the longest; all arrays have the shape (batch, sequence).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PaddedPrompts {
    /// Token ids.
    pub input_ids: Array2<i64>,
    /// 1 for a real token, 0 for padding.
    pub attention_mask: Array2<i64>,
    /// Whether an image embedding replaces the token's.
    pub image_mask: Array2<bool>,
}

/// Pads token ids on the left with [`PAD_TOKEN_ID`].
pub fn left_pad(prompts: &[&[i64]]) -> PaddedPrompts {
    let length = prompts.iter().map(|ids| ids.len()).max().unwrap_or(0);
    let mut input_ids = Array2::from_elem((prompts.len(), length), PAD_TOKEN_ID);
    let mut attention_mask = Array2::zeros(input_ids.raw_dim());
    for (row, ids) in prompts.iter().enumerate() {
        let start = length - ids.len();
        input_ids.slice_mut(s![row, start..]).iter_mut().zip(*ids).for_each(|(slot, &id)| *slot = id);
        attention_mask.slice_mut(s![row, start..]).fill(1);
    }
    let image_mask = input_ids.mapv(|id| id == IMAGE_TOKEN_ID);
    PaddedPrompts { input_ids, attention_mask, image_mask }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn shorter_prompts_are_padded_on_the_left() {
        let padded = left_pad(&[&[7], &[1, IMAGE_TOKEN_ID, 3]]);
        assert_eq!(padded.input_ids, array![[PAD_TOKEN_ID, PAD_TOKEN_ID, 7], [1, IMAGE_TOKEN_ID, 3]]);
        assert_eq!(padded.attention_mask, array![[0, 0, 1], [1, 1, 1]]);
        assert_eq!(padded.image_mask, array![[false, false, false], [false, true, false]]);
    }

    #[test]
    fn no_prompts_make_an_empty_batch() {
        assert_eq!(left_pad(&[]).input_ids.dim(), (0, 0));
    }
}
