//! What the configuration implies for denoising, whichever engine runs it.

/// Timestep bucket of each of `steps` denoising steps: int(s / steps · buckets), truncated as the reference does.
pub fn timesteps(steps: usize, buckets: usize) -> Vec<i64> {
    (0..steps).map(|s| (s as f64 / steps as f64 * buckets as f64) as i64).collect()
}

/// What a block of the diffusion transformer reads besides its own tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockContext {
    /// Cross-attention over everything that is neither image nor padding.
    Text,
    /// Cross-attention over the image tokens.
    Image,
    /// Self-attention.
    Own,
}

impl BlockContext {
    /// Even blocks cross-attend, text and images alternating every `every` cross blocks; odd ones self-attend.
    pub fn of(block: usize, attend_text_every_n_blocks: usize) -> Self {
        if block % 2 == 1 {
            Self::Own
        } else if block.is_multiple_of(2 * attend_text_every_n_blocks) {
            Self::Text
        } else {
            Self::Image
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timesteps_are_truncated_as_the_reference_truncates_them() {
        assert_eq!(timesteps(4, 1000), [0, 250, 500, 750]);
        assert_eq!(timesteps(6, 1000), [0, 166, 333, 500, 666, 833]);
        assert_eq!(timesteps(1, 1000), [0]);
    }

    #[test]
    fn text_and_image_blocks_alternate_between_self_attending_ones() {
        use BlockContext::{Image, Own, Text};
        let contexts: Vec<_> = (0..8).map(|block| BlockContext::of(block, 2)).collect();
        assert_eq!(contexts, [Text, Own, Image, Own, Text, Own, Image, Own]);
        assert_eq!(BlockContext::of(2, 1), Text);
    }
}
