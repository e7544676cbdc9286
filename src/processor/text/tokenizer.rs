//! The prompt's tokenizer: Qwen2's byte-level BPE with the image tokens of Eagle.

use std::path::Path;
use std::sync::Arc;

use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{SplitDelimiterBehavior, Tokenizer};

use crate::checkpoint::side_file::SideFileError;

use super::cache::PromptCache;
use super::files::TokenizerFiles;
use super::prompt::IMAGE_TOKEN;
use super::{
    IMAGE_TOKEN_ID, MAX_INSTRUCTION_CHARS, MAX_PROMPT_TOKENS, PAD_TOKEN_ID, TextError, chat_text,
    expand_images, formalize,
};

/// Where Qwen2 cuts text before merging bytes: contractions, words with one leading character, single digits, runs of
/// punctuation, line ends, white space.
const QWEN2_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Tokens that the prompt is made of, with the ids that the network was trained with.
const SPECIAL_TOKENS: [(&str, i64); 6] = [
    ("<|endoftext|>", PAD_TOKEN_ID),
    ("<|im_start|>", 151_644),
    ("<|im_end|>", 151_645),
    (IMAGE_TOKEN, IMAGE_TOKEN_ID),
    ("<img>", 151_670),
    ("</img>", 151_671),
];

/// A prompt ready for the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// Token ids of the whole prompt; [`IMAGE_TOKEN_ID`] stands for each image embedding.
    pub ids: Vec<i64>,
    /// Which image (index from 0) each run of image tokens stands for, in order. 0, 1, 2, … unless the instruction itself
    /// holds placeholders; the embeddings must be put in this order.
    pub images: Vec<usize>,
    /// The instruction as it stands in the prompt, formalised if asked for.
    pub text: String,
}

/// Turns instructions into token ids. Threads may share it.
pub struct PromptTokenizer {
    tokenizer: Tokenizer,
    cache: PromptCache,
}

impl PromptTokenizer {
    /// Builds the tokenizer from the vocab.json, merges.txt and tokenizer_config.json or added_tokens.json in `folder`.
    pub fn load(folder: &Path) -> Result<Self, TextError> {
        let TokenizerFiles { vocab, merges, added, added_path } = TokenizerFiles::load(folder)?;
        let build = |message: String| TextError::Build { folder: folder.to_owned(), message };
        let model = BPE::builder()
            .vocab_and_merges(vocab, merges)
            .build()
            .map_err(|error| build(error.to_string()))?;
        let pattern = SplitPattern::Regex(QWEN2_SPLIT.to_owned());
        let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
            .map_err(|error| build(error.to_string()))?;
        let bytes = ByteLevel::new(false, false, false);
        let mut tokenizer = Tokenizer::new(model);
        tokenizer
            .with_normalizer(Some(NFC))
            .with_pre_tokenizer(Some(Sequence::new(vec![
                PreTokenizerWrapper::from(split),
                PreTokenizerWrapper::from(bytes),
            ])))
            .add_tokens(&added.values().cloned().collect::<Vec<_>>());
        // The library numbers added tokens itself, so that a gap in the file's ids shows here.
        for (id, token) in added {
            let found = tokenizer.token_to_id(&token.content);
            if found != Some(id) {
                let found = found.map_or("another".to_owned(), |id| id.to_string());
                let expected = format!("id {found}, which follows those before it and vocab.json");
                let at = format!("token {:?}", token.content);
                return Err(SideFileError::invalid(&added_path, at, expected, id.to_string()).into());
            }
        }
        for (token, expected) in SPECIAL_TOKENS {
            let found = tokenizer.token_to_id(token).map(i64::from);
            if found != Some(expected) {
                return Err(TextError::SpecialToken {
                    folder: folder.to_owned(),
                    token: token.to_owned(),
                    expected,
                    found: found.map_or("no such token".to_owned(), |id| id.to_string()),
                });
            }
        }
        Ok(Self { tokenizer, cache: PromptCache::default() })
    }

    /// Without a vocabulary, for one prompt alone: `instruction` with images of `image_tokens` gives `prompt`. Any other
    /// instruction gives nonsense. For benchmarks of weights that come without tokenizer files.
    pub fn of_one_prompt(instruction: &str, formalize: bool, image_tokens: &[usize], prompt: Prompt) -> Self {
        let cache = PromptCache::default();
        cache.insert(instruction, formalize, image_tokens, Arc::new(prompt));
        Self { tokenizer: Tokenizer::new(BPE::default()), cache }
    }

    /// Number of tokens, added ones included; every id is below it.
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }

    /// The prompt for `instruction` and images with these numbers of tokens each, in the order in which the images are
    /// given to the network.
    ///
    /// Without `formalize` special tokens in the instruction are taken as such, as in the reference; of these only the image
    /// token itself is refused. An unchanged call is answered from a small cache.
    pub fn encode(
        &self,
        instruction: &str,
        formalize: bool,
        image_tokens: &[usize],
    ) -> Result<Arc<Prompt>, TextError> {
        if let Some(prompt) = self.cache.get(instruction, formalize, image_tokens) {
            return Ok(prompt);
        }
        let prompt = Arc::new(self.encode_anew(instruction, formalize, image_tokens)?);
        self.cache.insert(instruction, formalize, image_tokens, Arc::clone(&prompt));
        Ok(prompt)
    }

    /// [`Self::encode`] without the cache.
    fn encode_anew(
        &self,
        instruction: &str,
        formalize_language: bool,
        image_tokens: &[usize],
    ) -> Result<Prompt, TextError> {
        let length = instruction.chars().count();
        if length > MAX_INSTRUCTION_CHARS {
            return Err(TextError::TooLong { limit: MAX_INSTRUCTION_CHARS, found: length });
        }
        if let Some(empty) = image_tokens.iter().position(|&tokens| tokens == 0) {
            return Err(TextError::EmptyImage { image: empty + 1 });
        }
        let text = if formalize_language { formalize(instruction) } else { instruction.to_owned() };
        let prompt = expand_images(&chat_text(&text, image_tokens.len()), image_tokens.len())?;
        // Special tokens cut the text, so that a run of image tokens can be tokenised as one and repeated afterwards.
        let short = self
            .tokenizer
            .encode_fast(prompt.text, false)
            .map_err(|error| TextError::Tokenise { message: error.to_string() })?;
        let short = short.get_ids();
        let runs = short.iter().filter(|&&id| i64::from(id) == IMAGE_TOKEN_ID).count();
        if runs != prompt.images.len() {
            let found = runs.abs_diff(prompt.images.len());
            return Err(TextError::LiteralImageToken { token: IMAGE_TOKEN, found });
        }
        let repeats = |image: &usize| image_tokens.get(*image).copied().unwrap_or(0);
        let length = prompt.images.iter().map(repeats).fold(short.len() - runs, usize::saturating_add);
        if length > MAX_PROMPT_TOKENS {
            return Err(TextError::PromptTooLong { limit: MAX_PROMPT_TOKENS, found: length });
        }
        let mut ids = Vec::with_capacity(length);
        let mut images = prompt.images.iter();
        for &id in short {
            let id = i64::from(id);
            let count = if id == IMAGE_TOKEN_ID { images.next().map_or(0, repeats) } else { 1 };
            ids.extend(std::iter::repeat_n(id, count));
        }
        Ok(Prompt { ids, images: prompt.images, text })
    }
}

#[cfg(test)]
mod tests;
