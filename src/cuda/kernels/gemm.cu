// out = activations · weightᵀ for few rows of activations: the time is that of reading the weight once.
//
// The weight's rows are the rows of the tensor core's first operand, the tokens the columns of its second. The order of k
// inside a product does not matter as long as both operands agree, so lane (g, t) takes k = 8t .. 8t+7 of a block of 32,
// 16 consecutive bytes of the plain row-major matrices: both operands are copied as they lie, and read back from shared
// memory in the order of the lanes, free of bank conflicts.
//
// Each consuming warp copies exactly what its own lanes multiply; others copy the activations. So the weights can be on
// their way before the predecessor on the stream, which makes the activations, has ended.
//
// With CLUSTER above 1, the parts of k are the blocks of a cluster, which sum what they made through each other's shared
// memory: the output is one part.
//
// A block makes TILE = 16·MT·WN columns of the output from one part of k. WN warps share the columns, WK the k of each chunk
// of 32·WK·KB. NT·8 tokens.

struct GemmArguments {
    const bf16 *activations; // (rows, k), rows `stride` elements apart
    const bf16 *weight;      // (n, k)
    const float *bias;       // (n), or null
    void *out;               // parts: f32 (splits, rows, n); otherwise bf16 (rows, n)
    Ahead ahead;             // what the next product reads
    int rows, n, k, stride;
    int split;      // k of each part, a multiple of 8
    int finished;   // whether `out` is bf16 with bias and activation, from one part
    int activation;
    int prefetch;   // whether to ask the L2 cache for the weights beyond the first stages
};

template <int MT, int WN, int WK, int KB, int STAGES, int NT, int PRODUCERS, int CLUSTER>
DEVICE void gemm(const GemmArguments &args)
{
    constexpr int CONSUMERS = WN * WK;
    constexpr int THREADS = 32 * (CONSUMERS + PRODUCERS);
    constexpr int TILE = 16 * MT * WN;
    constexpr int CHUNK = 32 * WK * KB;
    constexpr int WEIGHT_VECTORS = TILE * CHUNK / 8;
    constexpr int TOKEN_VECTORS = NT * CHUNK;
    constexpr int STAGE_VECTORS = WEIGHT_VECTORS + TOKEN_VECTORS;
    // Of the sums, so that neither writing by column nor reading by row meets a bank twice.
    constexpr int PITCH = TILE + 4;

    DYNAMIC_SHARED(uint4, shared);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int wn = warp % WN, wk = warp / WN;
    const bool consumes = warp < CONSUMERS;
    const int first_column = blockIdx.x * TILE;
    const int first_token = blockIdx.z * NT * 8;
    const int begin = blockIdx.y * args.split;
    const int end = min(begin + args.split, args.k);
    const int chunks = (end - begin + CHUNK - 1) / CHUNK;

    auto copy_weights = [&](int chunk) {
        uint4 *stage = shared + (chunk % STAGES) * STAGE_VECTORS + warp * KB * MT * 64 + lane;
#pragma unroll
        for (int kb = 0; kb < KB; kb++) {
            const int k = begin + chunk * CHUNK + (wk * KB + kb) * 32 + t * 8;
#pragma unroll
            for (int half = 0; half < MT * 2; half++) {
                const int column = first_column + wn * MT * 16 + half * 8 + g;
                const bool valid = column < args.n && k < end;
                const bf16 *from = args.weight + (valid ? (long long)column * args.k + k : 0);
                copy_async(stage + (kb * MT * 2 + half) * 32, from, valid);
            }
        }
    };
    auto copy_tokens = [&](int chunk) {
        uint4 *stage = shared + (chunk % STAGES) * STAGE_VECTORS + WEIGHT_VECTORS;
        for (int v = threadIdx.x - CONSUMERS * 32; v < TOKEN_VECTORS; v += PRODUCERS * 32) {
            const int tile = v / 32 % NT, block = v / 32 / NT;
            const int token = first_token + tile * 8 + v / 4 % 8;
            const int k = begin + chunk * CHUNK + block * 32 + v % 4 * 8;
            const bool valid = token < args.rows && k < end;
            const bf16 *from = args.activations + (valid ? (long long)token * args.stride + k : 0);
            copy_async(stage + v, from, valid);
        }
    };

    release_successor();
    if (consumes) {
        for (int chunk = 0; chunk < STAGES - 1; chunk++) {
            if (chunk < chunks)
                copy_weights(chunk);
            copy_commit();
        }
        const int ahead = begin + (STAGES - 1) * CHUNK;
        if (args.prefetch && threadIdx.x < TILE && first_column + threadIdx.x < args.n && ahead < end)
            prefetch_l2(args.weight + (long long)(first_column + threadIdx.x) * args.k + ahead, (end - ahead) * 2);
    } else {
        wait_for_predecessor();
        for (int chunk = 0; chunk < STAGES - 1; chunk++) {
            if (chunk < chunks)
                copy_tokens(chunk);
            copy_commit();
        }
    }

    float sums[MT][NT][4] = {};
    for (int chunk = 0; chunk < chunks; chunk++) {
        copy_wait<STAGES - 2>();
        // Chunk `chunk` is there for all; all are done with the one before, whose place the next takes.
        __syncthreads();
        const int next = chunk + STAGES - 1;
        // The last of its own weights are on their way.
        if (next == chunks || (chunk == 0 && next > chunks))
            prefetch_ahead(args.ahead);
        if (consumes) {
            if (next < chunks)
                copy_weights(next);
            copy_commit();
            const uint4 *stage = shared + (chunk % STAGES) * STAGE_VECTORS;
#pragma unroll
            for (int kb = 0; kb < KB; kb++) {
                const uint4 *weights = stage + (warp * KB + kb) * MT * 64 + lane;
                const uint4 *tokens = stage + WEIGHT_VECTORS + (wk * KB + kb) * NT * 32 + lane;
                uint4 upper[MT], lower[MT];
#pragma unroll
                for (int mt = 0; mt < MT; mt++) {
                    upper[mt] = weights[mt * 64];
                    lower[mt] = weights[mt * 64 + 32];
                }
#pragma unroll
                for (int nt = 0; nt < NT; nt++) {
                    const uint4 b = tokens[nt * 32];
#pragma unroll
                    for (int mt = 0; mt < MT; mt++) {
                        mma(sums[mt][nt], upper[mt].x, lower[mt].x, upper[mt].y, lower[mt].y, b.x, b.y);
                        mma(sums[mt][nt], upper[mt].z, lower[mt].z, upper[mt].w, lower[mt].w, b.z, b.w);
                    }
                }
            }
        } else {
            if (next < chunks)
                copy_tokens(next);
            copy_commit();
        }
    }

    copy_wait<0>();
    __syncthreads();
    // (WK, tokens, PITCH)
    float *all = (float *)shared;
    if (consumes) {
#pragma unroll
        for (int mt = 0; mt < MT; mt++)
#pragma unroll
            for (int nt = 0; nt < NT; nt++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const int token = nt * 8 + t * 2 + i % 2, column = (wn * MT + mt) * 16 + g + i / 2 * 8;
                    all[(wk * NT * 8 + token) * PITCH + column] = sums[mt][nt][i];
                }
    }
    if (CLUSTER > 1)
        cluster_sync();
    else
        __syncthreads();
    const int tokens = min(args.rows - first_token, NT * 8);
    const int rank = CLUSTER > 1 ? blockIdx.y : 0;
    for (int i = rank * THREADS + threadIdx.x; i < tokens * (TILE / 4); i += THREADS * CLUSTER) {
        const int token = i / (TILE / 4), column = i % (TILE / 4) * 4, n = first_column + column;
        if (n >= args.n)
            continue;
        float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
        for (int peer = 0; peer < CLUSTER; peer++)
#pragma unroll
            for (int part = 0; part < WK; part++) {
                const float *from = all + (part * NT * 8 + token) * PITCH + column;
                sum = add4(sum, CLUSTER > 1 ? load_from_peer(from, peer) : *(const float4 *)from);
            }
        write_product(args, sum, CLUSTER > 1 ? 0 : blockIdx.y, first_token + token, n);
    }
    // Nobody leaves while another reads its memory.
    if (CLUSTER > 1)
        cluster_sync();
}

#define GEMM_KERNEL(name, MT, WN, WK, KB, STAGES, NT, PRODUCERS)                                                       \
    BOUNDED_KERNEL(name, GemmArguments, 32 * (WN * WK + PRODUCERS))                                                    \
    {                                                                                                                  \
        gemm<MT, WN, WK, KB, STAGES, NT, PRODUCERS, 1>(args);                                                          \
    }

#define GEMM_CLUSTER_KERNEL(name, MT, WN, WK, KB, STAGES, NT, PRODUCERS, CLUSTER)                                      \
    CLUSTER_KERNEL(name, GemmArguments, 32 * (WN * WK + PRODUCERS), CLUSTER)                                           \
    {                                                                                                                  \
        gemm<MT, WN, WK, KB, STAGES, NT, PRODUCERS, CLUSTER>(args);                                                    \
    }
