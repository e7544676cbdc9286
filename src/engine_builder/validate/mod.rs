//! `engine_builder validate`: the exported graphs in ONNX Runtime against libtorch, layer by layer, both in f32.
//!
//! An engine cannot be better than the graph that it was built from, and a value that f16 cannot hold in a layer of the
//! reference is one that an f16 engine will get wrong. Each graph is exported with its intermediate values as outputs and gets
//! the very inputs that libtorch had, so the first layer that is off is where an error begins.
//!
//! | file | what it knows |
//! |---|---|
//! | [`inputs`] | what both are given: synthetic, or an observation of a golden folder |
//! | [`parts`] | each part of the network in both |
//! | [`report`] | what was found, for people and for programs |
//! | [`command`] | the options |

pub mod command;
pub mod inputs;
pub mod parts;
pub mod report;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tch::Device;

use self::{
    command::Command,
    inputs::Inputs,
    parts::{Part, Values},
    report::{PartReport, Report},
};
use crate::{
    checkpoint::{Checkpoint, OpenOptions, Parts},
    model::device,
};

/// A comparison to be made.
pub struct Validation<'a> {
    /// What the graphs are exported from.
    pub exported: &'a Checkpoint,
    /// What libtorch runs: the same, unless an error is looked for that was put in.
    pub reference: &'a Checkpoint,
    pub inputs: &'a Inputs,
    /// Where libtorch runs; ONNX Runtime runs on the CPU.
    pub device: Device,
    /// ONNX Runtime's shared library; see [`GraphSession::open`](crate::onnx::session::GraphSession::open).
    pub library: Option<PathBuf>,
    /// Where the graphs are written to.
    pub folder: &'a Path,
}

impl Validation<'_> {
    /// Compares the parts, in the order of the network; `say` gets a line at each.
    ///
    /// # Errors
    /// A graph that cannot be exported or run, or shapes that differ.
    pub fn run(&self, parts: &[Part], say: &mut dyn FnMut(&str)) -> Result<Vec<PartReport>> {
        let mut values = Values::default();
        let mut reports = Vec::new();
        for part in Part::ALL {
            let wanted = parts.contains(&part);
            // A recorded observation goes through the parts before those that are wanted, too.
            let later = parts.iter().any(|other| *other > part);
            if wanted || (self.inputs.recorded && later) {
                say(&format!("{part} ..."));
                reports.extend(part.compare(self, &mut values, wanted)?);
            }
        }
        Ok(reports)
    }
}

/// Carries the command out.
///
/// # Errors
/// What cannot be opened, exported or run.
pub fn run(command: &Command, say: &mut dyn FnMut(&str)) -> Result<Report> {
    let parts = command.parts();
    let needed = match parts.as_slice() {
        [Part::Dit] if command.golden.is_none() => Parts::ActionHead,
        parts if parts.contains(&Part::Dit) => Parts::All,
        _ => Parts::Backbone,
    };
    let options = OpenOptions { eagle_config: command.eagle_config.clone(), parts: needed };
    let checkpoint = Checkpoint::open(&command.checkpoint, &options)?;
    let inputs = command.inputs(&checkpoint)?;
    say(&format!("inputs: {}", inputs.described));
    // Removed at the end.
    let temporary =
        tempfile::tempdir().context("cannot make a folder for the graphs; name one with --onnx")?;
    let validation = Validation {
        exported: &checkpoint,
        reference: &checkpoint,
        inputs: &inputs,
        device: device::select(&command.device)?,
        library: command.onnxruntime.clone(),
        folder: command.onnx.as_deref().unwrap_or(temporary.path()),
    };
    let parts = validation.run(&parts, say)?;
    Ok(Report::new(&command.checkpoint, &inputs, command.least_cosine, parts))
}
