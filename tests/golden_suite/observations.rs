//! The fixture's observations as the policy takes them.

use std::collections::BTreeMap;

use groot_policy::observation::Observation;
use image::RgbImage;
use ndarray::{ArrayD, Axis, Ix2, Ix4};

use crate::fixture::{Fixture, ObservationInfo};

/// The samples of an observation's batch.
pub fn observations(fixture: &Fixture, info: &ObservationInfo) -> Vec<Observation> {
    let file = fixture.file(&format!("{}.inputs", info.name));
    let instructions = info.language.to_vec();
    (0..info.batch)
        .map(|sample| {
            let mut video = BTreeMap::new();
            let mut state = BTreeMap::new();
            for name in file.names() {
                if let Some(camera) = name.strip_prefix("video.") {
                    let frames = sample_of(file.u8(&name), sample, 4).into_dimensionality::<Ix4>().unwrap();
                    let frames = frames
                        .axis_iter(Axis(0))
                        .map(|frame| {
                            let (height, width, _) = frame.dim();
                            RgbImage::from_raw(width as u32, height as u32, frame.iter().copied().collect())
                                .unwrap()
                        })
                        .collect();
                    video.insert(camera.to_owned(), frames);
                } else if let Some(key) = name.strip_prefix("state.") {
                    let values = sample_of(file.f32(&name), sample, 2).into_dimensionality::<Ix2>().unwrap();
                    state.insert(key.to_owned(), values);
                }
            }
            let instruction = instructions[sample.min(instructions.len() - 1)].clone();
            Observation { video, state, instruction }
        })
        .collect()
}

/// One sample of an array that has a batch axis only when the batch is larger than one.
fn sample_of<T: Clone>(array: ArrayD<T>, sample: usize, dimensions: usize) -> ArrayD<T> {
    if array.ndim() == dimensions { array } else { array.index_axis(Axis(0), sample).to_owned() }
}
