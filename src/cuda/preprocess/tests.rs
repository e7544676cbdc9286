//! The kernels against the CPU's own loops.
