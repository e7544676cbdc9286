//! vocab.json, merges.txt and the added tokens, as files of a tokenizer folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tokenizers::AddedToken;
use tokenizers::models::bpe::{Merges, Vocab};

use crate::checkpoint::side_file::{self, SideFileError};

/// The contents of a tokenizer folder.
pub(super) struct TokenizerFiles {
    pub vocab: Vocab,
    pub merges: Merges,
    /// Tokens beside the vocabulary, in the order of their ids.
    pub added: BTreeMap<u32, AddedToken>,
    /// Where the added tokens were found.
    pub added_path: PathBuf,
}

impl TokenizerFiles {
    pub fn load(folder: &Path) -> Result<Self, SideFileError> {
        let vocab = read_vocab(&folder.join("vocab.json"))?;
        let merges = read_merges(&folder.join("merges.txt"), &vocab)?;
        let (added, added_path) = read_added(folder)?;
        Ok(Self { vocab, merges, added, added_path })
    }
}

#[derive(Deserialize)]
struct TokenizerConfig {
    #[serde(default)]
    added_tokens_decoder: Option<BTreeMap<String, AddedTokenEntry>>,
}

#[derive(Deserialize)]
struct AddedTokenEntry {
    content: String,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    normalized: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    special: bool,
}

/// Token → id. The ids must be 0, 1, 2, … without gaps, because the added tokens follow them.
fn read_vocab(path: &Path) -> Result<Vocab, SideFileError> {
    let vocab: Vocab = side_file::read_json::<BTreeMap<String, u32>>(path)?.into_iter().collect();
    if vocab.is_empty() {
        return Err(SideFileError::invalid(path, "the vocabulary", "at least one token", "none"));
    }
    let mut taken = vec![false; vocab.len()];
    for (token, &id) in &vocab {
        match taken.get_mut(id as usize) {
            Some(slot) if !*slot => *slot = true,
            slot => {
                let found = if slot.is_some() { "the same id twice" } else { "an id beyond them" };
                let expected = format!("ids 0 to {}, each once", vocab.len() - 1);
                return Err(SideFileError::invalid(
                    path,
                    format!("token {token:?}, id {id}"),
                    expected,
                    found,
                ));
            }
        }
    }
    Ok(vocab)
}

/// One pair of tokens per line, most important first; a version line may come first.
fn read_merges(path: &Path, vocab: &Vocab) -> Result<Merges, SideFileError> {
    let text = String::from_utf8(side_file::read(path)?).map_err(|error| {
        SideFileError::invalid(path, "the file", "UTF-8 text", error.utf8_error().to_string())
    })?;
    let mut merges = Merges::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || (index == 0 && line.starts_with("#version:")) {
            continue;
        }
        let at = || format!("line {}", index + 1);
        let Some((left, right)) = line.split_once(' ').filter(|(_, right)| !right.contains(' ')) else {
            return Err(SideFileError::invalid(
                path,
                at(),
                "two tokens with a space between",
                format!("{line:?}"),
            ));
        };
        for token in [left, right, &format!("{left}{right}")] {
            if !vocab.contains_key(token) {
                return Err(SideFileError::invalid(path, at(), "tokens of vocab.json", format!("{token:?}")));
            }
        }
        merges.push((left.to_owned(), right.to_owned()));
    }
    if merges.is_empty() {
        return Err(SideFileError::invalid(path, "the file", "at least one merge", "none"));
    }
    Ok(merges)
}

/// The added tokens of tokenizer_config.json, which also tells how each is matched, or of added_tokens.json. Where both
/// have them they must agree.
fn read_added(folder: &Path) -> Result<(BTreeMap<u32, AddedToken>, PathBuf), SideFileError> {
    let config_path = folder.join("tokenizer_config.json");
    let plain_path = folder.join("added_tokens.json");
    let config = if config_path.exists() { read_config(&config_path)? } else { None };
    let plain = match &config {
        Some(_) if !plain_path.exists() => None,
        _ => Some(side_file::read_json::<BTreeMap<String, u32>>(&plain_path)?),
    };
    match (config, plain) {
        (Some(tokens), None) => Ok((tokens, config_path)),
        (Some(tokens), Some(plain)) => {
            for (content, id) in plain {
                let known = tokens.get(&id).map(|token| token.content.as_str());
                if known != Some(content.as_str()) {
                    let known = known.map_or("no token".to_owned(), |known| format!("{known:?}"));
                    let expected = format!("{known}, as tokenizer_config.json has it");
                    return Err(SideFileError::invalid(
                        &plain_path,
                        format!("id {id}"),
                        expected,
                        format!("{content:?}"),
                    ));
                }
            }
            Ok((tokens, config_path))
        }
        (None, plain) => {
            let tokens = plain
                .unwrap_or_default()
                .into_iter()
                .map(|(content, id)| (id, AddedToken::from(content, true)))
                .collect();
            Ok((tokens, plain_path))
        }
    }
}

fn read_config(path: &Path) -> Result<Option<BTreeMap<u32, AddedToken>>, SideFileError> {
    let config: TokenizerConfig = side_file::read_json(path)?;
    let Some(entries) = config.added_tokens_decoder else { return Ok(None) };
    let tokens = entries
        .into_iter()
        .map(|(id, entry)| {
            let id = id
                .parse()
                .map_err(|_| SideFileError::invalid(path, "added_tokens_decoder", "ids as keys", id))?;
            let token = AddedToken::from(entry.content, entry.special)
                .lstrip(entry.lstrip)
                .normalized(entry.normalized)
                .rstrip(entry.rstrip)
                .single_word(entry.single_word);
            Ok((id, token))
        })
        .collect::<Result<_, _>>()?;
    Ok(Some(tokens))
}
