// What Hopper has and no other generation: products of whole warpgroups straight out of shared memory, which tensor copies fill.
// For compute capability 9.0a alone.

// A matrix in global memory, as the driver encodes it: which boxes are copied, swizzled how.
struct __align__(64) TensorMap {
    u64 opaque[16];
};

// A barrier in shared memory that counts arrivals of threads and bytes of copies.
struct __align__(8) CopyBarrier {
    u64 state;
};

DEVICE void barrier_init(CopyBarrier &barrier, u32 arrivals)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&barrier)), "r"(arrivals) : "memory");
}

// Makes initialised barriers known to the copies; a barrier of all threads must follow.
DEVICE void barriers_ready() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

DEVICE void barrier_arrive(CopyBarrier &barrier)
{
    asm volatile("{\n\t.reg .b64 state;\n\tmbarrier.arrive.shared::cta.b64 state, [%0];\n\t}" ::"r"(shared_address(&barrier))
                 : "memory");
}

// Arrives, and has the barrier wait for so many bytes of copies too.
DEVICE void barrier_expect(CopyBarrier &barrier, u32 bytes)
{
    asm volatile("{\n\t.reg .b64 state;\n\tmbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1;\n\t}" ::"r"(
                     shared_address(&barrier)),
                 "r"(bytes)
                 : "memory");
}

// Waits for the end of the phase of this parity.
DEVICE void barrier_wait(CopyBarrier &barrier, u32 parity)
{
    asm volatile("{\n\t.reg .pred done;\n"
                 "again:\n\tmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "\t@!done bra again;\n\t}" ::"r"(shared_address(&barrier)),
                 "r"(parity)
                 : "memory");
}

enum Keep : u64 { READ_ONCE = 0x12f0000000000000ull, READ_AGAIN = 0x14f0000000000000ull };

// Copies the box at (k, row), what lies outside the matrix as zeros; its bytes arrive at the barrier.
DEVICE void copy_box(void *to, const TensorMap &map, int k, int row, CopyBarrier &barrier, Keep keep)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%2, %3}], "
                 "[%4], %5;" ::"r"(shared_address(to)),
                 "l"(&map), "r"(k), "r"(row), "r"(shared_address(&barrier)), "l"((u64)keep)
                 : "memory");
}

DEVICE void prefetch_map(const TensorMap &map) { asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory"); }

// Of rows of 64 bf16 values, groups of 8 rows swizzled by 128 bytes; begins at a multiple of 1024 bytes.
DEVICE u64 swizzled_operand(const void *from)
{
    return (u64)(shared_address(from) >> 4 & 0x3fffu) | (u64)1 << 16 | (u64)(1024 >> 4) << 32 | (u64)1 << 62;
}
// The same 16 values of k further.
DEVICE u64 next_k(u64 operand) { return operand + (16 * 2 >> 4); }

// Around a run of products: what was written to the sums is there, the products are one group.
DEVICE void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void products_end() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING> DEVICE void products_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory"); }
