//! That the emulation tells what a GPU would not.

use half::bf16;

use super::{Order, failed};
use crate::cuda::error::CudaError;
use crate::cuda::source::{self, Source};
use crate::cuda::{Gpu, Queue};

const KERNELS: &str = r"
struct Arguments {
    float *values; // 64
    float *out;    // 64
    long long fault;
};

KERNEL(faulty, Arguments)
{
    DYNAMIC_SHARED(float, shared);
    SHARED(float, few, 8);
    switch (args.fault) {
    case 1:
        if (threadIdx.x == 3)
            return;
        __syncthreads();
        break;
    case 2:
        shared[64] = 0.0f;
        break;
    case 3:
        few[-1] = 0.0f;
        break;
    case 4:
        copy_async(shared + 2, args.values, true);
        break;
    case 5:
        copy_async(shared + 64, args.values, true);
        break;
    case 6:
        shuffle_xor(0.0f, threadIdx.x == 5 ? 2 : 1);
        break;
    case 7:
        *(float4 *)(args.out + 1) = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        break;
    case 8:
        load_from_peer(shared, 1);
        break;
    }
}

// What a thread finds: memory that nobody wrote, a copy before and after it is waited for, what its neighbour wrote.
KERNEL(early, Arguments)
{
    DYNAMIC_SHARED(float, shared);
    const int i = threadIdx.x;
    if (args.fault == 0)
        args.out[i] = shared[i];
    shared[i] = 0.0f;
    __syncthreads();
    if (i % 4 == 0)
        copy_async(shared + i, args.values + i, true);
    copy_commit();
    if (args.fault == 2)
        copy_wait<0>();
    __syncthreads();
    if (args.fault != 0)
        args.out[i] = shared[i];
}

KERNEL(rounding, Arguments)
{
    const int i = threadIdx.x;
    args.out[i] = low_float(pack_bf16(args.values[i], 0.0f));
}
";

#[repr(C)]
struct Arguments {
    values: u64,
    out: u64,
    fault: i64,
}

/// Runs a kernel with 64 threads on 64 values; 64 others come back.
fn run(kernel: &str, fault: i64, values: &[f32; 64], order: Order) -> Result<[f32; 64], CudaError> {
    let gpu = Gpu::emulated();
    let kernel = source::compile(&gpu, &Source::plain("faults.cu", KERNELS))?.kernel(kernel, 0)?;
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_ne_bytes()).collect();
    let (memory, out) = (gpu.allocate(bytes.len())?, gpu.allocate(bytes.len())?);
    memory.write(0, &bytes)?;
    let arguments = Arguments { values: memory.address(), out: out.address(), fault };
    let queue = Queue::emulated(order, false);
    // SAFETY: the kernel's parameter, with memory of 64 values.
    unsafe { queue.launch(&kernel, [1, 1, 1], 64, 256, &arguments)? };
    let mut found = [0.0; 64];
    for (found, bytes) in found.iter_mut().zip(out.read()?.chunks_exact(4)) {
        *found = f32::from_ne_bytes(bytes.try_into().map_err(|_| failed("four bytes"))?);
    }
    Ok(found)
}

#[test]
fn what_a_kernel_must_not_do_is_reported_in_every_order() {
    let faults = [
        (1, "63 threads wait at a barrier"),
        (2, "written at byte 256 of 256"),
        (3, "written at byte -4 of 32"),
        (4, "byte 8 of shared memory: not aligned"),
        (5, "copying to byte 256 of 256"),
        (6, "the warp disagrees"),
        (7, "is misaligned"),
        (8, "block 1 of a cluster of 1"),
    ];
    for order in Order::ALL {
        for (fault, expected) in faults {
            let error = run("faulty", fault, &[1.0; 64], order).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("faulty"), "{fault} {order:?}: {error}");
        }
        // A failure leaves nothing behind.
        run("faulty", 0, &[1.0; 64], order).unwrap();
    }
}

#[test]
fn what_is_read_too_early_is_no_number() {
    let values = std::array::from_fn(|i| i as f32);
    for order in Order::ALL {
        let found = [0, 1, 2].map(|fault| run("early", fault, &values, order).unwrap());
        assert!(found[0].iter().all(|value| value.is_nan()), "{order:?}: {:?}", found[0]);
        assert!(found[1].iter().all(|value| value.is_nan()), "{order:?}: {:?}", found[1]);
        assert_eq!(found[2], values, "{order:?}");
    }
}

#[test]
fn bf16_is_rounded_to_the_nearest_and_ties_to_even() {
    let special = [0.0, -0.0, 1.0, f32::MAX, f32::MIN_POSITIVE / 3.0, f32::INFINITY, -f32::INFINITY];
    let values: [f32; 64] = std::array::from_fn(|i| match special.get(i) {
        Some(&value) => value,
        // Ties, and one below and above them.
        None => f32::from_bits(0x3f80_8000 + ((i as u32 / 3) << 16) + (i as u32 % 3) - 1),
    });
    let expected = values.map(|value| bf16::from_f32(value).to_f32());
    assert_eq!(run("rounding", 0, &values, Order::Ascending).unwrap(), expected);
    assert!(run("rounding", 0, &[f32::NAN; 64], Order::Ascending).unwrap().iter().all(|x| x.is_nan()));
}
