//! What an INT8 build needs, whoever builds.

use std::path::Path;

use anyhow::{Result, ensure};
use tch::Device;

use super::{
    super::{
        graph::{EngineGraph, GraphPart, GraphRequest, Typing},
        synthetic::SyntheticTick,
        verify::torch_head,
    },
    inputs::{Batches, CalibrationInputs, CollectedInputs, DenoisingInputs},
    measure::measure,
    options::Int8Options,
};
use crate::{
    checkpoint::Checkpoint,
    engine::{
        CalibrationRecord, CalibrationSource,
        calibration::{ActivationRanges, CalibrationMethod, RangeRule, RangesKey},
        fused::FUSED_GRAPH_VERSION,
    },
    evaluation::Progress,
    model::default_kind,
    onnx::{Data, Graph, Written, quantise::quantise, smooth::smooth, write},
    tensorrt::{CalibrationAlgorithm, Int8Calibration, Profile, ShapeRange},
};

/// Name of the files of a graph with Q/DQ nodes, without ending.
const STEM: &str = "dit_fused_int8";

/// First seed of the calibration's ticks after the seed that was asked for: others than those that are measured.
const CALIBRATION_SEEDS: u64 = 1 << 32;

/// An INT8 build of one checkpoint.
pub struct Int8Plan<'a> {
    pub checkpoint: &'a Checkpoint,
    pub checkpoint_hash: &'a str,
    pub graph: GraphRequest,
    pub options: &'a Int8Options,
    pub method: CalibrationMethod,
    /// Where libtorch denoises and measures.
    pub device: Device,
    /// First seed of synthetic ticks that others are compared on; these take others.
    pub seed: u64,
    /// Where ranges are kept.
    pub folder: &'a Path,
    /// Take inputs of another checkpoint.
    pub forced: bool,
}

impl Int8Plan<'_> {
    /// The inputs: collected ones, or synthetic ones that are denoised now.
    ///
    /// # Errors
    /// A set that does not fit the graph or cannot be read, or no memory.
    pub fn inputs(&self) -> Result<Box<dyn CalibrationInputs>> {
        let (checkpoint, embodiment) = (self.checkpoint, self.graph.embodiment);
        if let Some(folder) = &self.options.calibration {
            let inputs = CollectedInputs::open(folder, self.checkpoint_hash, embodiment, self.forced)?;
            return Ok(Box::new(inputs));
        }
        let mut head = torch_head(checkpoint, embodiment, self.device, default_kind(self.device))?;
        let seed = self.synthetic_seed();
        let (text, image) = (self.graph.text.usual(), self.graph.image.usual());
        let ticks = (0..self.options.calibration_ticks)
            .map(|tick| SyntheticTick::new(&checkpoint.config, seed.wrapping_add(tick), text, image));
        Ok(Box::new(DenoisingInputs::record(checkpoint, embodiment, &mut head, self.device, ticks, seed)?))
    }

    fn synthetic_seed(&self) -> u64 {
        self.seed.wrapping_add(CALIBRATION_SEEDS)
    }

    fn source(&self) -> CalibrationSource {
        match &self.options.calibration {
            Some(folder) => {
                let absolute = std::path::absolute(folder);
                CalibrationSource::Collected(absolute.as_deref().unwrap_or(folder).display().to_string())
            }
            None => CalibrationSource::Synthetic(self.options.calibration_ticks),
        }
    }

    /// What the engine's record says of its ranges.
    fn record(&self, hash: String, samples: usize, seed: u64) -> CalibrationRecord {
        CalibrationRecord {
            hash,
            source: self.source(),
            method: self.method,
            ranges: self.options.ranges.to_string(),
            samples: samples as u64,
            seed,
            smooth_quant: self.options.smooth_quant,
            skipped: self.options.skip.clone(),
        }
    }

    /// Whether an engine with this record is what the plan would give, as far as can be said before anything is run: synthetic
    /// inputs have their identity once they are denoised.
    ///
    /// # Errors
    /// A set that cannot be opened.
    pub fn agrees_with(&self, record: &CalibrationRecord) -> Result<bool> {
        let mut wanted = match &self.options.calibration {
            Some(folder) => {
                let embodiment = self.graph.embodiment;
                let inputs = CollectedInputs::open(folder, self.checkpoint_hash, embodiment, self.forced)?;
                // Calibrators take the samples of one shape, so there may be fewer.
                let samples = inputs.len().min(record.samples as usize);
                self.record(inputs.hash(), samples, inputs.seed())
            }
            None => {
                let steps = self.checkpoint.config.num_inference_timesteps as u64;
                let samples = self.options.calibration_ticks * steps;
                self.record(record.hash.clone(), samples as usize, self.synthetic_seed())
            }
        };
        if let (CalibrationSource::Collected(_), CalibrationSource::Collected(_)) =
            (&wanted.source, &record.source)
        {
            // The hash says what a set is, wherever it lies.
            wanted.source = record.source.clone();
        }
        Ok(wanted == *record)
    }

    /// TensorRT's own calibration on these inputs.
    ///
    /// # Errors
    /// Inputs that cannot be read.
    pub fn calibrator(
        &self,
        inputs: Box<dyn CalibrationInputs>,
        say: &mut dyn FnMut(&str),
    ) -> Result<(Int8Calibration, CalibrationRecord)> {
        let (hash, seed, all) = (inputs.hash(), inputs.seed(), inputs.len());
        let (batches, shapes) = Batches::new(inputs, self.device)?;
        if batches.len() < all {
            say(&format!(
                "{} of {all} samples are used: TensorRT calibrates on one prompt length, and these have the most frequent one",
                batches.len()
            ));
        }
        for (name, range) in self.graph.shapes(&self.checkpoint.config) {
            // What the graph leaves open is fixed by the calibration's own profile.
            let found = shapes.get(&name);
            ensure!(
                range.min != range.max || found == Some(&range.opt),
                "calibration input {name}: expected {:?}, the one shape that the graph takes, found {found:?}; give \
                 --text-tokens and --image-tokens that fit the inputs, or three numbers each to leave them open",
                range.opt
            );
        }
        let record = self.record(hash, batches.len(), seed);
        let algorithm = match self.options.ranges {
            RangeRule::MinMax => CalibrationAlgorithm::MinMax,
            _ => CalibrationAlgorithm::Entropy,
        };
        let profile = shapes
            .into_iter()
            .fold(Profile::default(), |profile, (name, shape)| profile.with(name, ShapeRange::fixed(shape)));
        let calibration = Int8Calibration {
            algorithm,
            batches: Box::new(batches),
            cache: Some(self.folder.join(self.cache_name(&record))),
            shapes: self.graph.profile(&self.checkpoint.config).map(|_| profile),
        };
        Ok((calibration, record))
    }

    /// The ranges are kept under the identity of what they were made from.
    fn cache_name(&self, record: &CalibrationRecord) -> String {
        let digits = |hash: &str| {
            let last = hash.rsplit(':').next().unwrap_or_default();
            last.chars().filter(char::is_ascii_alphanumeric).take(12).collect::<String>()
        };
        let (model, data) = (digits(self.checkpoint_hash), digits(&record.hash));
        format!("int8-{model}-e{}-{data}-{}.cache", self.graph.embodiment, record.ranges)
    }

    /// The ranges of the activations: those that were kept, or measured now and kept.
    ///
    /// # Errors
    /// Inputs that cannot be read or do not fit, or a folder that cannot be written.
    pub fn ranges(
        &self,
        inputs: &dyn CalibrationInputs,
        say: &mut dyn FnMut(&str),
    ) -> Result<(ActivationRanges, CalibrationRecord)> {
        let record = self.record(inputs.hash(), inputs.len(), inputs.seed());
        let key = RangesKey {
            checkpoint_hash: self.checkpoint_hash.to_owned(),
            calibration_hash: record.hash.clone(),
            graph_version: FUSED_GRAPH_VERSION,
            embodiment: self.graph.embodiment,
            rule: self.options.ranges,
            smooth_quant: self.options.smooth_quant,
        };
        match ActivationRanges::load(self.folder, &key) {
            Ok(Some(ranges)) => {
                say(&format!("ranges of an earlier run: {}", key.path(self.folder).display()));
                return Ok((ranges, record));
            }
            Ok(None) => {}
            Err(error) => tracing::warn!("measuring again: {error}"),
        }
        let passes = 1 + u64::from(self.options.smooth_quant.is_some());
        let mut progress = Progress::new("calibration passes", passes * inputs.len() as u64, 0);
        let measured = measure(
            self.checkpoint,
            self.graph,
            inputs,
            self.options.ranges,
            self.options.smooth_quant,
            self.device,
            &mut |done| progress.set(done),
        );
        progress.finish();
        let ranges = measured?;
        say(&format!(
            "ranges of {} products: {}",
            ranges.ranges.len(),
            ranges.save(self.folder, &key)?.display()
        ));
        Ok((ranges, record))
    }

    /// The graph of `request` with Q/DQ nodes around all products that are not skipped.
    ///
    /// # Errors
    /// Nothing is left to quantise, or the checkpoint lacks something.
    pub fn quantised(
        &self,
        request: GraphRequest,
        ranges: &ActivationRanges,
        typing: Typing,
    ) -> Result<Graph<'_>> {
        let graph = EngineGraph { part: GraphPart::Fused(request), typing };
        let mut graph = graph.graph(self.checkpoint, false)?;
        let ActivationRanges { mut ranges, mut factors } = ranges.clone();
        for pattern in &self.options.skip {
            ensure!(
                ranges.keys().any(|name| name.contains(pattern.as_str())),
                "--skip {pattern}: expected a part of a weight's name, found none with it; there are {}",
                ranges.keys().cloned().collect::<Vec<_>>().join(", ")
            );
        }
        ranges.retain(|name, _| !self.options.skips(name));
        factors.retain(|name, _| !self.options.skips(name));
        ensure!(!ranges.is_empty(), "--skip: expected at least one product to be left, found none");
        smooth(&mut graph, &factors)?;
        quantise(&mut graph, &ranges)?;
        Ok(graph)
    }

    /// Writes the engine's graph with Q/DQ nodes and its weights into `folder`.
    ///
    /// # Errors
    /// As [`quantised`](Self::quantised), or a folder that cannot be written.
    pub fn export(&self, ranges: &ActivationRanges, typing: Typing, folder: &Path) -> Result<Written> {
        Ok(write(&self.quantised(self.graph, ranges, typing)?, folder, STEM, Data::Full)?)
    }
}
