use std::path::PathBuf;
use std::sync::LazyLock;

use super::*;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tokenizer")
}

static TOKENIZER: LazyLock<PromptTokenizer> = LazyLock::new(|| PromptTokenizer::load(&folder()).unwrap());

/// The ids between the fixed 14 tokens before the text and the image or the last two.
fn ids(instruction: &str, formalize: bool, image_tokens: &[usize]) -> Vec<i64> {
    TOKENIZER.encode(instruction, formalize, image_tokens).unwrap().ids.clone()
}

#[test]
fn the_prompt_around_an_empty_instruction_is_fixed() {
    let head = [151644, 8948, 198, 2610, 525, 264, 10950, 17847, 13, 151645, 198, 151644, 872, 198];
    let image = [27, 1805, 220, 16, 29, 151670, 151669, 151669, 151671];
    assert_eq!(ids("", true, &[]), [&head[..], &[151645, 198]].concat());
    assert_eq!(ids("", true, &[2]), [&head[..], &image, &[151645, 198]].concat());
    assert_eq!(TOKENIZER.vocab_size(), 151_680);
}

#[test]
fn the_end_of_the_text_merges_with_the_image_tag() {
    // ")<" is one token, which text and tag apart would not give.
    let plain = ids("lift", true, &[1]);
    let bracket = ids("lift)", false, &[1]);
    assert_eq!(plain.len(), bracket.len());
}

#[test]
fn canonically_equal_instructions_have_equal_ids() {
    assert_eq!(ids("cafe\u{301}", false, &[3]), ids("café", false, &[3]));
}

#[test]
fn placeholders_in_the_instruction_repeat_their_image() {
    let prompt = TOKENIZER.encode("see <image-2>", false, &[2, 3]).unwrap();
    assert_eq!(prompt.images, [1, 0, 1]);
    let runs: Vec<_> =
        prompt.ids.chunk_by(|a, b| a == b).filter(|run| run[0] == IMAGE_TOKEN_ID).map(<[i64]>::len).collect();
    assert_eq!(runs, [3, 2, 3]);
    // Formalised, it is plain text.
    assert_eq!(TOKENIZER.encode("see <image-2>", true, &[2, 3]).unwrap().images, [0, 1]);
}

#[test]
fn instructions_that_cannot_be_encoded_are_refused() {
    let error = |instruction: &str, formalize, image_tokens: &[usize]| {
        TOKENIZER.encode(instruction, formalize, image_tokens).unwrap_err().to_string()
    };
    let longest = "é".repeat(MAX_INSTRUCTION_CHARS);
    assert!(TOKENIZER.encode(&longest, true, &[1]).is_ok());
    let message = error(&format!("{longest}é"), true, &[1]);
    assert_eq!(message, "instruction: expected at most 4096 characters, found 4097; shorten it");
    assert!(error("look <image-2>", false, &[1]).contains("<image-2>"));
    assert!(error("a <IMG_CONTEXT> b", false, &[1]).contains("no literal <IMG_CONTEXT>, found 1"));
    assert!(error("", true, &[4, 0]).contains("image 2 (counted from 1)"));
    assert!(error("", true, &[MAX_PROMPT_TOKENS]).contains("at most 32768 tokens, found 32791"));
    assert!(error("", true, &[usize::MAX, usize::MAX]).contains("at most 32768 tokens"));
}

#[test]
fn an_unchanged_instruction_is_answered_from_the_cache() {
    let first = TOKENIZER.encode("wipe the table", true, &[5, 6]).unwrap();
    assert!(Arc::ptr_eq(&first, &TOKENIZER.encode("wipe the table", true, &[5, 6]).unwrap()));
    assert!(!Arc::ptr_eq(&first, &TOKENIZER.encode("wipe the table", true, &[5, 7]).unwrap()));
}

#[test]
fn threads_share_a_tokenizer() {
    let instructions: Vec<_> = (0..20).map(|i| format!("place block {i} on block {}", i + 1)).collect();
    let alone: Vec<_> = instructions.iter().map(|text| ids(text, true, &[4])).collect();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for (text, expected) in instructions.iter().zip(&alone) {
                    assert_eq!(&ids(text, true, &[4]), expected);
                }
            });
        }
    });
}

/// A copy of the tokenizer folder, with one file changed (or, for `None`, left out).
fn broken(name: &str, change: impl Fn(String) -> Option<String>) -> String {
    let copy = tempfile::tempdir().unwrap();
    for file in ["vocab.json", "merges.txt", "added_tokens.json", "tokenizer_config.json"] {
        let text = std::fs::read_to_string(folder().join(file)).unwrap();
        let text = if file == name { change(text) } else { Some(text) };
        if let Some(text) = text {
            std::fs::write(copy.path().join(file), text).unwrap();
        }
    }
    match PromptTokenizer::load(copy.path()) {
        Ok(_) => "loaded".to_owned(),
        Err(error) => error.to_string(),
    }
}

fn replaced(name: &str, from: &str, to: &str) -> String {
    broken(name, |text| {
        assert!(text.contains(from));
        Some(text.replacen(from, to, 1))
    })
}

#[test]
fn a_missing_vocabulary_or_merges_file_is_named() {
    for name in ["vocab.json", "merges.txt"] {
        let message = broken(name, |_| None);
        assert!(message.contains(&format!("{name}: cannot be read")), "{message}");
    }
}

#[test]
fn added_tokens_may_stand_in_either_file() {
    assert_eq!(broken("added_tokens.json", |_| None), "loaded");
    assert_eq!(broken("tokenizer_config.json", |_| None), "loaded");
    assert_eq!(broken("tokenizer_config.json", |_| Some("{}".to_owned())), "loaded");
    let empty = tempfile::tempdir().unwrap();
    for file in ["vocab.json", "merges.txt"] {
        std::fs::copy(folder().join(file), empty.path().join(file)).unwrap();
    }
    let message = PromptTokenizer::load(empty.path()).err().unwrap().to_string();
    assert!(message.contains("added_tokens.json: cannot be read"), "{message}");
}

#[test]
fn truncated_json_is_one_error_with_the_files_name() {
    for name in ["vocab.json", "added_tokens.json", "tokenizer_config.json"] {
        let message =
            broken(name, |text| Some(text[..text.len() / 2].trim_end_matches('\u{fffd}').to_owned()));
        assert!(message.contains(name) && message.contains("EOF"), "{message}");
    }
}

#[test]
fn broken_vocabularies_are_refused() {
    assert!(broken("vocab.json", |_| Some("{}".to_owned())).contains("found none"));
    assert!(broken("vocab.json", |_| Some("[1]".to_owned())).contains("sequence"));
    let twice = replaced("vocab.json", "\"!\":0", "\"!\":1");
    assert!(twice.contains("id 1: expected ids 0 to 151642") && twice.contains("same id twice"), "{twice}");
    let beyond = replaced("vocab.json", "\"!\":0", "\"!\":4000000000");
    assert!(beyond.contains("\"!\", id 4000000000") && beyond.contains("beyond"), "{beyond}");
}

#[test]
fn broken_merges_are_refused_with_their_line() {
    let unknown = replaced("merges.txt", "\ni n\n", "\ni \u{1F600}\n");
    assert!(
        unknown.contains("merges.txt: at line 4: expected tokens of vocab.json, found \"\u{1F600}\""),
        "{unknown}"
    );
    let single = replaced("merges.txt", "\ni n\n", "\nin\n");
    assert!(
        single.contains("merges.txt: at line 4: expected two tokens") && single.contains("\"in\""),
        "{single}"
    );
    assert!(broken("merges.txt", |_| Some(String::new())).contains("expected at least one merge"));
}

#[test]
fn special_tokens_with_other_ids_are_refused() {
    // Two names change places in both files, so that these agree with each other and not with the network.
    let swap = |text: &str| {
        text.replace("\"<img>\"", "\"?\"")
            .replace("\"<IMG_CONTEXT>\"", "\"<img>\"")
            .replace("\"?\"", "\"<IMG_CONTEXT>\"")
    };
    let copy = tempfile::tempdir().unwrap();
    for file in ["vocab.json", "merges.txt"] {
        std::fs::copy(folder().join(file), copy.path().join(file)).unwrap();
    }
    for file in ["added_tokens.json", "tokenizer_config.json"] {
        let text = std::fs::read_to_string(folder().join(file)).unwrap();
        std::fs::write(copy.path().join(file), swap(&text)).unwrap();
    }
    let message = PromptTokenizer::load(copy.path()).err().unwrap().to_string();
    assert!(message.contains("special token <IMG_CONTEXT>: expected id 151669, found 151670"), "{message}");

    let differing = replaced("added_tokens.json", "151669", "151700");
    assert!(
        differing.contains("added_tokens.json: at id 151700") && differing.contains("<IMG_CONTEXT>"),
        "{differing}"
    );

    let gap = broken("tokenizer_config.json", |text| Some(text.replace("\"151679\"", "\"151690\"")));
    assert!(gap.contains("added_tokens.json: at id 151679"), "{gap}");
}

#[test]
fn gaps_between_the_ids_of_added_tokens_are_refused() {
    let copy = tempfile::tempdir().unwrap();
    for file in ["vocab.json", "merges.txt"] {
        std::fs::copy(folder().join(file), copy.path().join(file)).unwrap();
    }
    let text = std::fs::read_to_string(folder().join("added_tokens.json")).unwrap();
    std::fs::write(copy.path().join("added_tokens.json"), text.replace("151679", "151700")).unwrap();
    let message = PromptTokenizer::load(copy.path()).err().unwrap().to_string();
    assert!(
        message.contains("</interval>") && message.contains("151679") && message.contains("found 151700"),
        "{message}"
    );
}
