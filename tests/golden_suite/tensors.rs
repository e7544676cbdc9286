//! Golden arrays to libtorch tensors and back, and the comparison of the two.

use ndarray::{ArrayD, IxDyn};
use tch::{Device, Kind, Tensor};

pub fn to_tensor(array: &ArrayD<f64>, kind: Kind) -> Tensor {
    let shape: Vec<i64> = array.shape().iter().map(|&n| n as i64).collect();
    let flat: Vec<f64> = array.iter().copied().collect();
    Tensor::from_slice(&flat).reshape(shape).to_kind(kind)
}

pub fn to_array(tensor: &Tensor) -> ArrayD<f64> {
    let tensor = tensor.to_device(Device::Cpu).to_kind(Kind::Double).contiguous();
    let shape: Vec<usize> = tensor.size().iter().map(|&n| n as usize).collect();
    let flat = Vec::<f64>::try_from(tensor.reshape([-1])).unwrap();
    ArrayD::from_shape_vec(IxDyn(&shape), flat).unwrap()
}

/// Gathers every tensor that is out of bounds, so that one run shows them all.
#[derive(Default)]
pub struct Comparison {
    failures: Vec<String>,
    compared: usize,
    /// Largest difference over its limit seen, and where.
    closest: (f64, String),
}

impl Comparison {
    /// `got` may lack a leading batch axis of 1, or hold one row for a batch of equal ones.
    pub fn check(&mut self, what: &str, got: &Tensor, want: &ArrayD<f64>, limit: f64) {
        self.compared += 1;
        let got = to_array(got);
        let Some(got) = got.broadcast(want.raw_dim()) else {
            self.failures.push(format!("{what}: shape {:?}, expected {:?}", got.shape(), want.shape()));
            return;
        };
        let worst = got.iter().zip(want).fold(0.0, |worst, (g, w)| {
            let diff = (g - w).abs();
            if diff.is_nan() { f64::INFINITY } else { f64::max(worst, diff) }
        });
        if worst / limit > self.closest.0 {
            self.closest = (worst / limit, what.to_owned());
        }
        if std::env::var_os("GROOT_GOLDEN_VERBOSE").is_some() {
            let largest = want.iter().fold(0f64, |m, v| m.max(v.abs()));
            println!("{what}: {worst:.3e} (limit {limit:.1e}, largest value {largest:.3})");
        }
        if worst > limit {
            let largest = want.iter().fold(0f64, |m, v| m.max(v.abs()));
            self.failures.push(format!(
                "{what}: differs by {worst:.3e}, limit {limit:.1e}, largest value {largest:.3}"
            ));
        }
    }

    pub fn fail(&mut self, what: String) {
        self.failures.push(what);
    }

    pub fn finish(self, title: &str) {
        println!(
            "{title}: {} tensors, closest to its limit {} ({:.0} %)",
            self.compared,
            self.closest.1,
            self.closest.0 * 100.0
        );
        assert!(self.compared > 0, "{title}: nothing was compared");
        assert!(
            self.failures.is_empty(),
            "{title}: {} of {} tensors are off:\n  {}",
            self.failures.len(),
            self.compared,
            self.failures.join("\n  ")
        );
    }
}
