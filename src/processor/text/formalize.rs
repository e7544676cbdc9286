//! Python's lower-casing and character classes, on which the reference's instruction clean-up rests.

use unicode_general_category::{GeneralCategory, get_general_category};

/// Lower-cases an instruction and deletes every character that is neither a word character nor white space, both as
/// Python sees them (`re.sub(r"[^\w\s]", "", text.lower())`). White space stays as it is.
///
/// Letters and numbers of any script stay; combining marks go, also where they spell a vowel, as in Devanagari. Characters
/// that Unicode added after the Python that runs the reference are the one thing on which the two can differ.
pub fn formalize(instruction: &str) -> String {
    instruction.to_lowercase().chars().filter(|&c| is_word(c) || is_space(c)).collect()
}

/// Python's `\w`: `str.isalnum()` or an underscore. (The `regex` crate's class also has marks, and lacks numbers such as ².)
fn is_word(c: char) -> bool {
    use GeneralCategory::*;
    match get_general_category(c) {
        UppercaseLetter | LowercaseLetter | TitlecaseLetter | ModifierLetter | OtherLetter => true,
        DecimalNumber | LetterNumber | OtherNumber => true,
        _ => c == '_',
    }
}

/// Python's `\s`, which also has the four information separators.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Lines of the table that CPython wrote (see its head), as (first, last, rest).
    fn python(kind: &str) -> impl Iterator<Item = (u32, u32, Vec<i64>)> {
        let table = include_str!("../../../tests/data/python_unicode_13.txt");
        table.lines().filter_map(move |line| {
            let mut fields = line.strip_prefix(kind)?.strip_prefix(' ')?.split(' ');
            let mut code = || u32::from_str_radix(fields.next().unwrap(), 16).unwrap();
            Some((code(), code(), fields.map(|field| field.parse().unwrap()).collect()))
        })
    }

    fn characters(kind: &str) -> Vec<char> {
        python(kind).flat_map(|(first, last, _)| first..=last).filter_map(char::from_u32).collect()
    }

    #[test]
    fn word_characters_are_pythons() {
        let words = characters("word");
        let ours: Vec<_> = characters("assigned").into_iter().filter(|&c| is_word(c)).collect();
        assert!(words.len() > 120_000);
        assert_eq!(ours, words);
    }

    #[test]
    fn white_space_is_pythons() {
        let ours: Vec<_> = (char::MIN..=char::MAX).filter(|&c| is_space(c)).collect();
        assert_eq!(ours, characters("space"));
    }

    #[test]
    fn lower_case_is_pythons() {
        let mut lower: std::collections::BTreeMap<u32, u32> = characters("assigned")
            .into_iter()
            .map(|c| (u32::from(c), u32::from(c)))
            // The one character with two lower-case ones has a test of its own.
            .filter(|&(c, _)| c != 0x130)
            .collect();
        for (first, last, rest) in python("lower") {
            for c in (first..=last).step_by(rest[0] as usize) {
                lower.insert(c, u32::try_from(i64::from(c) + rest[1]).unwrap());
            }
        }
        for (upper, lower) in lower {
            let [upper, lower] = [upper, lower].map(|c| char::from_u32(c).unwrap().to_string());
            assert_eq!(upper.to_lowercase(), lower, "{upper}");
        }
    }

    #[test]
    fn context_dependent_lower_case_is_pythons() {
        // From CPython's str.lower(): the sigma at the end of a word, past characters that have no case.
        for (text, lower) in [
            ("ΣΑΣ", "σας"),
            ("ΑΣ. ΒΣ", "ας. βς"),
            ("Σ", "σ"),
            ("ΑΣ'Σ", "ασ'ς"),
            ("İΣ", "i\u{307}ς"),
            ("AΣ\u{301}", "aς\u{301}"),
            ("a\u{ad}Σ\u{ad}b", "a\u{ad}σ\u{ad}b"),
            ("ΣΣΣ Σ1Σ", "σσς σ1σ"),
            ("ǅ ẞ K Å", "ǆ ß k å"),
            ("ΑΣ:Α", "ασ:α"),
            ("ⅧΣ", "ⅷς"),
            ("ªΣ", "ªς"),
            ("\u{345}Σ", "\u{345}σ"),
        ] {
            assert_eq!(text.to_lowercase(), lower, "{text}");
        }
    }

    #[test]
    fn punctuation_marks_and_symbols_go_and_white_space_stays() {
        assert_eq!(formalize("  Don't!\ttouch\u{1f}\u{a0}it \n"), "  dont\ttouch\u{1f}\u{a0}it \n");
        assert_eq!(formalize("x² ½ ① Ⅷ a_b 🤖"), "x² ½ ① ⅷ a_b ");
        assert_eq!(formalize("İe\u{301} हिन्दी"), "ie हनद");
        assert_eq!(formalize(""), "");
    }

    proptest! {
        #[test]
        fn what_is_formal_already_stays(text in ".*") {
            // One pass can take a mark away that decided about a sigma, so that only sigmas may change again.
            let once = formalize(&text).replace(['σ', 'ς'], "");
            prop_assert_eq!(formalize(&once), once);
        }

        #[test]
        fn only_word_characters_and_white_space_are_left(text in ".*") {
            prop_assert!(formalize(&text).chars().all(|c| is_word(c) || is_space(c)));
        }
    }
}
