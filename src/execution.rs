//! How the network's work is brought to the device, and who makes images for it.

use std::{fmt, str::FromStr};

/// A way to execute the network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ExecutionMode {
    /// The fastest of the others that works here.
    #[default]
    Auto,
    /// Operation by operation.
    Eager,
    /// Captured once per shape of the inputs as CUDA graphs, and queued as a whole from then on.
    Graph,
    /// The same, with kernels that do the work of several operations.
    GraphFused,
}

impl ExecutionMode {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Auto, Self::Eager, Self::Graph, Self::GraphFused];

    /// Names, in the order of [`ALL`](Self::ALL).
    pub const NAMES: [&'static str; 4] = ["auto", "eager", "graph", "graph-fused"];

    /// Name in configurations and on command lines.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Eager => "eager",
            Self::Graph => "graph",
            Self::GraphFused => "graph-fused",
        }
    }
}

impl fmt::Display for ExecutionMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Who makes images of camera frames. The bytes are the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Preprocessing {
    /// The GPU where the network is captured on one and its kernels prove themselves, else the processor's cores.
    #[default]
    Auto,
    /// The processor's cores: images are uploaded.
    Cpu,
    /// The GPU: raw frames are uploaded.
    Gpu,
}

impl Preprocessing {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Auto, Self::Cpu, Self::Gpu];

    /// Names, in the order of [`ALL`](Self::ALL).
    pub const NAMES: [&'static str; 3] = ["auto", "cpu", "gpu"];

    /// Name in configurations and on command lines.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Cpu => "cpu",
            Self::Gpu => "gpu",
        }
    }
}

impl FromStr for Preprocessing {
    type Err = UnknownMode;

    fn from_str(name: &str) -> Result<Self, UnknownMode> {
        mode_by_name(&Self::ALL, Self::name, name)
    }
}

/// A name that stands for no mode of its kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected one of the modes {known}, found {found:?}")]
pub struct UnknownMode {
    known: String,
    found: String,
}

/// The one of `all` with this name.
pub(crate) fn mode_by_name<T: Copy>(
    all: &[T],
    name_of: fn(T) -> &'static str,
    name: &str,
) -> Result<T, UnknownMode> {
    all.iter().copied().find(|&mode| name_of(mode) == name).ok_or_else(|| UnknownMode {
        known: all.iter().map(|&mode| name_of(mode)).collect::<Vec<_>>().join(", "),
        found: name.to_owned(),
    })
}

impl FromStr for ExecutionMode {
    type Err = UnknownMode;

    fn from_str(name: &str) -> Result<Self, UnknownMode> {
        mode_by_name(&Self::ALL, Self::name, name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mode_is_known_by_its_name_and_others_are_refused_with_the_list() {
        assert_eq!(ExecutionMode::ALL.map(ExecutionMode::name), ExecutionMode::NAMES);
        for mode in ExecutionMode::ALL {
            assert_eq!(mode.to_string().parse(), Ok(mode));
        }
        assert_eq!(Preprocessing::ALL.map(Preprocessing::name), Preprocessing::NAMES);
        for on in Preprocessing::ALL {
            assert_eq!(on.name().parse(), Ok(on));
        }
        assert!("cuda".parse::<Preprocessing>().unwrap_err().to_string().contains("auto, cpu, gpu"));
        let error = "fast".parse::<ExecutionMode>().unwrap_err().to_string();
        assert_eq!(error, "expected one of the modes auto, eager, graph, graph-fused, found \"fast\"");
    }
}
