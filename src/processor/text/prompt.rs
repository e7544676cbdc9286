//! The prompt around an instruction, and the images in it.

use std::fmt::Write;

use super::TextError;

/// Text of the token that image embeddings replace.
pub(super) const IMAGE_TOKEN: &str = "<IMG_CONTEXT>";

/// A prompt with its placeholders replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpandedPrompt {
    /// The text, with **one** image token per image; its id is to be repeated as often as the image has tokens.
    pub text: String,
    /// For each image token in the text, the index (from 0) of the image it stands for.
    pub images: Vec<usize>,
}

/// The conversation as the reference's chat template writes it: system line, then the user's text and after it one
/// placeholder `<image-1>`, `<image-2>`, … per image. No header for an answer follows.
pub fn chat_text(text: &str, images: usize) -> String {
    let mut chat =
        format!("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{text}");
    for image in 1..=images {
        // Writing to a string cannot fail.
        let _ = write!(chat, "<image-{image}>");
    }
    chat.push_str("<|im_end|>\n");
    chat
}

/// Replaces each `<image-i>` by `<image i><img>` image tokens `</img>`.
///
/// As in the reference, a placeholder that the instruction itself holds is replaced too, and its image enters the prompt
/// once more; [`ExpandedPrompt::images`] tells. One that stands for no image is an error, and so is `<video-i>`. (The
/// reference also takes digits of other scripts for numbers, and `<image-0>` for the last image; neither is done here.)
pub fn expand_images(chat: &str, images: usize) -> Result<ExpandedPrompt, TextError> {
    let mut expanded = ExpandedPrompt { text: String::with_capacity(2 * chat.len()), images: Vec::new() };
    let mut rest = chat;
    while let Some(start) = rest.find('<') {
        let (before, candidate) = rest.split_at(start);
        expanded.text.push_str(before);
        match placeholder(candidate) {
            Some((text, number)) => {
                let image = number
                    .filter(|number| (1..=images).contains(number))
                    .ok_or_else(|| TextError::Placeholder { placeholder: text.to_owned(), images })?;
                // Writing to a string cannot fail.
                let _ = write!(expanded.text, "<image {image}><img>{IMAGE_TOKEN}</img>");
                expanded.images.push(image - 1);
                rest = &candidate[text.len()..];
            }
            None => {
                expanded.text.push('<');
                rest = &candidate[1..];
            }
        }
    }
    expanded.text.push_str(rest);
    Ok(expanded)
}

/// If `text` starts with `<image-digits>` or `<video-digits>`: that placeholder, and the number of an image.
fn placeholder(text: &str) -> Option<(&str, Option<usize>)> {
    let (is_image, after) = match text.strip_prefix("<image-") {
        Some(after) => (true, after),
        None => (false, text.strip_prefix("<video-")?),
    };
    let end = after.find(|c: char| !c.is_ascii_digit())?;
    if end == 0 || !after[end..].starts_with('>') {
        return None;
    }
    let (digits, _) = after.split_at(end);
    let length = text.len() - after.len() + digits.len() + ">".len();
    // A number too large for any image fails to parse.
    Some((&text[..length], digits.parse().ok().filter(|_| is_image)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_text_comes_before_the_images() {
        assert_eq!(
            chat_text("lift", 2),
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nlift<image-1><image-2><|im_end|>\n"
        );
        assert!(chat_text("", 0).ends_with("user\n<|im_end|>\n"));
    }

    #[test]
    fn placeholders_become_image_tokens_in_order() {
        let expanded = expand_images("a <image-2> b<image-1><image-2>", 2).unwrap();
        let image = |i| format!("<image {i}><img><IMG_CONTEXT></img>");
        assert_eq!(expanded.text, format!("a {} b{}{}", image(2), image(1), image(2)));
        assert_eq!(expanded.images, [1, 0, 1]);
        assert_eq!(expand_images("<image-01>", 1).unwrap().text, image(1));
    }

    #[test]
    fn placeholders_without_an_image_are_refused() {
        for text in ["<image-3>", "<image-0>", "<video-1>", "<image-99999999999999999999999>"] {
            let message = expand_images(&format!("look at {text}"), 2).unwrap_err().to_string();
            assert!(
                message.contains(&format!("placeholder {text} ")) && message.contains("<image-2>"),
                "{message}"
            );
        }
    }

    #[test]
    fn what_only_looks_like_a_placeholder_stays() {
        for text in [
            "<image->",
            "<image-1",
            "<image-x>",
            "<image-1 >",
            "< image-1>",
            "<Image-1>",
            "<<",
            "a<b",
            "<image-１>",
        ] {
            let expanded = expand_images(text, 1).unwrap();
            assert_eq!((expanded.text.as_str(), expanded.images.len()), (text, 0));
        }
        assert_eq!(expand_images("<<image-1>", 1).unwrap().images, [0]);
    }

    proptest! {
        #[test]
        fn text_without_placeholders_is_untouched(text in "[^<]*") {
            prop_assert_eq!(expand_images(&text, 3).unwrap().text, text);
        }
    }
}
