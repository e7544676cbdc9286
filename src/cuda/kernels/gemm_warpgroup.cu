// out = activations · weightᵀ for few rows of activations, on Hopper: the same as gemm.cu, with the hardware of that generation.
//
// One thread copies boxes of both operands, as many as there is room for, and the weights' before the predecessor on the stream
// has ended. Warpgroups multiply them out of shared memory, 64 columns each: the weights are the first operand, so that the few
// tokens are the second, whose size is free. What a block needs of registers and shared memory is small, so that blocks of
// the next product, and of the one after it, fill their own memory meanwhile.
//
// CLUSTER blocks along y sum what they made through each other's shared memory and write it as one part of k.

struct WarpgroupArguments {
    TensorMap weight;      // (n, k), boxes of 64 rows and 64 k
    TensorMap activations; // (rows, k), boxes of NT·8 rows and 64 k
    const float *bias;     // (n), or null
    void *out;             // parts: f32 (splits, rows, n); otherwise bf16 (rows, n)
    Ahead ahead;           // what the next product reads
    int rows, n, k;
    int split;      // k of each block, a multiple of 64·DEPTH
    int finished;   // whether `out` is bf16 with bias and activation
    int activation;
};

template <int GROUPS, int DEPTH, int STAGES, int NT, int CLUSTER> DEVICE void gemm(const WarpgroupArguments &args)
{
    constexpr int THREADS = GROUPS * 128 + 32;
    constexpr int TILE = GROUPS * 64;
    constexpr int CHUNK = DEPTH * 64;
    constexpr int BOX = 64 * 128;
    constexpr int TOKEN_BOX = NT * 8 * 128;
    constexpr int WEIGHT_BYTES = GROUPS * DEPTH * BOX;
    constexpr int STAGE_BYTES = WEIGHT_BYTES + DEPTH * TOKEN_BOX;
    constexpr int PITCH = TILE + 4;
    constexpr u64 PIECE = 4096;

    SWIZZLED_SHARED(shared);
    SHARED(CopyBarrier, full, STAGES);
    SHARED(CopyBarrier, empty, STAGES);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = warp / 4;
    const int first_column = blockIdx.x * TILE, first_token = blockIdx.z * NT * 8;
    const int begin = blockIdx.y * args.split, end = min(begin + args.split, args.k);
    const int chunks = (end - begin + CHUNK - 1) / CHUNK;

    release_successor();
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES; stage++) {
            barrier_init(full[stage], 1);
            barrier_init(empty[stage], GROUPS * 4);
        }
        barriers_ready();
    }
    __syncthreads();

    float sums[NT][4] = {};
    if (group == GROUPS) {
        auto copy_weights = [&](int chunk) {
            const int stage = chunk % STAGES;
            for (int depth = 0; depth < DEPTH; depth++)
                for (int g = 0; g < GROUPS; g++)
                    copy_box(shared + stage * STAGE_BYTES + (depth * GROUPS + g) * BOX, args.weight,
                             begin + chunk * CHUNK + depth * 64, first_column + g * 64, full[stage], READ_ONCE);
        };
        auto copy_tokens = [&](int chunk) {
            const int stage = chunk % STAGES;
            for (int depth = 0; depth < DEPTH; depth++)
                copy_box(shared + stage * STAGE_BYTES + WEIGHT_BYTES + depth * TOKEN_BOX, args.activations,
                         begin + chunk * CHUNK + depth * 64, first_token, full[stage], READ_AGAIN);
        };
        if (lane == 0) {
            prefetch_map(args.weight);
            prefetch_map(args.activations);
            const int first = min(STAGES, chunks);
            for (int chunk = 0; chunk < first; chunk++) {
                barrier_expect(full[chunk], STAGE_BYTES);
                copy_weights(chunk);
            }
            if (args.bias && first_column + TILE <= args.n)
                prefetch_l2(args.bias + first_column, TILE * 4);
            wait_for_predecessor();
            for (int chunk = 0; chunk < first; chunk++)
                copy_tokens(chunk);
            for (int chunk = STAGES; chunk < chunks; chunk++) {
                const int stage = chunk % STAGES;
                barrier_wait(empty[stage], (chunk / STAGES - 1) & 1);
                barrier_expect(full[stage], STAGE_BYTES);
                copy_weights(chunk);
                copy_tokens(chunk);
            }
            // What is left of the memory's time is for the next product's weights.
            const u64 block = (u64)blockIdx.y * gridDim.x + blockIdx.x, blocks = (u64)gridDim.x * gridDim.y;
            for (u64 at = block * PIECE; blockIdx.z == 0 && at < args.ahead.bytes; at += blocks * PIECE)
                prefetch_l2((const char *)args.ahead.from + at, (u32)min(PIECE, args.ahead.bytes - at));
        }
    } else {
        for (int chunk = 0; chunk < chunks; chunk++) {
            const int stage = chunk % STAGES;
            barrier_wait(full[stage], chunk / STAGES & 1);
            products_begin();
#pragma unroll
            for (int depth = 0; depth < DEPTH; depth++) {
                u64 a = swizzled_operand(shared + stage * STAGE_BYTES + (depth * GROUPS + group) * BOX);
                u64 b = swizzled_operand(shared + stage * STAGE_BYTES + WEIGHT_BYTES + depth * TOKEN_BOX);
#pragma unroll
                for (int step = 0; step < 4; step++) {
                    multiply(sums, a, b);
                    a = next_k(a);
                    b = next_k(b);
                }
            }
            products_end();
            // The products before these have been read.
            products_wait<1>();
            if (chunk > 0 && lane == 0)
                barrier_arrive(empty[(chunk - 1) % STAGES]);
        }
        products_wait<0>();
    }

    const int tokens = min(args.rows - first_token, NT * 8), part = blockIdx.y / CLUSTER;
    __syncthreads();
    // (tokens, PITCH), where the stages were.
    float *all = (float *)shared;
    if (warp < GROUPS * 4)
#pragma unroll
        for (int nt = 0; nt < NT; nt++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int token = nt * 8 + lane % 4 * 2 + i % 2, column = warp * 16 + lane / 4 + i / 2 * 8;
                all[token * PITCH + column] = sums[nt][i];
            }
    if (CLUSTER > 1)
        cluster_sync();
    else
        __syncthreads();
    for (int i = blockIdx.y % CLUSTER * THREADS + threadIdx.x; i < tokens * (TILE / 4); i += THREADS * CLUSTER) {
        const int token = i / (TILE / 4), column = i % (TILE / 4) * 4, n = first_column + column;
        if (n >= args.n)
            continue;
        float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
        for (int peer = 0; peer < CLUSTER; peer++) {
            const float *from = all + token * PITCH + column;
            sum = add4(sum, CLUSTER > 1 ? load_from_peer(from, peer) : *(const float4 *)from);
        }
        write_product(args, sum, part, first_token + token, n);
    }
    // Nobody leaves while another reads its memory.
    if (CLUSTER > 1)
        cluster_sync();
}

#define WARPGROUP_KERNEL(name, GROUPS, DEPTH, STAGES, NT)                                                              \
    BOUNDED_KERNEL(name, WarpgroupArguments, GROUPS * 128 + 32) { gemm<GROUPS, DEPTH, STAGES, NT, 1>(args); }

#define WARPGROUP_CLUSTER_KERNEL(name, GROUPS, DEPTH, STAGES, NT, CLUSTER)                                             \
    CLUSTER_KERNEL(name, WarpgroupArguments, GROUPS * 128 + 32, CLUSTER)                                               \
    {                                                                                                                  \
        gemm<GROUPS, DEPTH, STAGES, NT, CLUSTER>(args);                                                                \
    }
