//! Prompts: the instruction as it is cleaned up, the chat around it, the token ids and their masks.

use std::iter::repeat_n;
use std::sync::LazyLock;

use groot_policy::checkpoint::processor_config::ProcessorConfig;
use groot_policy::processor::text::{IMAGE_TOKEN_ID, PromptTokenizer, chat_text, formalize, left_pad};
use serde::Deserialize;

use crate::fixture::Fixture;

static FIXTURE: LazyLock<Fixture> = LazyLock::new(Fixture::load);
static TOKENIZER: LazyLock<PromptTokenizer> =
    LazyLock::new(|| PromptTokenizer::load(&FIXTURE.tokenizer_dir()).unwrap());

/// Pixels that become one image token: a patch is 14 x 14, and 2 x 2 patches are merged.
const PIXELS_PER_TOKEN: usize = 28 * 28;

#[derive(Deserialize)]
struct TextFile {
    rows: Vec<TextRow>,
}

#[derive(Deserialize)]
struct TextRow {
    instruction: String,
    formalize_language: bool,
    num_images: usize,
    image_hw: [usize; 2],
    processed: String,
    chat_text: String,
    seq_len: usize,
    input_ids_rle: Vec<(i64, usize)>,
}

fn rows() -> Vec<TextRow> {
    let path = FIXTURE.dir.join("golden/text.json");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file: TextFile = serde_json::from_str(&text).unwrap();
    assert!(!file.rows.is_empty());
    file.rows
}

#[test]
fn instructions_and_chats_are_the_references() {
    for row in rows() {
        if row.formalize_language {
            assert_eq!(formalize(&row.instruction), row.processed);
        } else {
            assert_eq!(row.instruction, row.processed);
        }
        assert_eq!(chat_text(&row.processed, row.num_images), row.chat_text);
    }
}

#[test]
fn token_ids_are_the_references() {
    for row in rows() {
        let [height, width] = row.image_hw;
        let image_tokens = vec![height * width / PIXELS_PER_TOKEN; row.num_images];
        let prompt = TOKENIZER.encode(&row.instruction, row.formalize_language, &image_tokens).unwrap();
        let expected: Vec<i64> =
            row.input_ids_rle.iter().flat_map(|&(id, count)| repeat_n(id, count)).collect();
        assert_eq!(expected.len(), row.seq_len);
        assert_eq!(prompt.ids, expected, "{:?}", row.instruction);
        assert_eq!(prompt.text, row.processed);
        let image_ids = expected.iter().filter(|&&id| id == IMAGE_TOKEN_ID).count();
        assert_eq!(prompt.images.iter().map(|&image| image_tokens[image]).sum::<usize>(), image_ids);
    }
}

#[test]
fn prompts_of_the_observations_are_padded_and_masked_as_the_references() {
    let formalize_language = ProcessorConfig::load(&FIXTURE.dir).unwrap().formalize_language;
    for observation in &FIXTURE.manifest.observations {
        let images: Vec<usize> =
            observation.pixel_hw.iter().map(|[height, width]| height * width / PIXELS_PER_TOKEN).collect();
        assert_eq!(images.len(), observation.num_images);
        let instructions = observation.language.to_vec();
        assert_eq!(instructions.len(), observation.batch);
        // All images of the first sample come first.
        let prompts: Vec<_> = instructions
            .iter()
            .zip(images.chunks(images.len() / observation.batch))
            .map(|(text, images)| TOKENIZER.encode(text, formalize_language, images).unwrap())
            .collect();
        let padded = left_pad(&prompts.iter().map(|prompt| prompt.ids.as_slice()).collect::<Vec<_>>());
        assert_eq!(padded.input_ids.dim(), (observation.batch, observation.seq_len));

        let golden = FIXTURE.file(&format!("{}.preproc", observation.name));
        assert_eq!(padded.input_ids.into_dyn(), golden.i64("input_ids"), "{}", observation.name);
        assert_eq!(padded.attention_mask.into_dyn(), golden.i64("attention_mask"), "{}", observation.name);
        let image_mask = padded.image_mask.mapv(i64::from).into_dyn();
        assert_eq!(image_mask, golden.i64("image_mask"), "{}", observation.name);
    }
}
