//! What depends on the denoising step alone, computed once instead of at every step of every tick.
//!
//! One table of rows of the transformer's width for each step:
//!
//! | row | |
//! |---|---|
//! | 0 | the action encoder's time term: b1·W2a + τ·W2t + b2 |
//! | 1 + 2·i | 1 + scale of the adaptive norm of block i |
//! | 2 + 2·i | its shift |
//! | 1 + 2·blocks | 1 + scale of the output norm |
//! | 2 + 2·blocks | its shift |

use ndarray::{Array1, Array3, Axis, s};

use crate::checkpoint::{Checkpoint, ModelConfig, Weights, timesteps};
use crate::onnx::error::OnnxError;
use crate::onnx::host::{embodiment_slice, linear, matrix, silu, vector};

/// Width of the sinusoidal features of the timestep.
pub(super) const TIME_FEATURES: usize = 256;
/// The longest period of the sinusoids.
const MAX_PERIOD: f32 = 10_000.0;
/// Where the transformer's weights are.
pub(super) const DIT: &str = "action_head.model";

/// Rows of the table of one step.
pub fn rows(config: &ModelConfig) -> usize {
    3 + 2 * config.diffusion.num_layers
}

/// Number of steps within what the network distinguishes.
pub(super) fn check_steps(steps: usize, config: &ModelConfig) -> Result<(), OnnxError> {
    if (1..=config.num_timestep_buckets).contains(&steps) {
        return Ok(());
    }
    let expected = format!("1 to {}, the timestep buckets of config.json", config.num_timestep_buckets);
    Err(OnnxError::request("denoising steps", expected, steps.to_string()))
}

/// The tables of all of `steps` denoising steps for one embodiment: (steps, [`rows`], width).
///
/// Sinusoids as the reference has them (exponents in f32), everything else in f64, rounded once.
///
/// # Errors
/// No such embodiment or no such number of steps; or the checkpoint lacks a tensor.
pub fn step_terms(
    checkpoint: &Checkpoint,
    embodiment: usize,
    steps: usize,
) -> Result<Array3<f32>, OnnxError> {
    let (config, weights) = (&checkpoint.config, &checkpoint.weights);
    check_steps(steps, config)?;
    let (blocks, width) = (config.diffusion.num_layers, config.input_embedding_dim);
    let times = timesteps(steps, config.num_timestep_buckets);
    let mut table = Array3::<f64>::zeros((steps, rows(config), width));
    let activated: Vec<Array1<f64>> = time_embeddings(weights, &times)?.iter().map(silu).collect();

    let encoder = ActionEncoderTerms::read(weights, embodiment)?;
    for (mut rows, t) in table.axis_iter_mut(Axis(0)).zip(&times) {
        rows.row_mut(0).assign(&encoder.time_term(*t));
    }
    for block in 0..=blocks {
        // Blocks give scale and shift in this order, the output norm in the other.
        let (module, scale_first) = match block {
            _ if block == blocks => (format!("{DIT}.proj_out_1"), false),
            _ => (format!("{DIT}.transformer_blocks.{block}.norm1.linear"), true),
        };
        let pairs = linear(weights, &module, &activated)?;
        for (mut rows, pair) in table.axis_iter_mut(Axis(0)).zip(&pairs) {
            let (first, second) = (pair.slice(s![..width]), pair.slice(s![width..]));
            let (scale, shift) = if scale_first { (first, second) } else { (second, first) };
            rows.row_mut(1 + 2 * block).assign(&scale.mapv(|scale| 1.0 + scale));
            rows.row_mut(2 + 2 * block).assign(&shift);
        }
    }
    Ok(table.mapv(|value| value as f32))
}

/// Exponents −i·ln(10000)/(half−1) of the transformer's own frequencies, in f32 as the reference computes them.
pub(super) fn frequencies() -> Vec<f64> {
    let half = TIME_FEATURES / 2;
    let exponent = |i: usize| i as f32 * -MAX_PERIOD.ln() / (half - 1) as f32;
    (0..half).map(|i| f64::from(exponent(i)).exp()).collect()
}

/// The transformer's time embedding of each timestep, (width).
fn time_embeddings(weights: &Weights, times: &[i64]) -> Result<Vec<Array1<f64>>, OnnxError> {
    let features = |timestep: &i64| -> Array1<f64> {
        let angles: Vec<f64> = frequencies().iter().map(|frequency| *timestep as f64 * frequency).collect();
        // Cosines first.
        let features = angles.iter().map(|a| a.cos()).chain(angles.iter().map(|a| a.sin()));
        features.map(|value| f64::from(value as f32)).collect()
    };
    let features: Vec<Array1<f64>> = times.iter().map(features).collect();
    let embedder = format!("{DIT}.timestep_encoder.timestep_embedder");
    let inner = linear(weights, &format!("{embedder}.linear_1"), &features)?;
    let inner: Vec<Array1<f64>> = inner.iter().map(silu).collect();
    linear(weights, &format!("{embedder}.linear_2"), &inner)
}

/// Time features of the action encoder, [sin(t·f), cos(t·f)] with f_i = exp(−i·ln(10000)/half).
fn action_time_features(timestep: i64, width: usize) -> Array1<f64> {
    let half = width / 2;
    // Logarithm and division in f32, as the reference has them.
    let rate = MAX_PERIOD.ln() / half as f32;
    let angles: Vec<f64> = (0..half).map(|i| timestep as f64 * f64::from(-(i as f32) * rate).exp()).collect();
    // Sines first.
    let features = angles.iter().map(|a| a.sin()).chain(angles.iter().map(|a| a.cos()));
    features.map(|value| f64::from(value as f32)).collect()
}

/// What of the action encoder goes into the time term.
struct ActionEncoderTerms {
    /// b1·W2a + b2.
    constant: Array1<f64>,
    /// The rows of W2 that multiply the time features.
    time: ndarray::Array2<f64>,
}

impl ActionEncoderTerms {
    fn read(weights: &Weights, embodiment: usize) -> Result<Self, OnnxError> {
        let slice =
            |name: &str| embodiment_slice(weights, &format!("action_head.action_encoder.{name}"), embodiment);
        let w2 = matrix("action_head.action_encoder.W2.W", &slice("W2.W")?)?;
        let width = w2.ncols();
        let b1 = vector(&slice("W1.b")?);
        let constant = b1.dot(&w2.slice(s![..width, ..])) + vector(&slice("W2.b")?);
        Ok(Self { constant, time: w2.slice(s![width.., ..]).to_owned() })
    }

    fn time_term(&self, timestep: i64) -> Array1<f64> {
        action_time_features(timestep, self.time.ncols()).dot(&self.time) + &self.constant
    }
}
