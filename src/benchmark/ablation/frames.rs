//! Frames to images on the GPU, against the same on the processor's cores with the images uploaded.

use super::{
    super::{chain::Chain, run::Settings},
    Failure,
};
use crate::evaluation::LatencySamples;

/// Times with the GPU, and without it; each ends when the images lie in the GPU's memory.
#[cfg(feature = "cuda")]
pub(super) fn measure(
    chain: &Chain,
    settings: &Settings,
) -> Result<(LatencySamples, LatencySamples), Failure> {
    use std::time::Instant;

    use tch::{Device, Kind, Tensor};

    use crate::model::{
        cuda::{Pinned, Stream},
        preprocess::GpuFrames,
    };

    let Settings { warm_up, iterations, device, .. } = *settings;
    let Device::Cuda(ordinal) = device else {
        return Err(Failure::NotHere("needs an NVIDIA GPU"));
    };
    let stream = Stream::current(ordinal)?;
    let mut gpu = GpuFrames::new(ordinal, chain.processor().image_transform())?;
    let mut own = None;
    let (mut on, mut off) = (LatencySamples::default(), LatencySamples::default());
    for set in 0..(warm_up + iterations) as usize {
        let named = chain.frames(set)?;
        let frames: Vec<_> = named.iter().map(|(_, frame)| *frame).collect();
        stream.wait()?;
        let start = Instant::now();
        let made = gpu.images(&frames, &stream)?;
        stream.wait()?;
        let with = start.elapsed();

        let start = Instant::now();
        let images = chain.processor().images(&named)?;
        // In standard layout, as the processor makes it.
        let bytes = images.as_slice().unwrap_or(&[]);
        let (staging, tensor) = match &mut own {
            Some(own) => own,
            None => {
                own.insert((Pinned::new(bytes.len())?, Tensor::f_zeros(made.size(), (Kind::Uint8, device))?))
            }
        };
        staging.upload(bytes, tensor, &stream)?;
        stream.wait()?;
        let without = start.elapsed();
        if set >= warm_up as usize {
            on.push(with);
            off.push(without);
            continue;
        }
        let found = Vec::<u8>::try_from(made.f_to_device(Device::Cpu)?.f_flatten(0, -1)?)?;
        let wrong = found.iter().zip(bytes).filter(|(found, expected)| found != expected).count();
        if wrong > 0 || found.len() != bytes.len() {
            return Err(Failure::Bytes { wrong, all: bytes.len() });
        }
    }
    Ok((on, off))
}

#[cfg(not(feature = "cuda"))]
pub(super) fn measure(_: &Chain, _: &Settings) -> Result<(LatencySamples, LatencySamples), Failure> {
    Err(Failure::NotHere("needs a program built with the feature `cuda`"))
}
