//! Weights made up from a seed, for whoever measures a model of full size without having its checkpoint.

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};

use super::ModelError;
use crate::checkpoint::{CheckpointError, EagleConfig, ModelConfig, Purpose, TensorSpec, key_table};

/// Standard deviation of weights and biases: what such networks are initialised with.
const SPREAD: f64 = 0.02;
/// Of the action decoder's last layer, so that velocities are about as large as the noise.
const LAST_SPREAD: f64 = 0.08;
/// Of the weights of norms, around 1.
const NORM_SPREAD: f64 = 0.1;
/// Values made at once: their 64-bit numbers fill 128 MiB.
const CHUNK: i64 = 1 << 24;
/// Standard deviation of the sum of four numbers that are uniform in 0..65536.
const SUM_DEVIATION: f64 = 37_837.227;
/// The middle of such sums, twice over, so that it is whole.
const TWICE_THE_MIDDLE: i64 = 4 * 65_535;

/// Every tensor that inference needs, with random values of the usual spread.
///
/// A value depends on the seed, the tensor's name and its place in the tensor alone, and is made in whole numbers, so that
/// it is the same on every device; it is a bf16 value, as a checkpoint's. Nothing is kept: a tensor is made, on the device
/// that asks for it, each time it is asked for.
#[derive(Debug, Clone)]
pub struct RandomWeights {
    shapes: BTreeMap<String, Vec<usize>>,
    seed: u64,
}

impl RandomWeights {
    /// The weights of a seed for a model of these sizes.
    pub fn new(model: &ModelConfig, eagle: &EagleConfig, seed: u64) -> Self {
        let needed = key_table(model, eagle).into_iter().filter(|spec| spec.purpose == Purpose::Inference);
        Self { shapes: needed.map(|TensorSpec { name, shape, .. }| (name, shape)).collect(), seed }
    }

    /// The shape of a tensor, outermost dimension first.
    ///
    /// # Errors
    /// The model has no such tensor.
    pub fn shape(&self, name: &str) -> Result<&[usize], ModelError> {
        let no_such = || CheckpointError::NoSuchTensor { tensor: name.to_owned() };
        Ok(self.shapes.get(name).map(Vec::as_slice).ok_or_else(no_such)?)
    }

    /// Names and shapes, in alphabetical order.
    pub fn shapes(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.shapes.iter().map(|(name, shape)| (name.as_str(), shape.as_slice()))
    }

    /// The values `first` and following of the tensor `name`, in row-major order, in `shape`.
    ///
    /// # Errors
    /// The model has no such tensor, or the device has no memory for it.
    pub fn values(
        &self,
        name: &str,
        first: i64,
        shape: &[i64],
        device: Device,
        kind: Kind,
    ) -> Result<Tensor, ModelError> {
        let (middle, spread) = distribution(name, self.shape(name)?);
        let digest = blake3::hash(name.as_bytes());
        let own = u64::from_le_bytes(std::array::from_fn(|i| digest.as_bytes()[i]));
        let key = own.wrapping_add(mix(self.seed)) as i64;
        let count: i64 = shape.iter().product();
        let flat = Tensor::f_empty([count], (kind, device))?;
        let mut done = 0;
        while done < count {
            let length = CHUNK.min(count - done);
            let values = normal(key, first + done, length, device)?
                .f_mul_scalar(spread)?
                .f_add_scalar(middle)?
                .f_to_kind(Kind::BFloat16)?;
            flat.f_narrow(0, done, length)?.f_copy_(&values)?;
            done += length;
        }
        Ok(flat.f_reshape(shape)?)
    }
}

/// Mean and standard deviation of a tensor's values.
fn distribution(name: &str, shape: &[usize]) -> (f64, f64) {
    // Of the weights only those of norms have one dimension.
    if shape.len() == 1 && name.ends_with(".weight") {
        (1.0, NORM_SPREAD)
    } else if name == "action_head.action_decoder.layer2.W" {
        (0.0, LAST_SPREAD)
    } else {
        (0.0, SPREAD)
    }
}

/// The constants of SplitMix64: the step of its counter, and the two factors of its mixing function.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
const FACTORS: [u64; 2] = [0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb];
/// Its shifts.
const SHIFTS: [i64; 3] = [30, 27, 31];

/// SplitMix64's mixing function.
fn mix(mut x: u64) -> u64 {
    for (shift, factor) in SHIFTS.into_iter().zip(FACTORS) {
        x = (x ^ (x >> shift)).wrapping_mul(factor);
    }
    x ^ (x >> SHIFTS[2])
}

/// [`mix`] of whole numbers on a device, whose 64 bits are a signed number's there; in place.
fn mix_all(mut x: Tensor) -> Result<Tensor, ModelError> {
    let fold = |x: &Tensor, shift: i64| -> Result<Tensor, ModelError> {
        // The shift of a signed number brings in copies of its sign, which are cut off.
        let kept = ((1u64 << (64 - shift)) - 1) as i64;
        let high = x.f_bitwise_right_shift_tensor_scalar(shift)?.f_bitwise_and(kept)?;
        Ok(x.f_bitwise_xor_tensor(&high)?)
    };
    for (shift, factor) in SHIFTS.into_iter().zip(FACTORS) {
        x = fold(&x, shift)?.f_mul_scalar(factor as i64)?;
    }
    fold(&x, SHIFTS[2])
}

/// Numbers `first` and following of the sequence of `key`, about normally distributed: f32, `length` of them.
///
/// Each is the sum of the four 16-bit parts of a random number, which never lies more than 3.5 deviations from the middle.
fn normal(key: i64, first: i64, length: i64, device: Device) -> Result<Tensor, ModelError> {
    let counter = Tensor::f_arange_start(first + 1, first + length + 1, (Kind::Int64, device))?;
    let random = mix_all(counter.f_mul_scalar(STEP as i64)?.f_add_scalar(key)?)?;
    let mut sum = random.f_bitwise_and(0xffff)?;
    for part in 1..4 {
        let part = random.f_bitwise_right_shift_tensor_scalar(16 * part)?.f_bitwise_and(0xffff)?;
        sum = sum.f_add(&part)?;
    }
    // Twice the distance from the middle, which f32 holds exactly.
    let twice = sum.f_mul_scalar(2)?.f_sub_scalar(TWICE_THE_MIDDLE)?.f_to_kind(Kind::Float)?;
    Ok(twice.f_mul_scalar(0.5 / SUM_DEVIATION)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(seed: u64) -> RandomWeights {
        RandomWeights::new(&ModelConfig::n1d6_3b(), &EagleConfig::n1d6_3b(), seed)
    }

    const LINEAR: &str = "action_head.model.transformer_blocks.0.attn1.to_q.weight";

    fn values(weights: &RandomWeights, name: &str, first: i64, count: i64) -> Vec<f32> {
        let values = weights.values(name, first, &[count], Device::Cpu, Kind::Float).unwrap();
        Vec::try_from(values).unwrap()
    }

    #[test]
    fn whole_numbers_on_a_device_are_mixed_as_those_of_the_processor() {
        let numbers = [0i64, 1, -1, i64::MIN, 0x0123_4567_89ab_cdef];
        let mixed = Vec::<i64>::try_from(mix_all(Tensor::from_slice(&numbers)).unwrap()).unwrap();
        assert_eq!(mixed, numbers.map(|number| mix(number as u64) as i64));
        // What the generator is known to give first for the seed 0.
        assert_eq!(mix(STEP), 0xe220_a839_7b1d_cdaf);
    }

    #[test]
    fn weights_have_the_usual_spread_and_norms_lie_around_one() {
        let values = values(&weights(1), LINEAR, 0, 1 << 20);
        let count = values.len() as f64;
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / count;
        let deviation = (values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / count).sqrt();
        assert!(mean.abs() < 1e-4 && (deviation / SPREAD - 1.0).abs() < 5e-3, "{mean} {deviation}");
        assert!(values.iter().all(|v| half::bf16::from_f32(*v).to_f32() == *v), "a value that is not bf16");

        let norm = "backbone.model.language_model.model.layers.3.input_layernorm.weight";
        let norm = self::values(&weights(1), norm, 0, 2048);
        assert!(norm.iter().all(|v| (0.6..1.4).contains(v)), "{norm:?}");
    }

    #[test]
    fn values_depend_on_seed_name_and_place_alone() {
        let all = values(&weights(1), LINEAR, 0, 1000);
        assert_eq!(values(&weights(1), LINEAR, 600, 400), all[600..]);
        assert_ne!(values(&weights(2), LINEAR, 0, 1000), all);
        assert_ne!(values(&weights(1), &LINEAR.replace("to_q", "to_k"), 0, 1000), all);
    }

    #[test]
    fn a_tensor_that_the_model_lacks_is_refused_by_name() {
        let error = weights(1).values("lm_head.weight", 0, &[1], Device::Cpu, Kind::Float).unwrap_err();
        assert!(error.to_string().contains("lm_head.weight"), "{error}");
    }
}
