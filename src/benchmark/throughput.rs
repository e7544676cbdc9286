//! How many ticks a second, and how old is what they act upon: one tick after the other, and pipelined.
//!
//! Both see the same observations and noise, without a pause: an observation is taken as soon as the last actions are there, and its
//! age is that when its own are. Pipelined, the backbone works on it beside the action head of the one before: more ticks a second,
//! each of an older observation. The actions must be the same, bit by bit.

use std::time::Instant;

use ndarray::Array3;

use super::{
    cases::Case,
    chain::Chain,
    mode::Mode,
    model::{Candidate, ModeError},
    result::{Pace, ThroughputResult},
    run::Settings,
};
use crate::{
    evaluation::LatencySamples,
    model::{
        ModelError, device::synchronize, network::Network, policy::PolicyError, preprocess::Preprocessor,
        tick::TickInputs,
    },
    processor::ProcessorError,
};

/// Why a mode has no figures, or what is wrong with them.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Mode(#[from] ModeError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Processor(#[from] ProcessorError),
    #[error(transparent)]
    Policy(#[from] PolicyError),
    #[error(
        "{0} of {1} chunks are not those of the ticks in sequence: this is a defect of groot_policy, please report it"
    )]
    Different(usize, usize),
}

/// Measures the modes among those of `settings` whose ticks are captured; what cannot be measured says why.
pub fn measure(
    candidate: &Candidate,
    case: &Case,
    chain: &Chain,
    settings: &Settings,
) -> Vec<ThroughputResult> {
    let captured = |mode: &&Mode| matches!(mode, Mode::Graph | Mode::GraphFused);
    let modes = settings.modes.iter().filter(captured);
    modes
        .map(|mode| {
            let mut result = ThroughputResult {
                mode: mode.name().to_owned(),
                sequential: None,
                pipelined: None,
                failure: None,
            };
            let outcome = candidate
                .network(*mode, case, settings.device)
                .map_err(Failure::from)
                .and_then(|network| both(network, chain, settings, &mut result));
            result.failure = outcome.err().map(|failure| failure.to_string());
            result
        })
        .collect()
}

fn both(
    network: Network,
    chain: &Chain,
    settings: &Settings,
    result: &mut ThroughputResult,
) -> Result<(), Failure> {
    let preprocessor = Preprocessor::new(settings.preprocessing, &network, chain.processor())?;
    let mut series = Series { network, preprocessor, chain, settings };
    let (pace, expected) = series.run(1)?;
    result.sequential = Some(pace);
    series.network.set_pipelined(true)?;
    let (pace, found) = series.run(2)?;
    result.pipelined = Some(pace);
    let different = found.iter().zip(&expected).filter(|(found, expected)| found != expected).count();
    if different == 0 { Ok(()) } else { Err(Failure::Different(different, expected.len())) }
}

struct Series<'a> {
    network: Network,
    preprocessor: Preprocessor,
    chain: &'a Chain,
    settings: &'a Settings,
}

/// A tick under way: its number, and when its observation was taken.
type Begun = (usize, Instant);

impl Series<'_> {
    /// Ticks of which at most `depth` are under way when actions are waited for; and the measured ones' actions.
    fn run(&mut self, depth: usize) -> Result<(Pace, Vec<Array3<f32>>), Failure> {
        let (warm_up, count) = (self.settings.warm_up as usize, self.settings.iterations as usize);
        let mut unused = LatencySamples::default();
        // At least until the shape is captured.
        self.ticks(warm_up.max(2), depth, &mut unused)?;
        synchronize(self.settings.device);
        let mut ages = LatencySamples::default();
        let start = Instant::now();
        let chunks = self.ticks(count, depth, &mut ages)?;
        let seconds = start.elapsed().as_secs_f64();
        let hz = if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
        Ok((Pace { hz, age: ages.summary().unwrap_or_default() }, chunks))
    }

    fn ticks(
        &mut self,
        count: usize,
        depth: usize,
        ages: &mut LatencySamples,
    ) -> Result<Vec<Array3<f32>>, Failure> {
        let mut chunks = Vec::with_capacity(count);
        let mut under_way = std::collections::VecDeque::with_capacity(depth);
        for number in 0..count {
            let begun = self.begin(number)?;
            under_way.push_back(begun);
            if under_way.len() == depth {
                self.finish(under_way.pop_front(), ages, &mut chunks)?;
            }
        }
        while !under_way.is_empty() {
            self.finish(under_way.pop_front(), ages, &mut chunks)?;
        }
        Ok(chunks)
    }

    fn begin(&mut self, number: usize) -> Result<Begun, Failure> {
        let taken = Instant::now();
        let observations = self.chain.observations(number)?;
        let (model, images) =
            self.preprocessor.prepare(self.chain.processor(), observations, &self.network)?;
        let noise = self.chain.noise(number)?.view();
        self.network.begin(&TickInputs { model: &model, noise, guidance: None, images: images.as_ref() })?;
        Ok((number, taken))
    }

    fn finish(
        &mut self,
        begun: Option<Begun>,
        ages: &mut LatencySamples,
        chunks: &mut Vec<Array3<f32>>,
    ) -> Result<(), Failure> {
        let Some((number, taken)) = begun else { return Ok(()) };
        let (actions, _) = self.network.finish()?;
        std::hint::black_box(self.chain.decode(number, &actions)?);
        ages.push(taken.elapsed());
        chunks.push(actions);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::{benchmark::model_sizes::KnownModel, execution::Preprocessing};

    #[test]
    fn captured_modes_are_measured_in_sequence_and_pipelined_and_elsewhere_the_reason_is_told() {
        let [case, ..] = Case::standard();
        let candidate = Candidate::random(KnownModel::Tiny, 0);
        let model = &candidate.sizes().model;
        let chain = Chain::new(model, &case, &case.shape().unwrap(), 2, 0).unwrap();
        let device = crate::model::device::select("auto").unwrap();
        let settings = Settings {
            modes: vec![Mode::Eager, Mode::Graph],
            iterations: 3,
            warm_up: 1,
            inputs: 2,
            seed: 0,
            device,
            preprocessing: Preprocessing::Auto,
            ablation: false,
            throughput: true,
        };
        let results = measure(&candidate, &case, &chain, &settings);
        let [result] = results.as_slice() else { panic!("{results:?}") };
        assert_eq!(result.mode, "graph");
        if device == Device::Cpu {
            assert!(result.failure.as_ref().unwrap().contains("CUDA graphs need an NVIDIA GPU"));
        } else {
            assert_eq!(result.failure, None);
            assert!(result.pipelined.unwrap().hz > 0.0);
        }
        // The order of ticks, where nothing is captured.
        let network = candidate.network(Mode::Eager, &case, Device::Cpu).unwrap();
        let mut result = ThroughputResult { mode: String::new(), failure: None, ..results[0].clone() };
        let settings = Settings { device: Device::Cpu, ..settings };
        both(network, &chain, &settings, &mut result).unwrap();
        for pace in [result.sequential.unwrap(), result.pipelined.unwrap()] {
            assert_eq!(pace.age.count, 3);
            assert!(pace.hz > 0.0);
        }
    }
}
