//! Prompts without a tokenizer: random words in the frame that the chat template gives them.
//!
//! Random weights come without the tokenizer's files, and speed and rounding errors depend on how many tokens there are and
//! which of them are images, not on what the words mean. So the frame (system line, image tags, line ends) is written down here
//! as the ids that the tokenizer gives it, and the instruction is drawn.

use rand::Rng;

use crate::processor::text::{IMAGE_TOKEN_ID, Prompt};

/// `<|im_start|>`.
const START: i64 = 151_644;
/// `<|im_end|>`.
const END: i64 = 151_645;
/// `<img>`.
const IMAGE_START: i64 = 151_670;
/// `</img>`.
const IMAGE_END: i64 = 151_671;
/// A line end.
const NEWLINE: i64 = 198;
/// "system", line end, "You are a helpful assistant.".
const SYSTEM: [i64; 8] = [8948, NEWLINE, 2610, 525, 264, 10_950, 17_847, 13];
/// "user", line end.
const USER: [i64; 2] = [872, NEWLINE];
/// "<", "image", " ", then the number and ">".
const TAG: [i64; 3] = [27, 1805, 220];
const TAG_END: i64 = 29;
/// The digit "0".
const ZERO: i64 = 15;
/// Ids below this one are ordinary words; those above are special or unused.
const WORDS: i64 = 151_643;

/// Tokens before the instruction.
pub const BEFORE_INSTRUCTION: usize = 14;
/// Tokens before the first image token besides the instruction: the images' tags come after it.
pub const PREFIX_TOKENS: usize = BEFORE_INSTRUCTION + 6;
/// Tokens of a prompt besides instruction and images: 14 before the instruction, 2 after the last image.
pub const FRAME_TOKENS: usize = 16;
/// Tokens around the image tokens of one image: `<image 1>` is five, `<img>` and `</img>` two.
/// (From the tenth image on the number would have two digits.)
pub const IMAGE_FRAME_TOKENS: usize = 7;

/// A prompt of `instruction_tokens` random words and one image per entry of `image_tokens`.
pub fn random_prompt(generator: &mut impl Rng, instruction_tokens: usize, image_tokens: &[usize]) -> Prompt {
    let mut ids = vec![START];
    ids.extend(SYSTEM);
    ids.extend([END, NEWLINE, START]);
    ids.extend(USER);
    ids.extend((0..instruction_tokens).map(|_| generator.random_range(0..WORDS)));
    for (image, &tokens) in image_tokens.iter().enumerate() {
        ids.extend(TAG);
        ids.extend([ZERO + image as i64 + 1, TAG_END, IMAGE_START]);
        ids.extend(std::iter::repeat_n(IMAGE_TOKEN_ID, tokens));
        ids.push(IMAGE_END);
    }
    ids.extend([END, NEWLINE]);
    Prompt { ids, images: (0..image_tokens.len()).collect(), text: String::new() }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::processor::text::PromptTokenizer;

    #[test]
    fn the_frame_around_the_instruction_is_that_of_the_real_tokenizer() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tokenizer");
        let tokenizer = PromptTokenizer::load(&folder).unwrap();
        let images = [3, 5];
        let real = tokenizer.encode("pick up the red block", true, &images).unwrap();
        let words = 5;
        let made = random_prompt(&mut ChaCha8Rng::seed_from_u64(1), words, &images);
        assert_eq!(made.ids.len(), FRAME_TOKENS + words + 8 + 2 * IMAGE_FRAME_TOKENS);
        assert_eq!(made.ids.len(), real.ids.len());
        let (before, after) = (BEFORE_INSTRUCTION, BEFORE_INSTRUCTION + words);
        assert_eq!(made.ids[..before], real.ids[..before]);
        assert_eq!(made.ids[after..], real.ids[after..]);
        assert_eq!(made.images, real.images);
        let first_image = made.ids.iter().position(|&id| id == IMAGE_TOKEN_ID);
        assert_eq!(first_image, Some(PREFIX_TOKENS + words));
        assert!(made.ids[before..after].iter().all(|id| (0..WORDS).contains(id)));
    }

    #[test]
    fn equal_seeds_give_equal_prompts_and_others_do_not() {
        let of = |seed| random_prompt(&mut ChaCha8Rng::seed_from_u64(seed), 9, &[4]).ids;
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
    }
}
