//! The command that builds an engine: what an error tells people to run, and what `tensorrt.auto_build` runs itself.

use std::fmt;
use std::path::Path;

use super::calibration::CalibrationMethod;
use super::graph::GraphKind;
use super::precision::Precision;
use super::record::{
    BuilderRecord, CalibrationRecord, CalibrationSource, EngineNeeds, EngineRecord, ShapeRecord,
};

/// `engine_builder` with its arguments. Its text is quoted for a POSIX shell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RebuildCommand {
    arguments: Vec<String>,
}

/// The program.
const PROGRAM: &str = "engine_builder";
/// What both of these are kept in f32 by.
const NORMS_F32: [&str; 2] = ["normalisation", "softmax"];

impl RebuildCommand {
    /// The command that builds what is needed into `folder`. Ranges of prompts, options of the builder and, for INT8, the
    /// calibration are those of `before`, an engine that was built for the same purpose, so that what was chosen once stays
    /// chosen.
    pub fn new(needs: &EngineNeeds, folder: &Path, before: Option<&EngineRecord>) -> Self {
        let mut command = Self { arguments: Vec::new() };
        command.path("checkpoint", &needs.checkpoint);
        if let Some(file) = &needs.eagle_config {
            command.path("eagle-config", file);
        }
        command.value("graph", needs.graph.kind);
        command.value("precision", needs.precision);
        // Folded into the graph, if it has one.
        if let Some(embodiment) = needs.graph.parameters.get("embodiment") {
            command.value("embodiment", embodiment);
        }
        command.path("out", folder);
        if let Some(device) = &needs.device {
            command.value("device", device);
        }
        let before = before.filter(|record| record.graph.kind == needs.graph.kind);
        if let Some(record) = before {
            command.ranges(record);
        }
        if let Some(builder) = needs.builder.as_ref().or(before.map(|record| &record.builder)) {
            command.builder(builder, needs);
        }
        if needs.precision == Precision::Int8
            && let Some(calibration) = before.and_then(|record| record.calibration.as_ref())
        {
            command.calibration(calibration);
        }
        command
    }

    /// The arguments, without the program's name.
    pub fn arguments(&self) -> &[String] {
        &self.arguments
    }

    fn flag(&mut self, name: &str) {
        self.arguments.push(format!("--{name}"));
    }

    fn value(&mut self, name: &str, value: impl fmt::Display) {
        self.flag(name);
        self.arguments.push(value.to_string());
    }

    /// Absolute, so that the command works wherever it is run.
    fn path(&mut self, name: &str, path: &Path) {
        let absolute = std::path::absolute(path);
        self.value(name, absolute.as_deref().unwrap_or(path).display());
    }

    /// The lengths that an engine was built for, as far as its inputs have them.
    fn ranges(&mut self, record: &EngineRecord) {
        let at = |input: &str| record.shapes.get(input);
        match record.graph.kind {
            GraphKind::DitFused => {
                // Block 0 reads text, and all other blocks text or images: whoever has another range reads images.
                let Some(text) = at("keys_0") else { return };
                let keys = record.shapes.iter().filter(|(input, _)| input.starts_with("keys_"));
                let image = keys.map(|(_, shape)| shape).find(|shape| *shape != text).unwrap_or(text);
                self.range("text-tokens", text, 1);
                self.range("image-tokens", image, 1);
            }
            GraphKind::DitCondition => {
                let inputs = [("text-tokens", at("text_features")), ("image-tokens", at("image_features"))];
                for (name, shape) in inputs {
                    shape.into_iter().for_each(|shape| self.range(name, shape, 1));
                }
            }
            GraphKind::DitReference => at("vl_embs").into_iter().for_each(|s| self.range("tokens", s, 1)),
            GraphKind::BackboneLanguage => {
                at("inputs_embeds").into_iter().for_each(|s| self.range("tokens", s, 1));
            }
            GraphKind::BackboneVision => {
                let Some(shape) = at("pixel_values") else { return };
                self.range("images", shape, 0);
                if let [_, _, height, width] = shape.opt.as_slice() {
                    self.value("image-size", format!("{height}x{width}"));
                }
            }
        }
    }

    fn range(&mut self, name: &str, shape: &ShapeRecord, axis: usize) {
        let extents = [&shape.min, &shape.opt, &shape.max].map(|shape| shape.get(axis));
        if let [Some(min), Some(opt), Some(max)] = extents {
            self.value(name, format!("{min},{opt},{max}"));
        }
    }

    fn builder(&mut self, builder: &BuilderRecord, needs: &EngineNeeds) {
        if let Some(level) = builder.optimisation_level {
            self.value("optimisation-level", level);
        }
        if let Some(bytes) = builder.workspace {
            self.value("workspace-mb", bytes.div_ceil(1 << 20));
        }
        let kept = |name: &&str| builder.f32_layers.iter().any(|layer| layer == name);
        let flags = [
            ("norms-f32", NORMS_F32.iter().all(kept) && !builder.strongly_typed),
            ("tf32", builder.tf32),
            ("version-compatible", builder.version_compatible),
            // Older ones do not have it.
            ("strongly-typed", builder.strongly_typed && needs.tensorrt.major >= 10),
        ];
        flags.into_iter().filter(|(_, given)| *given).for_each(|(name, _)| self.flag(name));
    }

    fn calibration(&mut self, calibration: &CalibrationRecord) {
        match &calibration.source {
            CalibrationSource::Collected(folder) => self.value("calibration", folder),
            CalibrationSource::Synthetic(ticks) => self.value("calibration-ticks", ticks),
        }
        // TensorRT's own calibrators are chosen where there are some, and newer versions have none.
        if calibration.method == CalibrationMethod::Explicit {
            self.value("method", calibration.method);
        }
        self.value("ranges", &calibration.ranges);
        if let Some(alpha) = calibration.smooth_quant {
            self.value("smooth-quant", alpha);
        }
        calibration.skipped.iter().for_each(|part| self.value("skip", part));
    }
}

impl fmt::Display for RebuildCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PROGRAM)?;
        self.arguments.iter().try_for_each(|argument| write!(f, " {}", quoted(argument)))
    }
}

/// For a shell, if it needs it.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:,@".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}
