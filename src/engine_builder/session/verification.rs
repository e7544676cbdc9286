//! Whether a built engine is what it should be.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use tch::Kind;

use super::{
    super::{
        backbone,
        build::Built,
        shapes::check_tensors,
        synthetic::SyntheticTick,
        tables::{self, Measured},
        verify::{Distance, HeadLatency, Trace, torch_head},
    },
    Session,
};
use crate::{
    atomic_file::write_atomically,
    engine::{AccuracyRecord, EngineNeeds, EngineRecord, EngineStore, LatencyRecord, Precision},
    model::{
        action_head::ActionHead,
        default_kind,
        layers::Loader,
        tensorrt::{Queueing, TensorRtVelocity},
    },
};

/// Passes before the first timed one.
const WARM_UP: usize = 10;

impl Session<'_> {
    fn tick(&self, seed: u64) -> Result<SyntheticTick> {
        let (text, image) = (self.graph.text.usual(), self.graph.image.usual());
        Ok(SyntheticTick::new(&self.checkpoint.config, seed, text, image)?)
    }

    /// Reads the engine back: its inputs must be those of the graph, and the inspector's words are kept where asked for.
    pub(super) fn inspect(&self, store: &EngineStore, built: &Built) -> Result<()> {
        let (engine, _) = self.here.engine(store, &built.needs)?;
        check_tensors(&engine, &built.record.shapes)?;
        if let Some(path) = &self.command.inspect {
            write_atomically(path, engine.inspect()?.as_bytes())
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    /// The record of an engine that was not run, which says so.
    pub(super) fn unmeasured(&self, store: &EngineStore, built: &Built, why: &str) -> Result<EngineRecord> {
        let mut record = built.record.clone();
        record.notes.push(format!("no accuracy measured: {why}"));
        store.update(&built.needs, &record)?;
        Ok(record)
    }

    /// Compares an engine of a part of the backbone with libtorch in f32 on synthetic inputs of the usual sizes.
    pub(super) fn verify_backbone(&self, store: &EngineStore, built: &Built) -> Result<EngineRecord> {
        let (engine, mut record) = self.here.engine(store, &built.needs)?;
        let seed = self.command.seed;
        let (accuracy, latency) =
            backbone::compare(&engine, &self.target.part, &self.checkpoint, seed, self.device)?;
        record.accuracy = Some(AccuracyRecord { least_cosine: self.command.least_cosine, ..accuracy });
        record.latency = Some(latency);
        store.update(&built.needs, &record)?;
        Ok(record)
    }

    /// Compares the engine with libtorch in f32 and in the device's own type, and writes what was found into its record.
    ///
    /// An INT8 engine has the fp16 engine of the same folder beside it, where there is one.
    pub(super) fn verify(
        &self,
        store: &EngineStore,
        hash: &str,
        built: &Built,
    ) -> Result<(EngineRecord, Vec<Measured>)> {
        let (command, checkpoint, device) = (self.command, &self.checkpoint, self.device);
        let embodiment = self.graph.embodiment;
        let ticks = (0..command.ticks).map(|tick| self.tick(command.seed.wrapping_add(tick)));
        let ticks = ticks.collect::<Result<Vec<_>>>()?;
        let own = default_kind(device);
        let mut all: Vec<Measured> = Vec::new();
        let mut references: Vec<(String, Vec<Trace>)> = Vec::new();
        for kind in [Kind::Float, own] {
            let name = format!("libtorch {kind:?}");
            let mut head = torch_head(checkpoint, embodiment, device, kind)?;
            let mut measured = Measured { name: name.clone(), ..Measured::default() };
            self.compare(&mut measured, &references, &mut head, &ticks)?;
            let traces = ticks.iter().map(|tick| Trace::record(&mut head, tick, device));
            let traces = traces.collect::<Result<Vec<_>, _>>()?;
            measured.time("eager", &self.time(&mut head, &ticks)?);
            references.push((name, traces));
            all.push(measured);
        }
        if command.precision == Precision::Int8 {
            let needs = self.target.needs(&self.here, checkpoint, hash, Precision::Fp16);
            match self.measure(store, &needs, &references, &ticks) {
                Ok(fp16) => all.push(fp16),
                Err(error) => tracing::info!("no fp16 engine to put beside it: {error:#}"),
            }
        }
        let mut measured = self.measure(store, &built.needs, &references, &ticks)?;
        if let Some(calibration) = &built.record.calibration {
            measured.notes.push(format!(
                "{}, {} ranges of {} samples",
                calibration.method, calibration.ranges, calibration.samples
            ));
        }
        let mut record = built.record.clone();
        record.accuracy = measured.against.last().map(|against| {
            let velocity = &against.velocity;
            AccuracyRecord {
                against: against.reference.clone(),
                inputs: format!("{} synthetic ticks from seed {}", command.ticks, command.seed),
                // Values that are not finite stand in the way of figures.
                mse: velocity.overall.mse.unwrap_or(f64::MAX),
                cosine: velocity.overall.cosine.unwrap_or(0.0),
                least_cosine: command.least_cosine,
                max_error: velocity.overall.max_abs.unwrap_or(f64::MAX),
                mse_per_step: velocity.steps.iter().map(|step| step.mse.unwrap_or(f64::MAX)).collect(),
                growth: velocity.growth().unwrap_or(f64::MAX),
            }
        });
        record.latency = measured.latencies.last().map(|latency| LatencyRecord {
            of: format!("all denoising steps, {}, synchronised", latency.of),
            iterations: latency.denoising.count,
            median_ms: latency.denoising.median,
            mean_ms: latency.denoising.mean,
            p90_ms: latency.denoising.p90,
        });
        store.update(&built.needs, &record)?;
        all.push(measured);
        Ok((record, all))
    }

    /// Accuracy and latency of an engine that is there.
    fn measure(
        &self,
        store: &EngineStore,
        needs: &EngineNeeds,
        references: &[(String, Vec<Trace>)],
        ticks: &[SyntheticTick],
    ) -> Result<Measured> {
        let (checkpoint, device, embodiment) = (&self.checkpoint, self.device, self.graph.embodiment);
        let (engine, record) = self.here.engine(store, needs)?;
        let name = tables::engine_name(&record);
        let mut measured = Measured { name: name.clone(), ..Measured::default() };
        for (queueing, how) in [(Queueing::Eager, "eager"), (Queueing::Graph, "CUDA graph")] {
            let at = Loader::new(&checkpoint.weights, device, default_kind(device)).at("action_head");
            let identity = name.clone();
            let velocity =
                TensorRtVelocity::new(&at, Arc::clone(checkpoint), embodiment, &engine, queueing, identity)?;
            let mut head = ActionHead::with_engine(&at, &checkpoint.config, embodiment, Box::new(velocity))?;
            if queueing == Queueing::Graph {
                self.compare(&mut measured, references, &mut head, ticks)?;
            }
            measured.time(how, &self.time(&mut head, ticks)?);
        }
        Ok(measured)
    }

    fn compare(
        &self,
        measured: &mut Measured,
        references: &[(String, Vec<Trace>)],
        head: &mut ActionHead,
        ticks: &[SyntheticTick],
    ) -> Result<()> {
        for (reference, traces) in references {
            let mut distance = Distance::default();
            for (trace, tick) in traces.iter().zip(ticks) {
                distance.add(trace, head, tick, self.device)?;
            }
            measured.add(reference, &distance);
        }
        Ok(())
    }

    fn time(&self, head: &mut ActionHead, ticks: &[SyntheticTick]) -> Result<HeadLatency> {
        let tick = ticks.first().context("expected at least one tick")?;
        Ok(HeadLatency::measure(head, tick, self.device, WARM_UP, self.command.iterations)?)
    }

    pub(super) fn judge(&self, record: &EngineRecord) -> Result<()> {
        let Some(accuracy) = &record.accuracy else { return Ok(()) };
        let least = accuracy.least_cosine;
        ensure!(
            accuracy.is_right(),
            "the engine is wrong: expected a cosine of at least {least} against {}, found {}; the engine was saved with this in its \
             record. Try --norms-f32, another precision, or another TensorRT; --least-cosine moves the limit",
            accuracy.against,
            accuracy.cosine
        );
        Ok(())
    }
}
