//! The tick in memory that never moves, so that it can be captured as CUDA graphs and queued as a whole.
//!
//! | file | part |
//! |---|---|
//! | [`buffers`] | inputs at fixed addresses, the three stages over them, the result |
//! | [`prefix`] | what stays of the prompt before its first image |
//! | [`captured`] | the stages of one shape as graphs |
//! | [`runner`] | the graphs of the shapes last seen |
//!
//! The stages are captured as three graphs, which are queued back to back without a wait on the host: while the device works
//! off one, the next lies in its queue already. Between them events mark the time, so that the stages' latencies are known in
//! each tick at no cost.
//!
//! In sequence, a tick is over before the next one begins. Pipelined, the action head has a stream of its own and each shape two
//! sets of memory and graphs, which take turns:
//!
//! ```text
//! begin(n)        begin(n+1)          begin(n+2)
//! | backbone n   | backbone n+1 ...   | backbone n+2 ...
//!                | head n ............| head n+1 ........
//!                             finish(n)          finish(n+1)
//! ```
//!
//! The head waits for memory and launches, the vision tower for arithmetic, so that both together take less time than one after the
//! other; an observation's actions are there later than alone. What the two share is used on one stream alone: weights are only
//! read, the backbone's work is in order on its stream, and all heads, whose engine has memory of its own, are in order on theirs.

pub mod buffers;
pub mod captured;
pub mod prefix;
pub mod runner;

use ndarray::ArrayView3;
use tch::Tensor;

use super::{action_head::ActionHead, backbone::Backbone, operators::BackboneOperators};
use crate::processor::{ModelInputs, guidance::Guidance};

/// What a tick is made from.
#[derive(Clone, Copy)]
pub struct TickInputs<'a> {
    /// Frames, prompt and state of B samples.
    pub model: &'a ModelInputs,
    /// (B, horizon, action dim).
    pub noise: ArrayView3<'a, f32>,
    /// What the actions are pulled to, for all samples alike.
    pub guidance: Option<&'a Guidance>,
    /// Images on the device, u8 (images, height, width, 3), in place of the model inputs' own. What makes them is queued on the
    /// tick's stream.
    pub images: Option<&'a Tensor>,
}

/// Vision tower, language model and action head, as a tick runs them.
pub struct Parts<'a> {
    /// Vision tower and language model.
    pub backbone: &'a mut Backbone,
    /// Everything after them.
    pub head: &'a mut ActionHead,
    /// What the backbone does between joined products; None for the plain path.
    pub operators: Option<&'a dyn BackboneOperators>,
}

/// A stage of the tick.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Frames to image tokens.
    Vision,
    /// Image tokens and prompt to features.
    Language,
    /// Features, state and noise to actions: all denoising steps.
    ActionHead,
}

impl Stage {
    /// In the order of the tick.
    pub const ALL: [Self; 3] = [Self::Vision, Self::Language, Self::ActionHead];
}
