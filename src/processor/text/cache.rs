//! The last prompts: an instruction rarely changes from tick to tick.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use super::Prompt;

/// Number of prompts kept; a robot alternates between a few instructions at most.
const CAPACITY: usize = 8;

struct Entry {
    instruction: String,
    formalize: bool,
    image_tokens: Vec<usize>,
    prompt: Arc<Prompt>,
}

/// A few prompts, most recently used first. Threads may share it.
#[derive(Default)]
pub(super) struct PromptCache {
    entries: Mutex<VecDeque<Entry>>,
}

impl PromptCache {
    pub fn get(&self, instruction: &str, formalize: bool, image_tokens: &[usize]) -> Option<Arc<Prompt>> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let position = entries.iter().position(|entry| {
            entry.formalize == formalize
                && entry.image_tokens == image_tokens
                && entry.instruction == instruction
        })?;
        let entry = entries.remove(position)?;
        let prompt = Arc::clone(&entry.prompt);
        entries.push_front(entry);
        Some(prompt)
    }

    pub fn insert(&self, instruction: &str, formalize: bool, image_tokens: &[usize], prompt: Arc<Prompt>) {
        let entry = Entry {
            instruction: instruction.to_owned(),
            formalize,
            image_tokens: image_tokens.to_vec(),
            prompt,
        };
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.truncate(CAPACITY - 1);
        entries.push_front(entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(id: i64) -> Arc<Prompt> {
        Arc::new(Prompt { ids: vec![id], images: Vec::new(), text: String::new() })
    }

    #[test]
    fn every_part_of_the_key_counts() {
        let cache = PromptCache::default();
        cache.insert("lift", true, &[81], prompt(1));
        assert_eq!(cache.get("lift", true, &[81]), Some(prompt(1)));
        for (instruction, formalize, image_tokens) in [
            ("drop", true, &[81][..]),
            ("lift", false, &[81]),
            ("lift", true, &[80]),
            ("lift", true, &[81, 81]),
        ] {
            assert_eq!(cache.get(instruction, formalize, image_tokens), None);
        }
    }

    #[test]
    fn the_least_recently_used_prompt_leaves_first() {
        let cache = PromptCache::default();
        let names: Vec<_> = (0..=CAPACITY).map(|i| i.to_string()).collect();
        for (id, name) in names[..CAPACITY].iter().enumerate() {
            cache.insert(name, true, &[], prompt(id as i64));
        }
        assert!(cache.get(&names[0], true, &[]).is_some());
        cache.insert(&names[CAPACITY], true, &[], prompt(0));
        assert!(cache.get(&names[0], true, &[]).is_some());
        assert!(cache.get(&names[1], true, &[]).is_none());
        assert_eq!(cache.entries.lock().unwrap().len(), CAPACITY);
    }
}
