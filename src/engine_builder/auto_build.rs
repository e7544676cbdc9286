//! A policy's loading with a build before it, where its engine is missing or does not fit (`tensorrt.auto_build`).
//!
//! | what the folder of engines holds | `auto_build: false` | `auto_build: true` |
//! |---|---|---|
//! | the engine, whole and fitting | loaded | loaded |
//! | none | refused, with the command | built, then loaded |
//! | one for another checkpoint, embodiment, GPU generation or TensorRT | refused, with both sides and the command | built, then loaded |
//! | one whose bytes are not those that were built, or without a readable record | refused, with the command | built, then loaded |
//! | one that was found wrong when it was built | refused | built again, and refused if it is still wrong |
//! | files that the system does not let read, no GPU, no TensorRT, no memory | refused | refused: building would not help |
//!
//! What is run is the very command that the refusal names. It builds once: what does not fit afterwards is refused. The files of
//! the old engine stay until the new one is whole.

use clap::Parser;

use super::{command::Command, session};
use crate::{
    engine::RebuildCommand,
    model::{
        ModelError,
        policy::{Policy, PolicyError, PolicyOptions},
    },
};

/// Loads a policy, and builds its engine before where that is needed and the options allow it.
///
/// # Errors
/// As [`Policy::load`], and [`PolicyError::EngineBuild`].
pub fn load_policy(options: &PolicyOptions) -> Result<Policy, PolicyError> {
    let allowed = options.engine.as_ref().is_some_and(|choice| choice.auto_build);
    load_or_build(allowed, || Policy::load(options), build)
}

/// Loads; where the engine keeps it from loading and building is `allowed`, builds and loads once more.
fn load_or_build<T>(
    allowed: bool,
    mut load: impl FnMut() -> Result<T, PolicyError>,
    build: impl FnOnce(&RebuildCommand) -> anyhow::Result<()>,
) -> Result<T, PolicyError> {
    let refusal = match load() {
        Err(PolicyError::Model(ModelError::Engine(error))) => error,
        result => return result,
    };
    let Some(command) = refusal.rebuild().filter(|_| allowed) else {
        return Err(ModelError::Engine(refusal).into());
    };
    tracing::warn!("{refusal}");
    tracing::info!("tensorrt.auto_build: running `{command}`; this takes minutes");
    build(command).map_err(|error| PolicyError::EngineBuild {
        because: refusal.to_string(),
        reason: format!("{error:#}"),
    })?;
    load()
}

fn build(command: &RebuildCommand) -> anyhow::Result<()> {
    let outcome = session::run(&parse(command)?, &mut |line| tracing::info!("{line}"))?;
    for line in session::summary(&outcome).lines() {
        tracing::info!("{line}");
    }
    Ok(())
}

/// The options that the command stands for.
fn parse(command: &RebuildCommand) -> Result<Command, clap::Error> {
    Command::try_parse_from(
        std::iter::once("engine_builder").chain(command.arguments().iter().map(String::as_str)),
    )
}

#[cfg(test)]
mod tests;
