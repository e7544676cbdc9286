//! All denoising steps of the tiny checkpoint, kernel by kernel.

use tch::{Device, Kind, Tensor};

use super::super::tick::{Machine as Shared, Run, Sizes, Tick, TickShape};
use super::super::weights::HeadWeights;
use super::machine::Machine;
use super::{
    FusedVelocity, Loader, ModelConfig, ModelError, Probe, TokenLayout, VelocityEngine, distance, layout,
    mean_square, normal, tiny,
};
use crate::checkpoint::Checkpoint;
use crate::cuda::emulation::Order;
use crate::cuda::{Kernels, Queue, Skinny, Warpgroup};
use crate::model::action_head::ActionHead;

/// The engine on the emulated GPU: everything of [`FusedVelocity`] but streams and recordings.
struct EmulatedVelocity {
    shared: Shared,
    tick: Option<Tick>,
    order: Order,
}

impl EmulatedVelocity {
    fn load(at: &Loader, config: &ModelConfig, embodiment: usize, machine: &Machine) -> Self {
        let kernels = Kernels::new(&machine.gpu).unwrap();
        let (width, heads) = (config.input_embedding_dim, config.diffusion.num_attention_heads);
        // One that writes parts and one that sums them in a cluster.
        let shapes = [Skinny::ALL[0], Skinny::ALL[3].in_clusters(2)];
        let groups = [Warpgroup::ALL[0], Warpgroup::ALL[5].in_clusters(2)];
        let shared = Shared {
            attention: kernels.attention(width / heads).unwrap(),
            gemms: machine.gemms(shapes, groups, &[2, 3, 4, 5]),
            kernels,
            weights: HeadWeights::load(at, config, embodiment).unwrap(),
            terms: None,
            sizes: Sizes { width, heads, horizon: config.action_horizon, action_dim: config.max_action_dim },
        };
        Self { shared, tick: None, order: Order::Ascending }
    }

    fn run(&mut self, run: Run, states: &Tensor, actions: &Tensor) -> Result<Tensor, ModelError> {
        let tick = self.tick.as_mut().unwrap();
        tick.fill(states, actions)?;
        // Each run in another order.
        self.order = match self.order {
            Order::Ascending => Order::Descending,
            Order::Descending => Order::Shuffled(7),
            Order::Shuffled(_) => Order::Ascending,
        };
        let queue = Queue::emulated(self.order, true);
        tick.queue(&self.shared, &queue, run)?;
        queue.finish()?;
        tick.result(run)
    }
}

impl VelocityEngine for EmulatedVelocity {
    fn identity(&self) -> String {
        "fused kernels bf16, emulated".to_owned()
    }

    fn set_timesteps(&mut self, timesteps: &[i64]) -> Result<(), ModelError> {
        self.shared.terms = Some(self.shared.weights.step_terms(timesteps)?);
        Ok(())
    }

    fn condition(&mut self, context: &Tensor, layout: &TokenLayout, _: &mut Probe) -> Result<(), ModelError> {
        let shape = TickShape {
            samples: layout.batch() as usize,
            states: 1,
            text: layout.text.len() as usize,
            image: layout.image.len() as usize,
            masked: layout.text.mask.is_some() || layout.image.mask.is_some(),
        };
        let mut tick = Tick::new(&mut self.shared, shape, None, Device::Cpu)?;
        // Less than some weights, more than others; the emulated cache looks whether they are there.
        tick.ahead = 5000;
        tick.condition(&self.shared.weights, context, layout)?;
        self.tick = Some(tick);
        Ok(())
    }

    fn velocity(
        &mut self,
        step: usize,
        states: &Tensor,
        actions: &Tensor,
        _: &mut Probe,
    ) -> Result<Tensor, ModelError> {
        self.run(Run::Step(step), states, actions)
    }

    fn denoise(&mut self, states: &Tensor, noise: &Tensor) -> Result<Option<Tensor>, ModelError> {
        Ok(Some(self.run(Run::All, states, noise)?))
    }
}

/// The head on the plain path.
fn plain_head(checkpoint: &Checkpoint, device: Device, kind: Kind) -> ActionHead {
    let at = Loader::new(&checkpoint.weights, device, kind).at("action_head");
    ActionHead::on_libtorch(&at, &checkpoint.config, 1).unwrap()
}

#[test]
fn fused_steps_are_as_near_to_f32_as_plain_bf16_is() {
    for machine in Machine::all("fused_steps_are_as_near_to_f32_as_plain_bf16_is") {
        compare_steps(&machine);
    }
}

fn compare_steps(machine: &Machine) {
    let device = machine.device;
    let checkpoint = tiny();
    let config = &checkpoint.config;
    let at = Loader::new(&checkpoint.weights, device, Kind::BFloat16).at("action_head");
    let engine: Box<dyn VelocityEngine> = if machine.is_emulated() {
        Box::new(EmulatedVelocity::load(&at, config, 1, machine))
    } else {
        Box::new(FusedVelocity::load(&at, config, 1).unwrap())
    };
    let mut fused = ActionHead::with_engine(&at, config, 1, engine).unwrap();
    let mut exact = plain_head(&checkpoint, device, Kind::Float);
    let mut rounded = plain_head(&checkpoint, device, Kind::BFloat16);
    let (mut fused_error, mut rounded_error) = (0.0, 0.0);
    let batches: [&[(usize, usize)]; 4] = [&[(9, 12)], &[(9, 12), (4, 7)], &[(5, 40)], &[(1, 1)]];
    let batches = if machine.is_emulated() { &batches[..2] } else { &batches };
    for (seed, rows) in batches.iter().enumerate() {
        let seed = 10 * seed as i64;
        let samples = rows.len() as i64;
        let layout = layout(rows, device);
        let features = normal(&[samples, layout.seq_len(), config.backbone_embedding_dim as i64], seed)
            .to_kind(Kind::BFloat16)
            .to_device(device);
        let state =
            normal(&[samples, 1, config.max_state_dim as i64], seed + 1).tanh().to_kind(Kind::BFloat16);
        let noise = normal(&[samples, config.action_horizon as i64, config.max_action_dim as i64], seed + 2);
        let run = |head: &mut ActionHead, kind| {
            let features = features.to_kind(kind);
            let tokens = head.condition(&features, &layout, &state, &mut Probe::off()).unwrap();
            // Twice: queued kernel by kernel, then as what was recorded.
            let first = head.denoise(&tokens, &noise, &mut Probe::off()).unwrap();
            let second = head.denoise(&tokens, &noise, &mut Probe::off()).unwrap();
            // Step by step as well.
            let stepwise = head.denoise(&tokens, &noise, &mut Probe::on()).unwrap();
            (first, second, stepwise)
        };
        let (reference, ..) = run(&mut exact, Kind::Float);
        let (plain, ..) = run(&mut rounded, Kind::BFloat16);
        let (first, second, stepwise) = run(&mut fused, Kind::BFloat16);
        assert_eq!(distance(&first, &second), 0.0, "the recording differs");
        assert!(distance(&stepwise, &first) < 1e-5, "the single steps differ");
        fused_error += mean_square(&first, &reference);
        rounded_error += mean_square(&plain, &reference);
    }
    // Sums and the residual stream keep more than on the plain path.
    assert!(fused_error <= rounded_error, "mean square {fused_error} beside {rounded_error}");
    assert!(rounded_error > 0.0);
}
