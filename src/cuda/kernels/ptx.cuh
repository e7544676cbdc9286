// What the kernels need of the hardware, one small function each, in PTX: no CUDA header is included, so that NVRTC needs
// none. The host emulation of the tests replaces this file and nothing else.

typedef unsigned short bf16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define DEVICE static __device__ __forceinline__
#define DEVICE_METHOD __device__ __forceinline__

// Opens a kernel: its one parameter is `args`.
#define KERNEL(name, Arguments) extern "C" __global__ void name(const __grid_constant__ Arguments args)
// One of at most `threads` threads a block.
#define BOUNDED_KERNEL(name, Arguments, threads) extern "C" __global__ void __launch_bounds__(threads) name(const __grid_constant__ Arguments args)
// One whose blocks come in clusters of so many along y, where the hardware has clusters.
#if __CUDA_ARCH__ >= 900
#define CLUSTER_KERNEL(name, Arguments, threads, cluster)                                                              \
    extern "C" __global__ void __cluster_dims__(1, cluster, 1) __launch_bounds__(threads) name(const __grid_constant__ Arguments args)
#else
#define CLUSTER_KERNEL(name, Arguments, threads, cluster) BOUNDED_KERNEL(name, Arguments, threads)
#endif

// Memory of the block: so many values, and as many as the launch asked for.
#define SHARED(type, name, count) __shared__ type name[count]
#define DYNAMIC_SHARED(type, name) extern __shared__ type name[]
// The same, beginning where the hardware's swizzling does.
#define SWIZZLED_SHARED(name) extern __shared__ __align__(1024) char name[]

DEVICE u32 shared_address(const void *pointer) { return (u32)__cvta_generic_to_shared(pointer); }

// 16 bytes from global to shared memory, or 16 zero bytes.
DEVICE void copy_async(void *to, const void *from, bool valid)
{
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
                 "r"(valid ? 16 : 0)
                 : "memory");
}

DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most PENDING of this thread's groups are on their way.
template <int PENDING> DEVICE void copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory"); }

// Asks for global memory to be brought into the L2 cache; `bytes` is a multiple of 16.
DEVICE void prefetch_l2(const void *from, u32 bytes)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
#endif
}

// Until here a kernel runs beside its predecessor on the stream; from here on it sees all that it wrote.
DEVICE void wait_for_predecessor()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the successor on the stream start, up to its own `wait_for_predecessor`.
DEVICE void release_successor()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// All threads of all blocks of the cluster meet, and see what the others wrote to shared memory. Without clusters the block.
DEVICE void cluster_sync()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
    __syncthreads();
#endif
}

// Four floats out of the shared memory of the block `rank` of the cluster, from where this block has `pointer`.
DEVICE float4 load_from_peer(const float *pointer, u32 rank)
{
    float4 v;
#if __CUDA_ARCH__ >= 900
    u32 address;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(pointer)), "r"(rank));
    asm volatile("ld.shared::cluster.v4.f32 {%0,%1,%2,%3}, [%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "r"(address)
                 : "memory");
#else
    v = *(const float4 *)pointer;
#endif
    return v;
}

// d += a·b, a 16x16 by rows, b 16x8 by columns, bf16; d 16x8, f32.
DEVICE void mma(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Four 8x8 matrices: lanes 8i to 8i+7 give the addresses of the rows of matrix i.
DEVICE void load_matrices(u32 (&d)[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// The same, each matrix transposed.
DEVICE void load_matrices_transposed(u32 (&d)[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// Two values rounded to nearest even, `low` in the low half.
DEVICE u32 pack_bf16(float low, float high)
{
    u32 packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

DEVICE float float_of_bits(u32 bits) { return __uint_as_float(bits); }

DEVICE u32 bits_of_float(float value) { return __float_as_uint(value); }

// 2 to this power, the last two bits left to chance; of a power below -126 nothing is left.
DEVICE float exp2_fast(float power)
{
    float value;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(power));
    return value;
}

// Rounded by themselves: compilers may not join the two.
DEVICE float multiply_rounded(float a, float b) { return __fmul_rn(a, b); }
DEVICE float add_rounded(float a, float b) { return __fadd_rn(a, b); }

DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
