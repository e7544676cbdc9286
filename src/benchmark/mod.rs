//! How fast and how exact is every way of running the network, on inputs that need no recording.
//!
//! | file | part |
//! |---|---|
//! | [`cases`] | cameras, prompt, horizon: the standard cases and one's own |
//! | [`layout`] | a prompt of so many tokens, laid out as the chat template lays it out |
//! | [`model_sizes`] | the 3B model's sizes, and tiny ones of the same architecture |
//! | [`published`] | what NVIDIA publishes for the same table |
//! | [`gpu`] | clocks, power state and driver, as `nvidia-smi` says |
//! | [`roofline`] | the least time that bytes and FLOPs allow |
//! | [`result`] | what was measured, as a file |
//! | `chain` | random observations and the real pre-processing over them (feature `torch`) |
//! | `mode`, `model` | what may run the network, and how it is made (feature `torch`) |
//! | `device` | events and memory counters (feature `torch`) |
//! | `run` | the loop (feature `torch`) |
//! | `ablation` | what each switch brings (feature `torch`) |
//! | `throughput` | ticks one after the other, and pipelined (feature `torch`) |
//! | [`report`] | tables |
//! | `command` | `benchmark_replay bench` (feature `torch`) |
//!
//! # What is timed
//!
//! A tick starts with camera frames in memory and ends with physical actions in memory. End to end and data processing are wall
//! clock, with the device waited for. The stages of an eager mode are wall clock too, the device waited for between them; those of a
//! captured tick, in which nobody waits, are times between events on the device, and so is the network's time as a whole, which is
//! kept beside the others in the file. The DiT's own time (all denoising steps) is taken apart, where it can be run apart.
//! Data processing is the node's own chain: resizing, cropping, normalising, and the prompt from the cache that the node has for an
//! instruction that stays the same. It ends when the network could begin: with the images in the host's memory where the CPU makes
//! them, in the GPU's memory where the GPU does, the upload of the raw frames included. Decoding JPEG is not in it. Every mode starts from the same weights, the same
//! observations and the same noise, and is held against libtorch in f32 on the same device.

#[cfg(feature = "torch")]
pub mod ablation;
pub mod cases;
#[cfg(feature = "torch")]
pub mod chain;
#[cfg(feature = "torch")]
pub mod command;
#[cfg(feature = "torch")]
mod device;
pub mod gpu;
pub mod layout;
#[cfg(feature = "torch")]
pub mod mode;
#[cfg(feature = "torch")]
pub mod model;
pub mod model_sizes;
pub mod published;
pub mod report;
pub mod result;
pub mod roofline;
#[cfg(feature = "torch")]
pub mod run;
#[cfg(feature = "torch")]
mod throughput;
