//! GR00T N1.6 on a robot: camera frames, joint state and an instruction in, an action trajectory out.
//!
//! The folders follow the data:
//!
//! | module | what it knows | needs |
//! |---|---|---|
//! | [`observation`] | what the robot saw: frames, joint values, instruction | nothing |
//! | [`checkpoint`] | the model directory: configurations, weights, the table of expected tensors | nothing |
//! | [`processor`] | observation → pixels, token ids, state vector; normalised actions → physical actions | nothing |
//! | [`motion`] | action chunks → commands over time: scheduling, hand-over between chunks | nothing |
//! | [`ahead`] | work done ahead, of which only the newest counts | nothing |
//! | [`evaluation`] | how far and how slow: errors, latencies, the report of a replay, gates and comparisons | nothing |
//! | [`onnx`] | the network as ONNX graphs, written without torch | nothing |
//! | [`recording`] | bags and datasets, read in order and in bounded memory | `ros` (messages only) |
//! | [`engine`] | TensorRT engines as files: provenance, checks at load, statistics for INT8 | nothing |
//! | `tensorrt` | building and running TensorRT engines | feature `tensorrt` |
//! | `cuda` | own kernels, compiled when the program runs, and products tuned on the GPU | feature `cuda` |
//! | `engine_builder` | from checkpoint to verified engine | `engine`, `onnx`, `tensorrt`, `model` |
//! | [`execution`] | the ways to execute the network, by name | nothing |
//! | `model` | backbone, action head, denoising, the thread that owns them | feature `torch` |
//! | [`ros`] | messages and the transport under them | feature `dds` for the embedded transport, `r2r` for that of a sourced ROS 2 |
//! | [`safety`] | joint limits, activation and e-stop, watchdog: what may be commanded, and when | `ros` (messages only) |
//! | [`synthetic`] | a robot that exists only as pictures and joint angles, for the demo and for tests | nothing |
//! | `replay` | recordings through the policy: how accurate, how fast | `recording`, `evaluation`, `model` |
//! | [`benchmark`] | every way of running the network, timed on random inputs; the roofline | `evaluation`; `model` for all but the roofline |
//! | [`node`] | configuration, observation assembly, the policy node | `ros`, `safety`, `model` |
//!
//! One direction: the core (`observation`, `checkpoint`, `processor`, `motion`) knows neither ROS nor CUDA (of ROS
//! only [`ros::Stamp`], a number), the model knows the core, the node knows both, and the binaries only wire.

pub mod ahead;
pub mod atomic_file;
pub mod benchmark;
#[cfg(any(feature = "torch", feature = "cuda"))]
pub(crate) mod capturing;
pub mod checkpoint;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod engine;
#[cfg(all(feature = "torch", feature = "tensorrt"))]
pub mod engine_builder;
pub mod evaluation;
pub mod execution;
pub mod memory;
pub mod motion;
pub mod node;
pub mod observation;
pub mod onnx;
pub mod processor;
pub mod recording;
pub mod ros;
pub mod safety;
pub mod synthetic;

#[cfg(feature = "torch")]
pub mod model;
#[cfg(feature = "torch")]
pub mod replay;
#[cfg(feature = "tensorrt")]
pub mod tensorrt;
