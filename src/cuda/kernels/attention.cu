// Attention of few queries: 16 of one head per block, the keys dealt out to the warps in tiles of 16, softmax online in f32.
//
// Queries, keys and values are bf16 rows: for self-attention columns of one matrix that the predecessor made, for
// cross-attention keys and values of their own, made once per tick.

struct AttentionArguments {
    const bf16 *queries;    // (samples · queries), rows `columns` apart
    const bf16 *keys;       // (samples · keys), rows `key_stride` apart
    const bf16 *values;
    const int *lengths;     // keys that count, by sample; null: all
    bf16 *out;              // (samples · queries, heads · WIDTH)
    Ahead ahead;            // what a product after it reads
    int columns, key_stride;
    int query_count, key_count;
    int early;              // whether keys, values and lengths were there long before the predecessor
    float scale;            // of the scores, times log2(e)
};

template <int WIDTH> DEVICE void attention(const AttentionArguments &args)
{
    constexpr int WARPS = 8;
    constexpr int THREADS = WARPS * 32;
    // Rows 16 bytes longer than they need be meet no bank twice.
    constexpr int PITCH = WIDTH + 8;
    constexpr int VECTORS = WIDTH / 8;

    DYNAMIC_SHARED(uint4, shared);
    const int head = blockIdx.x, heads = gridDim.x, first_query = blockIdx.y * 16, sample = blockIdx.z;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int key_tiles = (args.key_count + 15) / 16, key_rows = key_tiles * 16;
    bf16 *queries = (bf16 *)shared;
    bf16 *keys = queries + 16 * PITCH;
    bf16 *values = keys + key_rows * PITCH;

    auto copy = [&](bf16 *to, const bf16 *from, int rows, int count, int first, long long stride) {
        for (int i = threadIdx.x; i < rows * VECTORS; i += THREADS) {
            const int vector = i % VECTORS, row = i / VECTORS;
            const bool valid = first + row < count;
            const bf16 *at = from + ((long long)sample * count + (valid ? first + row : 0)) * stride + head * WIDTH;
            copy_async(to + row * PITCH + vector * 8, at + vector * 8, valid);
        }
    };

    release_successor();
    prefetch_ahead(args.ahead);
    if (!args.early)
        wait_for_predecessor();
    copy(keys, args.keys, key_rows, args.key_count, 0, args.key_stride);
    copy(values, args.values, key_rows, args.key_count, 0, args.key_stride);
    const int length = args.lengths ? args.lengths[sample] : args.key_count;
    if (args.early)
        wait_for_predecessor();
    copy(queries, args.queries, 16, args.query_count, first_query, args.columns);
    copy_commit();
    copy_wait<0>();
    __syncthreads();

    u32 q[WIDTH / 16][4];
#pragma unroll
    for (int step = 0; step < WIDTH / 16; step++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            q[step][i] = *(const u32 *)(queries + (g + i % 2 * 8) * PITCH + step * 16 + i / 2 * 8 + t * 2);

    const float NONE = -1e30f;
    float highest[2] = {NONE, NONE}, weight[2] = {0.0f, 0.0f};
    float sums[WIDTH / 8][4] = {};
    for (int tile = warp; tile < key_tiles; tile += WARPS) {
        float scores[2][4] = {};
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const bf16 *row = keys + (tile * 16 + half * 8 + g) * PITCH + t * 2;
#pragma unroll
            for (int step = 0; step < WIDTH / 16; step++)
                mma(scores[half], q[step][0], q[step][1], q[step][2], q[step][3], *(const u32 *)(row + step * 16),
                    *(const u32 *)(row + step * 16 + 8));
        }
        // Rows g and g + 8 of the tile.
        float raised[2] = {highest[0], highest[1]};
#pragma unroll
        for (int half = 0; half < 2; half++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int key = tile * 16 + half * 8 + t * 2 + i % 2;
                scores[half][i] = key < length ? scores[half][i] * args.scale : NONE;
                raised[i / 2] = fmaxf(raised[i / 2], scores[half][i]);
            }
#pragma unroll
        for (int row = 0; row < 2; row++) {
            raised[row] = fmaxf(raised[row], shuffle_xor(raised[row], 1));
            raised[row] = fmaxf(raised[row], shuffle_xor(raised[row], 2));
            const float factor = exp2f(highest[row] - raised[row]);
            highest[row] = raised[row];
            weight[row] *= factor;
#pragma unroll
            for (int column = 0; column < WIDTH / 8; column++) {
                sums[column][row * 2] *= factor;
                sums[column][row * 2 + 1] *= factor;
            }
        }
#pragma unroll
        for (int half = 0; half < 2; half++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int key = tile * 16 + half * 8 + t * 2 + i % 2;
                // A tile may lie beyond the length altogether: then nothing is higher than NONE.
                scores[half][i] = key < length ? exp2f(scores[half][i] - highest[i / 2]) : 0.0f;
                weight[i / 2] += scores[half][i];
            }
        const u32 a0 = pack_bf16(scores[0][0], scores[0][1]), a1 = pack_bf16(scores[0][2], scores[0][3]);
        const u32 a2 = pack_bf16(scores[1][0], scores[1][1]), a3 = pack_bf16(scores[1][2], scores[1][3]);
#pragma unroll
        for (int column = 0; column < WIDTH / 8; column += 2) {
            u32 b[4];
            load_matrices_transposed(b, values + (tile * 16 + lane % 16) * PITCH + column * 8 + lane / 16 * 8);
            mma(sums[column], a0, a1, a2, a3, b[0], b[1]);
            mma(sums[column + 1], a0, a1, a2, a3, b[2], b[3]);
        }
    }
#pragma unroll
    for (int row = 0; row < 2; row++) {
        weight[row] += shuffle_xor(weight[row], 1);
        weight[row] += shuffle_xor(weight[row], 2);
    }

    // The warps' results, one beside the other, in the place of keys and values.
    __syncthreads();
    const int used = key_tiles < WARPS ? key_tiles : WARPS;
    float *all = (float *)shared;               // (WARPS, 16, WIDTH)
    float *tops = all + WARPS * 16 * WIDTH;     // (WARPS, 16)
    float *weights = tops + WARPS * 16;         // (WARPS, 16)
#pragma unroll
    for (int column = 0; column < WIDTH / 8; column++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            all[(warp * 16 + g + i / 2 * 8) * WIDTH + column * 8 + t * 2 + i % 2] = sums[column][i];
    if (t == 0)
#pragma unroll
        for (int row = 0; row < 2; row++) {
            tops[warp * 16 + g + row * 8] = highest[row];
            weights[warp * 16 + g + row * 8] = weight[row];
        }
    __syncthreads();
    for (int i = threadIdx.x; i < 16 * WIDTH / 2; i += THREADS) {
        const int row = i / (WIDTH / 2), column = i % (WIDTH / 2) * 2, query = first_query + row;
        if (query >= args.query_count)
            continue;
        float top = NONE;
        for (int w = 0; w < used; w++)
            top = fmaxf(top, tops[w * 16 + row]);
        float total = 0.0f, left = 0.0f, right = 0.0f;
        for (int w = 0; w < used; w++) {
            const float factor = exp2f(tops[w * 16 + row] - top);
            total += weights[w * 16 + row] * factor;
            left += all[(w * 16 + row) * WIDTH + column] * factor;
            right += all[(w * 16 + row) * WIDTH + column + 1] * factor;
        }
        const long long at = ((long long)sample * args.query_count + query) * heads * WIDTH + head * WIDTH + column;
        *(u32 *)(args.out + at) = pack_bf16(left / total, right / total);
    }
}

#define ATTENTION_KERNEL(name, WIDTH)                                                                                  \
    BOUNDED_KERNEL(name, AttentionArguments, 256) { attention<WIDTH>(args); }
