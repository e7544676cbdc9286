//! From a checkpoint to a TensorRT engine that is known to be right: export, build, save, verify.
//!
//! | file | step |
//! |---|---|
//! | [`lengths`] | the prompts that an engine is for |
//! | [`graph`] | the fused graph as ONNX, and the shapes of its inputs |
//! | [`build`] | ONNX to plan to a folder of engines |
//! | [`synthetic`] | inputs for the action head that need no recording |
//! | [`verify`] | the engine against libtorch on the same inputs, and how long both take |
//! | [`calibration`] | INT8: inputs of denoising runs, and the ranges that follow from them |
//! | [`interpreter`] | a graph on libtorch, node by node |
//! | [`session`] | all of it, as the [`command`] says |
//! | [`tables`] | what was found, for people |

pub mod build;
pub mod calibration;
pub mod command;
pub mod graph;
pub mod interpreter;
pub mod lengths;
pub mod session;
pub mod synthetic;
pub mod tables;
pub mod verify;
