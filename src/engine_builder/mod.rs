//! From a checkpoint to a TensorRT engine that is known to be right: export, build, save, verify.
//!
//! | file | step |
//! |---|---|
//! | [`lengths`] | the prompts and images that an engine is for |
//! | [`graph`] | the graphs as ONNX, their types, and the shapes of their inputs |
//! | [`build`] | ONNX to plan to a folder of engines |
//! | [`progress`] | how far a build is, for the log and for whoever waits |
//! | [`shapes`] | whether an engine has the inputs of its graph |
//! | [`synthetic`] | inputs for the action head that need no recording |
//! | [`verify`] | the engine against libtorch on the same inputs, and how long both take |
//! | [`backbone`] | the same for engines of the backbone's parts |
//! | [`calibration`] | INT8: inputs of denoising runs, and the ranges that follow from them |
//! | [`interpreter`] | a graph on libtorch, node by node |
//! | [`session`] | all of it, as the [`command`] says |
//! | [`auto_build`] | the policy's loading, with a build before it where the engine does not fit |
//! | `validate` | the exported graphs in ONNX Runtime against libtorch, layer by layer (feature `onnxruntime`) |
//! | [`tables`] | what was found, for people |

pub mod auto_build;
pub mod backbone;
pub mod build;
pub mod calibration;
pub mod command;
pub mod graph;
pub mod interpreter;
pub mod lengths;
pub mod progress;
pub mod session;
pub mod shapes;
pub mod synthetic;
pub mod tables;
#[cfg(feature = "onnxruntime")]
pub mod validate;
pub mod verify;
