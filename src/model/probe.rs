//! A tap on intermediate results, for tests and for whoever hunts a numerical difference.

use std::collections::BTreeMap;

use tch::Tensor;

/// Records named intermediates when it is on; costs nothing when it is off.
///
/// Names follow the reference's modules: `vision.layer0.attn_out`, `llm.layer2.out`, `head.step0.block1.ff`, …
#[derive(Debug, Default)]
pub struct Probe {
    taken: Option<BTreeMap<String, Tensor>>,
}

impl Probe {
    /// A probe that records nothing.
    pub fn off() -> Self {
        Self::default()
    }

    /// A probe that keeps a handle on everything shown to it.
    pub fn on() -> Self {
        Self { taken: Some(BTreeMap::new()) }
    }

    /// Whether anything is recorded: intermediates that exist only for the probe are computed only then.
    pub fn is_on(&self) -> bool {
        self.taken.is_some()
    }

    /// Shows an intermediate to the probe; `name` is evaluated only when the probe is on.
    pub fn record(&mut self, name: impl FnOnce() -> String, value: &Tensor) {
        if let Some(taken) = &mut self.taken {
            taken.insert(name(), value.shallow_clone());
        }
    }

    /// What was recorded under `name`.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.taken.as_ref()?.get(name)
    }

    /// Everything recorded so far, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.taken.iter().flatten().map(|(name, tensor)| (name.as_str(), tensor))
    }
}
