//! The least time that bytes and FLOPs allow: a model on paper.
//!
//! A part of the network needs at least the time in which its weights come out of memory once, and at least the time in which
//! its multiplications are done at the hardware's highest rate; the larger of the two is its **floor**. The floor of a tick is the
//! sum over the parts, which run one after the other. Activations, launches, norms, rounding of tile sizes and the CPU are
//! left out, so that no program can be faster, and the ratio of a measured time to its floor says what is left to gain.
//!
//! # Counting ([`TickWork`])
//!
//! One multiply-add is two FLOPs. With R rows, a Linear of n weights takes 2·R·n FLOPs and reads 2·n bytes (16 bits a weight),
//! once for all images and all samples of a batch. The weights come from the table of the checkpoint's tensors, so that nothing
//! is written down twice. An attention of R rows over K keys, width W, takes 4·R·K·W; a causal one half of it.
//!
//! | part | rows | attention |
//! |---|---|---|
//! | vision, N images of P patches | N·P; the connector N·P/4 | P over P, per image and layer |
//! | language, S tokens | S | S over S, causal, per layer |
//! | cross K/V | the text tokens for the text blocks, the image tokens for the image blocks | |
//! | one denoising step | T = state + horizon; the action encoder the horizon | T over T in the odd blocks, T over text or image tokens in the even ones |
//!
//! [`Path`] says what is done where: the naive way computes keys and values of the whole context in every cross-attending block
//! and every step, and the adaptive norms from the time embedding in every step; neither depends on the actions, so both can
//! be done before.
//!
//! # A prediction: the published study on Orin
//!
//! A public study reports 158 ms for the backbone (PyTorch, bf16) and 78 ms for the DiT (TensorRT, FP16) of this model on a
//! Jetson AGX Orin 64 GB, 236 ms together. It does not say how many cameras it used; the case `alfie-4cam` (four cameras, 420
//! tokens, horizon 16, 4 steps) is taken. [`Hardware::ORIN_AGX_64`] then gives floors of 46 ms for the backbone, which is
//! bound by FLOPs, and 34 ms for the action head, which is bound by bytes: 80 ms in all. Well-filled GPUs reach some 60 % of
//! the FLOPs and 75 % of the bandwidth: 76 ms and 45 ms, **122 ms end to end, half of the study's time** (91 ms with the two
//! cameras and the horizon of 50 of `2cam`). Nearly all of the gain would be the backbone's, captured and with fused
//! kernels; the study's DiT already runs at 42 % of the bandwidth. NVIDIA's own table for one camera has 95 ms and 72 ms on an
//! Orin (TensorRT DiT); the same rule gives 22 ms and 45 ms for `nvidia-1cam`. The assumptions: highest clocks (`nvpmodel`
//! MAXN), nothing else on the memory bus, pre-processing beside the GPU's work, and the number of cameras. None of this was
//! measured on an Orin.

mod count;
mod floor;
mod hardware;

pub use count::{Path, TickWork, Work};
pub use floor::{Bound, Floor, FloorTable, floors};
pub use hardware::{Hardware, UnknownHardware};
