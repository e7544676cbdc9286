//! Ctrl-C that lets a long run say what it has.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// Whether somebody asked the run to end. Clones ask about the same thing.
#[derive(Debug, Clone, Default)]
pub struct Interrupt {
    asked: Arc<AtomicBool>,
}

impl Interrupt {
    /// Listens to Ctrl-C and to the signals that end a program. The first one is only noted, so that the run can finish its
    /// step, print what was measured and mark it partial; a second one ends the program at once with code 130.
    ///
    /// # Errors
    /// Something else in this program listens already.
    pub fn on_signal() -> Result<Self, ctrlc::Error> {
        let interrupt = Self::default();
        let asked = interrupt.asked.clone();
        ctrlc::set_handler(move || {
            if asked.swap(true, Ordering::SeqCst) {
                std::process::exit(130);
            }
            eprintln!("\ninterrupted: ending after this step; once more to end at once");
        })?;
        Ok(interrupt)
    }

    /// Asks the run to end.
    pub fn ask(&self) {
        self.asked.store(true, Ordering::SeqCst);
    }

    /// Whether the run was asked to end.
    pub fn is_asked(&self) -> bool {
        self.asked.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_clones_hear_it() {
        let interrupt = Interrupt::default();
        let other = interrupt.clone();
        assert!(!other.is_asked());
        interrupt.ask();
        assert!(other.is_asked());
    }
}
