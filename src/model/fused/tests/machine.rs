//! Where the kernels run.

use tch::{Device, Tensor};

use super::super::operators::Operators;
use crate::cuda::emulation::Order;
use crate::cuda::{Gemms, Gpu, Queue, Skinny, Warpgroup};
use crate::model::device;

/// A GPU, emulated or not, and where tensors for it are.
pub struct Machine {
    pub device: Device,
    pub gpu: Gpu,
}

/// A GPU, or a message that says what is skipped.
pub fn gpu(test: &str) -> Option<Device> {
    match device::select("cuda") {
        Ok(device) => Some(device),
        Err(error) => {
            eprintln!("{test}: on the emulated GPU only: {error}");
            None
        }
    }
}

impl Machine {
    /// The emulated one, and a real one where there is one.
    pub fn all(test: &str) -> Vec<Self> {
        let emulated = Self { device: Device::Cpu, gpu: Gpu::emulated() };
        let real = gpu(test).map(|device| Self { device, gpu: Gpu::open(0).unwrap() });
        [emulated].into_iter().chain(real).collect()
    }

    /// Whether small sizes must do.
    pub fn is_emulated(&self) -> bool {
        self.device == Device::Cpu
    }

    /// On the default stream, so that libtorch's work before and after it is in order. Emulated, the orders take turns.
    pub fn queue(&self, turn: usize) -> Queue {
        if self.is_emulated() {
            return Queue::emulated(Order::ALL[turn % Order::ALL.len()], true);
        }
        // SAFETY: null is the default stream, which always is.
        Queue::new(unsafe { self.gpu.external_stream(std::ptr::null_mut()) }, false)
    }

    /// Products; shapes of the own kernels for blocks of so many tiles of tokens where all would take too long.
    pub fn gemms(
        &self,
        shapes: impl IntoIterator<Item = Skinny>,
        groups: impl IntoIterator<Item = Warpgroup>,
        tiles: &[usize],
    ) -> Gemms {
        if self.is_emulated() {
            return Gemms::emulated(shapes.into_iter().collect(), groups.into_iter().collect(), tiles);
        }
        Gemms::new(&self.gpu).unwrap()
    }

    pub fn operators(&self, turn: usize) -> Operators {
        if self.is_emulated() {
            return Operators::emulated(Order::ALL[turn % Order::ALL.len()]).unwrap();
        }
        Operators::new(self.device).unwrap()
    }

    pub fn take(&self, tensor: &Tensor) -> Tensor {
        tensor.to_device(self.device).contiguous()
    }
}

/// The address, zero for none.
pub fn address<'a>(tensor: impl Into<Option<&'a Tensor>>) -> u64 {
    tensor.into().map_or(0, |tensor| tensor.data_ptr() as u64)
}
