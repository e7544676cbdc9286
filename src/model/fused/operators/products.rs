//! The backbone's products by cuBLASLt in the way that was measured to be the fastest, where one was chosen.

use std::cell::{Cell, RefCell};

use tch::{Kind, Tensor};

use super::super::super::{ModelError, layers::Linear};
use super::Operators;
use crate::cuda::{Gpu, ProductCall, ProductShape, Products};

/// What rounding explains, as a part of the value and of the root mean square of all: a rounding to bf16 of each result, and
/// of the one that it is held against another before GELU.
const ROUNDING: f64 = 1.0 / 64.0;

/// cuBLASLt, where it is there, and whether sizes that it has not met may be tuned.
#[derive(Default)]
pub(super) struct OwnProducts {
    library: RefCell<Option<Products>>,
    tuning: Cell<bool>,
}

impl OwnProducts {
    /// Without cuBLASLt, which is no error, products are libtorch's.
    pub fn new(gpu: &Gpu) -> Self {
        let library = match Products::new(gpu) {
            Ok(products) => Some(products),
            Err(error) => {
                tracing::warn!("products of the backbone are libtorch's own: {error}");
                None
            }
        };
        Self { library: RefCell::new(library), tuning: Cell::new(false) }
    }

    pub fn set_tuning(&self, allowed: bool) {
        self.tuning.set(allowed);
    }
}

/// The largest difference, 1.0 being what rounding explains; NaN where there is one.
fn error(found: &Tensor, expected: &Tensor) -> Result<f64, ModelError> {
    let wide = |x: &Tensor| x.f_reshape([-1]).and_then(|x| x.f_to_kind(Kind::Float));
    let (found, expected) = (wide(found)?, wide(expected)?);
    let spread = expected.f_square()?.f_mean(Kind::Float)?.f_sqrt()?;
    let explained = expected.f_abs()?.f_add(&spread)?.f_mul_scalar(ROUNDING)?;
    Ok(found.f_sub(&expected)?.f_abs()?.f_div(&explained)?.f_max()?.f_double_value(&[])?)
}

/// As libtorch computes it.
fn plain(x: &Tensor, linear: &Linear, gelu: bool) -> Result<Tensor, ModelError> {
    let product = linear.forward(x)?;
    if gelu { Ok(product.f_gelu("tanh")?) } else { Ok(product) }
}

impl Operators {
    /// x (…, k) through a linear layer and, where it is wanted, the tanh form of GELU, into `out` where there is one; None for
    /// sizes that were not tuned, and operands that cuBLASLt does not take so.
    ///
    /// # Errors
    /// libtorch has no memory, or cuBLASLt refuses.
    pub(in super::super) fn own_product(
        &self,
        x: &Tensor,
        linear: &Linear,
        gelu: bool,
        out: Option<&Tensor>,
    ) -> Result<Option<Tensor>, ModelError> {
        let mut library = self.products.library.borrow_mut();
        let Some(products) = library.as_mut() else { return Ok(None) };
        let (n, k) = linear.weight().size2()?;
        let mut size = x.size();
        if size.pop() != Some(k) || k == 0 || n % 8 != 0 || k % 8 != 0 || x.numel() == 0 {
            return Ok(None);
        }
        size.push(n);
        let shape = ProductShape {
            rows: x.numel() / k as usize,
            n: n as usize,
            k: k as usize,
            bias: linear.bias().is_some(),
            gelu,
        };
        if !products.knows(&shape) && !self.products.tuning.get() {
            return Ok(None);
        }
        let out = match out {
            Some(out) if out.size() == size => out.shallow_clone(),
            Some(_) => return Ok(None),
            None => Tensor::f_empty(size, (Kind::BFloat16, self.device))?,
        };
        for tensor in [Some(x), Some(linear.weight()), linear.bias(), Some(&out)].into_iter().flatten() {
            let fits = tensor.f_kind()? == Kind::BFloat16
                && tensor.device() == self.device
                && tensor.is_contiguous();
            if !fits {
                return Ok(None);
            }
        }
        let call = ProductCall {
            activations: x.data_ptr() as u64,
            weight: linear.weight().data_ptr() as u64,
            bias: linear.bias().map_or(0, |bias| bias.data_ptr() as u64),
            out: out.data_ptr() as u64,
        };
        if !call.is_aligned() {
            return Ok(None);
        }
        if !products.knows(&shape) {
            let tuned = plain(x, linear, gelu).and_then(|expected| {
                // What is not written is no number.
                let mut blank = out.shallow_clone();
                let check = || {
                    let error = error(&out, &expected);
                    drop(blank.f_fill_(f64::NAN)?);
                    error
                };
                drop(out.shallow_clone().f_fill_(f64::NAN)?);
                // SAFETY: the tensors' kinds and sizes were checked; they are kept until the check has waited for the result.
                unsafe { products.tune(&self.kernels, &self.queue, shape, &call, check) }
            });
            if let Err(error) = tuned {
                tracing::warn!("{shape} is left to libtorch: {error}");
            }
        }
        // SAFETY: as above; libtorch frees memory in the order of the stream that this is queued on.
        let queued = unsafe { products.multiply(&self.queue, &shape, &call)? };
        Ok(queued.then_some(out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_that_rounding_explains_is_right_and_one_with_a_wrong_or_a_missing_value_is_not() {
        let expected = Tensor::from_slice(&[1.0f32, -2.0, 0.5, 0.0]).to_kind(Kind::BFloat16);
        assert_eq!(error(&expected, &expected).unwrap(), 0.0);
        let rounded = Tensor::from_slice(&[1.0078f32, -2.0156, 0.5, 0.004]).to_kind(Kind::BFloat16);
        assert!(error(&rounded, &expected).unwrap() < 1.0);
        let wrong = Tensor::from_slice(&[1.0f32, -2.0, 0.5, 0.1]).to_kind(Kind::BFloat16);
        assert!(error(&wrong, &expected).unwrap() > 1.0);
        let missing = Tensor::from_slice(&[1.0f32, f32::NAN, 0.5, 0.0]).to_kind(Kind::BFloat16);
        assert!(error(&missing, &expected).unwrap().is_nan());
    }
}
