//! INT8: what is collected, and the ranges that follow from it.
//!
//! | step | file |
//! |---|---|
//! | choose samples evenly over the denoising steps | [`StratifiedSample`] |
//! | keep them | [`CalibrationWriter`], [`CalibrationSet`] |
//! | see the activations of a tensor | [`Histogram`] |
//! | choose its range | [`RangeRule`]: [`Histogram::max_abs`], [`Histogram::percentile`], [`Histogram::entropy`] |
//! | scale the weights, channel by channel | [`channel_scales`] |
//! | move outliers from activations to weights | [`ChannelMax`], [`smoothing`] |
//! | keep the ranges | [`ActivationRanges`] |
//!
//! All quantisation is symmetric: `q = round(x / scale)` in [-127, 127], `scale = range / 127`.

mod files;
mod histogram;
mod method;
mod ranges;
mod sampling;
mod scales;
mod threshold;

pub use files::{
    CalibrationMeta, CalibrationSample, CalibrationSet, CalibrationWriter, HostTensor, StagedSample,
};
pub use histogram::Histogram;
pub use method::{CalibrationMethod, RangeRule};
pub use ranges::{ActivationRanges, RangesKey};
pub use sampling::StratifiedSample;
pub use scales::{ChannelMax, LEVELS, channel_scales, quantise, smoothing};
