// Attention of many queries to many keys: the patches of an image, the tokens of a prompt. 16 queries of one head per warp,
// softmax online in f32.
//
// A block has QUERY_WARPS times 16 queries. Keys and values pass through shared memory in steps, of which each of four groups of
// warps takes its own KEYS keys at once; what the groups found is put together at the end. Operands are bf16 rows at any
// strides, so that they may lie in the product that made them.

struct Strides {
    long long sample, row, head;
};

struct SequenceAttentionArguments {
    const bf16 *query, *key, *value;
    const unsigned char *mask; // (samples, queries, keys), not zero: attend; null: all
    bf16 *out;                 // (samples · queries, heads · WIDTH)
    Strides query_stride, key_stride, value_stride;
    long long mask_sample, mask_row;
    int queries, keys;
    int first;                 // key that stands where the first query stands
    int group;                 // heads that share a key
    int causal;                // whether keys behind a query's place are hidden
    int slots;                 // steps that shared memory holds: 1 or 2
    float scale;               // of the scores, times log2(e)
};

template <int WIDTH, int QUERY_WARPS, int KEYS> DEVICE void sequence_attention(const SequenceAttentionArguments &args)
{
    constexpr int GROUPS = 4;
    constexpr int STEP = GROUPS * KEYS;
    constexpr int TILES = KEYS / 16;
    constexpr int ROWS = QUERY_WARPS * 16;
    constexpr int THREADS = GROUPS * QUERY_WARPS * 32;
    // What a product with the tensor core takes; behind the width are zeros.
    constexpr int PADDED = (WIDTH + 15) / 16 * 16;
    // Rows 16 bytes longer meet no bank twice.
    constexpr int PITCH = PADDED + 8;
    constexpr int VECTORS = PADDED / 8;
    constexpr int SLICES = PADDED / 16;
    constexpr int COLUMNS = WIDTH / 8;

    DYNAMIC_SHARED(uint4, shared);
    const int head = blockIdx.x, heads = gridDim.x, first_query = blockIdx.y * ROWS, sample = blockIdx.z;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int group = warp / QUERY_WARPS, part = warp % QUERY_WARPS;
    // Of the first of this warp's queries.
    const int top_query = first_query + part * 16;
    const bf16 *key = args.key + sample * args.key_stride.sample + head / args.group * args.key_stride.head;
    const bf16 *value = args.value + sample * args.value_stride.sample + head / args.group * args.value_stride.head;

    // Keys that any query of the block sees.
    const int last = args.first + first_query + ROWS;
    const int end = args.causal && last < args.keys ? last : args.keys;
    const int steps = (end + STEP - 1) / STEP, slots = args.slots;
    // (slots, key and value, STEP, PITCH)
    bf16 *const memory = (bf16 *)shared;

    release_successor();
    wait_for_predecessor();
    auto load = [&](int step) {
        bf16 *slot = memory + step % slots * (2 * STEP * PITCH);
        // Whole tiles, as far as there are keys.
        const int first = step * STEP, rows = min(STEP, (end - first + 15) / 16 * 16);
        for (int i = threadIdx.x; i < rows * VECTORS; i += THREADS) {
            const int row = i / VECTORS, column = i % VECTORS * 8, at = first + row;
            const bool valid = at < args.keys && column < WIDTH;
            copy_async(slot + row * PITCH + column, valid ? key + at * args.key_stride.row + column : args.key, valid);
            copy_async(slot + (STEP + row) * PITCH + column,
                       valid ? value + at * args.value_stride.row + column : args.value, valid);
        }
        copy_commit();
    };
    for (int step = 0; step < slots && step < steps; step++)
        load(step);

    u32 q[SLICES][4];
    {
        const bf16 *row = args.query + sample * args.query_stride.sample + head * args.query_stride.head;
#pragma unroll
        for (int slice = 0; slice < SLICES; slice++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int query = top_query + g + i % 2 * 8, column = slice * 16 + i / 2 * 8 + t * 2;
                q[slice][i] = 0;
                if (query < args.queries && slice * 16 + i / 2 * 8 < WIDTH)
                    q[slice][i] = *(const u32 *)(row + query * args.query_stride.row + column);
            }
    }

    const float NONE = -1e30f;
    // Of the scores before they are scaled.
    float highest[2] = {NONE, NONE}, weight[2] = {0.0f, 0.0f};
    float sums[COLUMNS][4] = {};
    // Of a row, as what is highest has risen.
    auto rescale = [&](int row, float factor) {
        weight[row] *= factor;
#pragma unroll
        for (int column = 0; column < COLUMNS; column++) {
            sums[column][row * 2] *= factor;
            sums[column][row * 2 + 1] *= factor;
        }
    };
    // Of this warp's keys of a step.
    auto attend = [&](const bf16 *keys, const bf16 *values, int first_key) {
        float scores[TILES][2][4] = {};
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
            if (first_key + tile * 16 >= end)
                break;
#pragma unroll
            for (int slice = 0; slice < SLICES; slice++) {
                u32 b[4];
                load_matrices(b, keys + (tile * 16 + lane / 16 * 8 + lane % 8) * PITCH + slice * 16 + lane / 8 % 2 * 8);
                mma(scores[tile][0], q[slice][0], q[slice][1], q[slice][2], q[slice][3], b[0], b[1]);
                mma(scores[tile][1], q[slice][0], q[slice][1], q[slice][2], q[slice][3], b[2], b[3]);
            }
        }
        // Scores of keys that do not count are NONE; mostly all do. The same for all of the warp.
        const bool all = first_key + KEYS <= args.keys && !args.mask && top_query + 16 <= args.queries &&
                         (!args.causal || first_key + KEYS - 1 <= args.first + top_query);
        if (!all) {
#pragma unroll
            for (int i = 0; i < TILES * 8; i++) {
                const int at = first_key + i / 4 * 8 + t * 2 + i % 2, query = top_query + g + i / 2 % 2 * 8;
                bool seen = at < args.keys && query < args.queries && (!args.causal || at <= args.first + query);
                if (args.mask && seen)
                    seen = args.mask[sample * args.mask_sample + query * args.mask_row + at] != 0;
                if (!seen)
                    scores[i / 8][i / 4 % 2][i % 4] = NONE;
            }
        }
        float raised[2] = {highest[0], highest[1]}, scaled[2];
#pragma unroll
        for (int i = 0; i < TILES * 8; i++)
            raised[i / 2 % 2] = fmaxf(raised[i / 2 % 2], scores[i / 8][i / 4 % 2][i % 4]);
#pragma unroll
        for (int row = 0; row < 2; row++) {
            raised[row] = fmaxf(raised[row], shuffle_xor(raised[row], 1));
            raised[row] = fmaxf(raised[row], shuffle_xor(raised[row], 2));
            // Where no key counts, nothing is higher than NONE: then nothing may count as the highest.
            scaled[row] = raised[row] > NONE ? raised[row] * args.scale : 0.0f;
            rescale(row, exp2_fast((highest[row] - raised[row]) * args.scale));
            highest[row] = raised[row];
        }
#pragma unroll
        for (int i = 0; i < TILES * 8; i++) {
            float &score = scores[i / 8][i / 4 % 2][i % 4];
            score = exp2_fast(fmaf(score, args.scale, -scaled[i / 2 % 2]));
            weight[i / 2 % 2] += score;
        }
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
            if (first_key + tile * 16 >= end)
                break;
            const float(&left)[4] = scores[tile][0], (&right)[4] = scores[tile][1];
            const u32 a0 = pack_bf16(left[0], left[1]), a1 = pack_bf16(left[2], left[3]);
            const u32 a2 = pack_bf16(right[0], right[1]), a3 = pack_bf16(right[2], right[3]);
#pragma unroll
            for (int column = 0; column < COLUMNS; column += 2) {
                u32 b[4];
                load_matrices_transposed(b, values + (tile * 16 + lane % 16) * PITCH + column * 8 + lane / 16 * 8);
                mma(sums[column], a0, a1, a2, a3, b[0], b[1]);
                if (column + 1 < COLUMNS)
                    mma(sums[column + 1], a0, a1, a2, a3, b[2], b[3]);
            }
        }
    };
    for (int step = 0; step < steps; step++) {
        // Each step is one group of copies; with two slots the next one may still be on its way.
        if (slots > 1 && step + 1 < steps)
            copy_wait<1>();
        else
            copy_wait<0>();
        __syncthreads();
        const int first_key = step * STEP + group * KEYS;
        // The same for all of the warp.
        if (first_key < end && top_query < args.queries && (!args.causal || first_key <= args.first + top_query + 15)) {
            const bf16 *keys = memory + step % slots * (2 * STEP * PITCH) + group * KEYS * PITCH;
            attend(keys, keys + STEP * PITCH, first_key);
        }
        if (step + slots < steps) {
            __syncthreads();
            load(step + slots);
        }
    }
#pragma unroll
    for (int row = 0; row < 2; row++) {
        weight[row] += shuffle_xor(weight[row], 1);
        weight[row] += shuffle_xor(weight[row], 2);
    }

    // What the other groups found, thread by thread, in the place of keys and values.
    constexpr int FOUND = COLUMNS * 4 + 4;
    __syncthreads();
    float *found = (float *)shared + lane; // (GROUPS - 1, QUERY_WARPS, FOUND, 32)
    if (group > 0) {
        float *own = found + ((group - 1) * QUERY_WARPS + part) * FOUND * 32;
#pragma unroll
        for (int i = 0; i < COLUMNS * 4; i++)
            own[i * 32] = sums[i / 4][i % 4];
#pragma unroll
        for (int row = 0; row < 2; row++) {
            own[(COLUMNS * 4 + row) * 32] = highest[row];
            own[(COLUMNS * 4 + 2 + row) * 32] = weight[row];
        }
    }
    __syncthreads();
    if (group > 0)
        return;
    float top[2] = {highest[0], highest[1]};
#pragma unroll
    for (int other = 0; other < GROUPS - 1; other++)
#pragma unroll
        for (int row = 0; row < 2; row++)
            top[row] = fmaxf(top[row], found[((other * QUERY_WARPS + part) * FOUND + COLUMNS * 4 + row) * 32]);
#pragma unroll
    for (int row = 0; row < 2; row++) {
        rescale(row, exp2_fast((highest[row] - top[row]) * args.scale));
    }
#pragma unroll
    for (int other = 0; other < GROUPS - 1; other++) {
        const float *of = found + (other * QUERY_WARPS + part) * FOUND * 32;
        float factor[2];
#pragma unroll
        for (int row = 0; row < 2; row++) {
            factor[row] = exp2_fast((of[(COLUMNS * 4 + row) * 32] - top[row]) * args.scale);
            weight[row] += of[(COLUMNS * 4 + 2 + row) * 32] * factor[row];
        }
#pragma unroll
        for (int i = 0; i < COLUMNS * 4; i++)
            sums[i / 4][i % 4] += of[i * 32] * factor[i % 4 / 2];
    }
#pragma unroll
    for (int row = 0; row < 2; row++) {
        const int query = top_query + g + row * 8;
        if (query >= args.queries)
            continue;
        // A query that sees no key at all gets zeros.
        const float share = weight[row] > 0.0f ? 1.0f / weight[row] : 0.0f;
        bf16 *out = args.out + (((long long)sample * args.queries + query) * heads + head) * WIDTH + t * 2;
#pragma unroll
        for (int column = 0; column < COLUMNS; column++)
            *(u32 *)(out + column * 8) = pack_bf16(sums[column][row * 2] * share, sums[column][row * 2 + 1] * share);
    }
}

#define SEQUENCE_ATTENTION_KERNEL(name, WIDTH, QUERY_WARPS, KEYS)                                                      \
    BOUNDED_KERNEL(name, SequenceAttentionArguments, 128 * QUERY_WARPS)                                                \
    {                                                                                                                  \
        sequence_attention<WIDTH, QUERY_WARPS, KEYS>(args);                                                            \
    }
