//! Samples of the golden observations, and the comparison with them.

use groot_policy::checkpoint::Checkpoint;
use ndarray::{ArrayD, Axis, Slice};

use crate::fixture::{Fixture, GoldenFile, max_abs_diff};

/// f32: what an independent implementation is asked to reach, absolute.
pub const F32_LIMIT: f64 = 5e-5;

/// One sample of one observation.
pub struct Sample {
    /// `obs0 row 0`, for messages.
    pub name: String,
    pub golden: GoldenFile,
    pub row: usize,
    pub embodiment: usize,
    pub noise: ArrayD<f32>,
    /// The backbone's features at text and at image tokens, (1, tokens, width).
    pub text: ArrayD<f32>,
    pub image: ArrayD<f32>,
}

impl Sample {
    pub fn all(fixture: &Fixture) -> Vec<Self> {
        let mut samples = Vec::new();
        for info in &fixture.manifest.observations {
            let preproc = fixture.file(&format!("{}.preproc", info.name));
            let inputs = fixture.file(&format!("{}.inputs", info.name));
            for row in 0..info.batch {
                let golden = fixture.file(&format!("{}.fp32", info.name));
                let embodiments: Vec<i64> = preproc.i64("embodiment_id").into_iter().collect();
                let features = row_of(&golden.f32("backbone_features"), row);
                let image = row_of(&golden.i64("image_mask"), row);
                let valid = row_of(&golden.i64("backbone_attention_mask"), row);
                let chosen = |wanted: i64| {
                    let keep = image.iter().zip(&valid).enumerate();
                    let keep = keep.filter(|(_, (i, v))| **v != 0 && **i == wanted).map(|(at, _)| at);
                    features.select(Axis(1), &keep.collect::<Vec<_>>())
                };
                samples.push(Self {
                    name: format!("{} row {row}", info.name),
                    row,
                    embodiment: embodiments[row.min(embodiments.len() - 1)] as usize,
                    noise: row_of(&inputs.f32("noise"), row),
                    text: chosen(0),
                    image: chosen(1),
                    golden,
                });
            }
        }
        samples
    }

    pub fn f32(&self, name: &str) -> ArrayD<f32> {
        row_of(&self.golden.f32(name), self.row)
    }

    pub fn tokens(&self) -> (usize, usize) {
        (self.text.shape()[1], self.image.shape()[1])
    }
}

pub fn row_of<T: Clone>(array: &ArrayD<T>, row: usize) -> ArrayD<T> {
    array.slice_axis(Axis(0), Slice::from(row..row + 1)).to_owned()
}

pub fn open(fixture: &Fixture) -> Checkpoint {
    Checkpoint::open(&fixture.dir, &Default::default()).unwrap()
}

pub fn compare(what: &str, got: &ArrayD<f32>, want: &ArrayD<f32>, limit: f64) -> f64 {
    let worst = max_abs_diff(what, &got.mapv(f64::from), &want.mapv(f64::from));
    assert!(worst <= limit, "{what}: differs by {worst:.3e}, limit {limit:.1e}");
    worst
}
