//! The backbone's fused operators on libtorch's tensors: bf16 on one GPU, rounding where the plain operators round, but for a
//! GELU within its product, which rounds once less.

mod attention;
mod products;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::CudaStream;
use tch::{Device, Kind, Tensor};

use super::super::{
    ModelError,
    cuda::Stream,
    layers::{LayerNorm, Linear, RmsNorm},
    operators::{BackboneOperators, PlainOperators, Sight},
};
use crate::cuda::{
    Activation, BackboneNormArguments, BiasActivationArguments, Gpu, Kernels, PatchArguments, Queue,
    RotaryArguments, RotaryHeads, SequenceAttention, SwigluArguments,
};
use products::OwnProducts;

/// Compiled for one GPU, queued on libtorch's stream.
pub struct Operators {
    gpu: Gpu,
    kernels: Kernels,
    queue: Queue,
    /// On the same stream, for a kernel that may start while the one before it, one of these too, still runs.
    overlapping: Queue,
    /// By width of a head.
    attentions: RefCell<HashMap<usize, Arc<SequenceAttention>>>,
    products: OwnProducts,
    /// Address of the queries that were rotated last, or 0 once something else was queued.
    rotated: Cell<u64>,
    device: Device,
}

impl Operators {
    /// Compiles: seconds.
    ///
    /// # Errors
    /// A device that is no GPU, no NVRTC.
    pub fn new(device: Device) -> Result<Self, ModelError> {
        let gpu = Gpu::open(super::ordinal(device)?)?;
        // SAFETY: null is the default stream, which always is.
        let stream = unsafe { gpu.external_stream(std::ptr::null_mut()) };
        let queues = queues(&gpu, stream);
        let products = OwnProducts::new(&gpu);
        Ok(Self { products, ..Self::with(Kernels::new(&gpu)?, queues, gpu, device) })
    }

    /// The compiled kernels, for others on the same GPU.
    pub(super) fn kernels(&self) -> Kernels {
        self.kernels.clone()
    }

    /// On the emulated GPU of the tests, for tensors on the CPU.
    #[cfg(test)]
    pub fn emulated(order: crate::cuda::emulation::Order) -> Result<Self, ModelError> {
        let gpu = Gpu::emulated();
        // Nothing is held back: what libtorch reads next is there at once.
        let queues = [Queue::emulated(order, false), Queue::emulated(order, false)];
        Ok(Self::with(Kernels::new(&gpu)?, queues, gpu, Device::Cpu))
    }

    fn with(kernels: Kernels, [queue, overlapping]: [Queue; 2], gpu: Gpu, device: Device) -> Self {
        let (attentions, products) = (RefCell::default(), OwnProducts::default());
        Self { gpu, kernels, queue, overlapping, attentions, products, rotated: Cell::new(0), device }
    }

    /// Queues on `stream`, libtorch's current one; null is the default stream, where it starts.
    ///
    /// # Safety
    /// A stream of this GPU's primary context that outlives its use here.
    pub unsafe fn use_stream(&mut self, stream: *mut c_void) {
        // SAFETY: by this function's contract.
        let stream = unsafe { self.gpu.external_stream(stream) };
        [self.queue, self.overlapping] = queues(&self.gpu, stream);
    }

    fn check(&self, what: &'static str, tensor: &Tensor, width: Option<i64>) -> Result<(), ModelError> {
        let last = tensor.size().last().copied();
        let fits = tensor.f_kind()? == Kind::BFloat16
            && tensor.device() == self.device
            && tensor.is_contiguous()
            && (width.is_none() || width == last);
        if fits {
            return Ok(());
        }
        let width = width.map_or(String::new(), |width| format!(", rows of {width}"));
        Err(ModelError::Input {
            what,
            expected: format!("contiguous bf16 on {:?}{width}", self.device),
            found: format!("{:?} {:?} on {:?}", tensor.f_kind()?, tensor.size(), tensor.device()),
        })
    }

    /// RMSNorm, or with a bias LayerNorm, over the last axis of `x`; with an addend, x += addend comes first, in place.
    fn norm(
        &self,
        x: &mut Tensor,
        addend: Option<&Tensor>,
        weight: &Tensor,
        bias: Option<&Tensor>,
        eps: f64,
    ) -> Result<Tensor, ModelError> {
        let width = weight.size().last().copied().unwrap_or(0);
        self.check("input of a norm", x, Some(width))?;
        self.check("weight of a norm", weight, Some(width))?;
        if let Some(bias) = bias {
            self.check("bias of a norm", bias, Some(width))?;
        }
        if let Some(addend) = addend {
            self.check("addend of a norm", addend, Some(width))?;
            same_size("addend of a norm", x, addend)?;
        }
        let out = x.f_empty_like()?;
        let arguments = BackboneNormArguments {
            residual: x.data_ptr() as u64,
            addend: addend.map_or(0, |addend| addend.data_ptr() as u64),
            weight: weight.data_ptr() as u64,
            bias: bias.map_or(0, |bias| bias.data_ptr() as u64),
            out: out.data_ptr() as u64,
            width: width as i32,
            root_mean_square: i32::from(bias.is_none()),
            eps: eps as f32,
        };
        let rows = x.numel() / (width.max(1) as usize);
        self.rotated.set(0);
        // SAFETY: here and below, the tensors' kinds, sizes and device were checked; libtorch frees memory in the order of
        // the stream that this is queued on.
        unsafe { self.kernels.backbone_norm(&self.queue, rows, &arguments)? };
        Ok(out)
    }

    /// activation(x + bias) over the last axis.
    pub fn bias_activation(
        &self,
        x: &Tensor,
        bias: Option<&Tensor>,
        activation: Activation,
    ) -> Result<Tensor, ModelError> {
        let width = x.size().last().copied().unwrap_or(0);
        self.check("input of an activation", x, None)?;
        if let Some(bias) = bias {
            self.check("bias of an activation", bias, Some(width))?;
        }
        let out = x.f_empty_like()?;
        let arguments = BiasActivationArguments {
            input: x.data_ptr() as u64,
            bias: bias.map_or(0, |bias| bias.data_ptr() as u64),
            out: out.data_ptr() as u64,
            count: x.numel() as i64,
            columns: width as i32,
            activation: activation as i32,
        };
        // SAFETY: as in `norm`.
        unsafe { self.kernels.bias_activation(&self.queue, &arguments)? };
        Ok(out)
    }
}

impl BackboneOperators for Operators {
    fn identity(&self) -> String {
        "fused operators".to_owned()
    }

    fn queue_on(&mut self, stream: &Stream) -> Result<(), ModelError> {
        super::refuse_other_device(stream, self.device)?;
        // SAFETY: libtorch's streams are of the primary context and live until the process ends.
        unsafe { self.use_stream(stream.handle()?) };
        Ok(())
    }

    fn allow_tuning(&self, allowed: bool) {
        self.products.set_tuning(allowed);
    }

    fn patches(&self, frames: &Tensor, side: i64, columns: i64, kind: Kind) -> Result<Tensor, ModelError> {
        let own = side * side * 3;
        let fits = kind == Kind::BFloat16
            && frames.f_kind()? == Kind::Uint8
            && frames.device() == self.device
            && frames.is_contiguous()
            && side > 0
            && columns >= own
            && columns % 4 == 0;
        let size = frames.size();
        let (true, &[images, height, width, 3]) = (fits, &size[..]) else {
            return PlainOperators.patches(frames, side, columns, kind);
        };
        if images == 0 || height == 0 || width == 0 || height % side != 0 || width % side != 0 {
            return PlainOperators.patches(frames, side, columns, kind);
        }
        let (rows, across) = (height / side, width / side);
        let out = Tensor::f_empty([images, rows * across, columns], (kind, self.device))?;
        let arguments = PatchArguments {
            frames: frames.data_ptr() as u64,
            out: out.data_ptr() as u64,
            count: out.numel() as i64,
            rows: rows as i32,
            columns: across as i32,
            side: side as i32,
            padded: columns as i32,
        };
        // SAFETY: as in `norm`.
        unsafe { self.kernels.patches(&self.queue, &arguments)? };
        Ok(out)
    }

    fn layer_norm(
        &self,
        x: &mut Tensor,
        addend: Option<&Tensor>,
        norm: &LayerNorm,
    ) -> Result<Tensor, ModelError> {
        let (weight, bias, eps) = norm.parameters();
        self.norm(x, addend, weight, Some(bias), eps)
    }

    fn rms_norm(
        &self,
        x: &mut Tensor,
        addend: Option<&Tensor>,
        norm: &RmsNorm,
    ) -> Result<Tensor, ModelError> {
        let (weight, eps) = norm.parameters();
        self.norm(x, addend, weight, None, eps)
    }

    fn norm_rotary(
        &self,
        x: &Tensor,
        heads: [i64; 2],
        norms: [&RmsNorm; 2],
        (cos, sin): (&Tensor, &Tensor),
    ) -> Result<[Tensor; 2], ModelError> {
        let ((query_weight, eps), (key_weight, key_eps)) = (norms[0].parameters(), norms[1].parameters());
        let width = query_weight.size().last().copied().unwrap_or(0);
        let size = x.size();
        let [samples, tokens, columns] = size[..] else {
            return Err(ModelError::Input {
                what: "input of a rotation",
                expected: "three axes".to_owned(),
                found: format!("{size:?}"),
            });
        };
        for (what, tensor) in [
            ("norm of rotated queries", query_weight),
            ("norm of rotated keys", key_weight),
            ("cos", cos),
            ("sin", sin),
        ] {
            self.check(what, tensor, Some(width))?;
        }
        let strides = x.stride();
        let fits = x.f_kind()? == Kind::BFloat16
            && x.device() == self.device
            && heads.iter().all(|heads| *heads > 0)
            && columns >= (heads[0] + heads[1]) * width
            && strides[2] == 1
            && strides[0] == tokens * strides[1]
            && cos.size() == [tokens, width]
            && sin.size() == [tokens, width]
            && eps == key_eps;
        if !fits {
            return Err(ModelError::Input {
                what: "input of a rotation",
                expected: format!(
                    "bf16 rows of {heads:?} heads of {width} on {:?}, tables of as many rows, norms of one epsilon",
                    self.device
                ),
                found: format!(
                    "{size:?} by {strides:?}, tables {:?} and {:?}, epsilon {eps} and {key_eps}",
                    cos.size(),
                    sin.size()
                ),
            });
        }
        let room = |heads| Tensor::f_empty([samples, heads, tokens, width], (Kind::BFloat16, self.device));
        let out = [room(heads[0])?, room(heads[1])?];
        let part = |number: usize, weight: &Tensor| RotaryHeads {
            weight: weight.data_ptr() as u64,
            out: out[number].data_ptr() as u64,
            heads: heads[number] as i32,
        };
        let arguments = RotaryArguments {
            input: x.data_ptr() as u64,
            cos: cos.data_ptr() as u64,
            sin: sin.data_ptr() as u64,
            query: part(0, query_weight),
            key: part(1, key_weight),
            stride: strides[1],
            rows: (samples * tokens) as i32,
            tokens: tokens as i32,
            width: width as i32,
            eps: eps as f32,
        };
        // SAFETY: as in `norm`.
        unsafe { self.kernels.norm_rotary(&self.queue, &arguments)? };
        self.rotated.set(arguments.query.out);
        Ok(out)
    }

    fn attention(&self, operands: [&Tensor; 3], sight: Sight, first: i64) -> Result<Tensor, ModelError> {
        match self.own_attention(operands, sight, first)? {
            Some(attended) => Ok(attended),
            None => PlainOperators.attention(operands, sight, first),
        }
    }

    fn swiglu(&self, joined: &Tensor) -> Result<Tensor, ModelError> {
        self.check("input of a gate", joined, None)?;
        let mut size = joined.size();
        let columns = size.last().copied().unwrap_or(0);
        let width = columns / 2;
        if let Some(last) = size.last_mut() {
            *last = width;
        }
        let out = Tensor::f_empty(size, (Kind::BFloat16, self.device))?;
        let gate = joined.data_ptr() as u64;
        let arguments = SwigluArguments {
            gate,
            up: gate + 2 * width as u64,
            out: out.data_ptr() as u64,
            count: out.numel() as i64,
            stride: columns,
            columns: width as i32,
        };
        // SAFETY: as in `norm`.
        unsafe { self.kernels.swiglu(&self.queue, &arguments)? };
        Ok(out)
    }

    fn linear(&self, x: &Tensor, linear: &Linear) -> Result<Tensor, ModelError> {
        match self.own_product(x, linear, false, None)? {
            Some(product) => Ok(product),
            None => PlainOperators.linear(x, linear),
        }
    }

    fn linear_into(&self, x: &Tensor, linear: &Linear, out: &mut Tensor) -> Result<(), ModelError> {
        match self.own_product(x, linear, false, Some(out))? {
            Some(_) => Ok(()),
            None => PlainOperators.linear_into(x, linear, out),
        }
    }

    fn linear_gelu(&self, x: &Tensor, linear: &Linear) -> Result<Tensor, ModelError> {
        if let Some(product) = self.own_product(x, linear, true, None)? {
            return Ok(product);
        }
        let product = x.f_matmul(&linear.weight().f_transpose(0, 1)?)?;
        self.bias_activation(&product, linear.bias(), Activation::GeluTanh)
    }
}

/// One whose kernels wait for what is before them, and one whose do not where the GPU can do without.
fn queues(gpu: &Gpu, stream: Arc<CudaStream>) -> [Queue; 2] {
    [Queue::new(Arc::clone(&stream), false), Queue::new(stream, gpu.overlaps())]
}

fn same_size(what: &'static str, a: &Tensor, b: &Tensor) -> Result<(), ModelError> {
    if a.size() == b.size() {
        return Ok(());
    }
    Err(ModelError::Input { what, expected: format!("{:?}", a.size()), found: format!("{:?}", b.size()) })
}
