//! The backbone as two graphs: [`vision`] (tower and connector) and [`language`] (the kept Qwen3 layers).
//!
//! Between them lies the one step that is not arithmetic: looking up the prompt's token embeddings and putting the image
//! embeddings in the image tokens' places, in order. It stays outside, with the 621 MB table that it reads a few rows of.

mod language;
mod positions;
mod rotary;
mod vision;

pub use language::{LanguageOptions, language};
pub use positions::resize_positions;
pub use rotary::{inverse_frequencies, rotary_tables};
pub use vision::{VisionOptions, vision};
