//! Instruction → token ids of the whole prompt.
//!
//! ```text
//! instruction ─ formalize ─► text ─ chat_text ─► <image-i> placeholders ─ expand_images ─► byte-level BPE ─► ids
//! ```

mod cache;
mod files;
mod formalize;
mod padding;
mod prompt;
mod tokenizer;

use std::path::PathBuf;

use crate::checkpoint::side_file::SideFileError;

pub use formalize::formalize;
pub use padding::{PaddedPrompts, left_pad};
pub use prompt::{ExpandedPrompt, chat_text, expand_images};
pub use tokenizer::{Prompt, PromptTokenizer};

/// Id that pads shorter prompts of a batch, `<|endoftext|>`.
pub const PAD_TOKEN_ID: i64 = 151_643;
/// Id whose embedding is replaced by an image embedding, `<IMG_CONTEXT>`.
pub const IMAGE_TOKEN_ID: i64 = 151_669;
/// Longest instruction that is accepted, in characters. A task description has some hundred; the bound keeps a faulty
/// publisher from stalling the policy.
pub const MAX_INSTRUCTION_CHARS: usize = 4096;
/// Longest prompt that is accepted, in tokens: the tokenizer's own `model_max_length`.
pub const MAX_PROMPT_TOKENS: usize = 32_768;

/// The tokenizer cannot be loaded, or an instruction cannot be encoded.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// A file of the tokenizer folder is absent or malformed.
    #[error(transparent)]
    File(#[from] SideFileError),
    /// The files are well-formed but make no tokenizer.
    #[error("{folder}: the tokenizer cannot be built from its files: {message}")]
    Build { folder: PathBuf, message: String },
    /// A special token is absent or has another id than the network was trained with.
    #[error(
        "{folder}: special token {token}: expected id {expected}, found {found}; this is another model's tokenizer"
    )]
    SpecialToken { folder: PathBuf, token: String, expected: i64, found: String },
    /// The instruction is too long.
    #[error("instruction: expected at most {limit} characters, found {found}; shorten it")]
    TooLong { limit: usize, found: usize },
    /// The prompt is too long, which the images alone can cause.
    #[error("prompt: expected at most {limit} tokens, found {found}; use fewer or smaller images")]
    PromptTooLong { limit: usize, found: usize },
    /// An image without tokens.
    #[error("image {image} (counted from 1): expected at least one image token, found none")]
    EmptyImage { image: usize },
    /// A placeholder in the instruction that stands for no image of this observation.
    #[error(
        "instruction: the placeholder {placeholder} stands for no image: expected <image-1> to <image-{images}>; remove \
         it, or let formalize_language strip its punctuation"
    )]
    Placeholder { placeholder: String, images: usize },
    /// The instruction itself holds the token that image embeddings replace.
    #[error(
        "instruction: expected no literal {token}, found {found}: the network would miss an image for it; remove it"
    )]
    LiteralImageToken { token: &'static str, found: usize },
    /// The tokenizer library failed on the prompt.
    #[error("the prompt cannot be tokenised: {message}")]
    Tokenise { message: String },
}
