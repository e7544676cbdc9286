// Norms over rows, one block per row, the row in registers: everything is read once.

// Threads that make a row of `width` take four neighbours each, VECTORS times.
enum { VECTORS = 3 };

// (row - mean) / deviation · multiply + add, both of them optional, to bf16.
DEVICE void write_layer_norm(const float4 (&row)[VECTORS], int width, float eps, const float *multiply,
                             const float *add, bf16 *out, float *scratch)
{
    float sum = 0.0f;
#pragma unroll
    for (int v = 0; v < VECTORS; v++)
        sum += row[v].x + row[v].y + (row[v].z + row[v].w);
    const float mean = block_sum(sum, scratch) / width;
    float square = 0.0f;
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        if ((v * blockDim.x + threadIdx.x) * 4 < width) {
            const float4 d = make_float4(row[v].x - mean, row[v].y - mean, row[v].z - mean, row[v].w - mean);
            square += d.x * d.x + d.y * d.y + (d.z * d.z + d.w * d.w);
        }
    }
    const float scale = rsqrtf(block_sum(square, scratch) / width + eps);
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        const int column = (v * blockDim.x + threadIdx.x) * 4;
        if (column >= width)
            continue;
        float4 y = make_float4((row[v].x - mean) * scale, (row[v].y - mean) * scale, (row[v].z - mean) * scale,
                               (row[v].w - mean) * scale);
        if (multiply) {
            const float4 m = *(const float4 *)(multiply + column);
            y = make_float4(y.x * m.x, y.y * m.y, y.z * m.z, y.w * m.w);
        }
        if (add)
            y = add4(y, *(const float4 *)(add + column));
        *(uint2 *)(out + column) = pack4(y);
    }
}

struct NormArguments {
    float *residual;        // f32 (samples · tokens, width), read and, if `keep`, written
    const float *parts;     // f32 (splits, samples · tokens, width) to be added to it, or null
    const float *bias;      // (width), added with the parts
    const float *multiply;  // (width), or null
    const float *add;       // (width), or null
    bf16 *out;              // (blocks, width)
    long long part_stride;
    int splits, width;
    int tokens;             // rows of a sample in `residual`
    int first, count;       // which of them are normed: blocks = samples · count
    int keep;
    float eps;
};

KERNEL(residual_norm, NormArguments)
{
    SHARED(float, scratch, 32);
    const long long from = (long long)(blockIdx.x / args.count * args.tokens + args.first + blockIdx.x % args.count) * args.width;
    release_successor();
    wait_for_predecessor();
    float4 row[VECTORS];
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        const int column = (v * blockDim.x + threadIdx.x) * 4;
        row[v] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (column >= args.width)
            continue;
        row[v] = *(const float4 *)(args.residual + from + column);
        if (args.parts) {
            float4 sum = sum_parts(args.parts + from + column, args.splits, args.part_stride);
            if (args.bias)
                sum = add4(sum, *(const float4 *)(args.bias + column));
            row[v] = add4(row[v], sum);
            if (args.keep)
                *(float4 *)(args.residual + from + column) = row[v];
        }
    }
    write_layer_norm(row, args.width, args.eps, args.multiply, args.add,
                     args.out + (long long)blockIdx.x * args.width, scratch);
}

struct StartArguments {
    float *residual;        // written, (samples · (states + horizon), width)
    const bf16 *states;     // (samples · states, width)
    const float *parts;     // f32 (splits, samples · horizon, width): the action tokens
    const float *bias;      // (width)
    const float *positions; // (horizon, width), or null
    const float *multiply;
    const float *add;
    bf16 *out;
    long long part_stride;
    int splits, width, state_count, horizon;
    float eps;
};

// The tokens of a denoising step, state tokens first, and the first block's norm of them.
KERNEL(start_norm, StartArguments)
{
    SHARED(float, scratch, 32);
    const int tokens = args.state_count + args.horizon;
    const int sample = blockIdx.x / tokens, token = blockIdx.x % tokens, action = token - args.state_count;
    release_successor();
    wait_for_predecessor();
    float4 row[VECTORS];
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        const int column = (v * blockDim.x + threadIdx.x) * 4;
        row[v] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (column >= args.width)
            continue;
        if (action < 0) {
            row[v] = unpack4(*(const uint2 *)(args.states + ((long long)sample * args.state_count + token) * args.width + column));
        } else {
            const long long at = ((long long)sample * args.horizon + action) * args.width + column;
            row[v] = add4(sum_parts(args.parts + at, args.splits, args.part_stride), *(const float4 *)(args.bias + column));
            if (args.positions)
                row[v] = add4(row[v], *(const float4 *)(args.positions + (long long)action * args.width + column));
        }
        *(float4 *)(args.residual + (long long)blockIdx.x * args.width + column) = row[v];
    }
    write_layer_norm(row, args.width, args.eps, args.multiply, args.add,
                     args.out + (long long)blockIdx.x * args.width, scratch);
}

struct BackboneNormArguments {
    bf16 *residual;     // (rows, width), read and, with an addend, written
    const bf16 *addend; // (rows, width), or null
    const bf16 *weight; // (width)
    const bf16 *bias;   // (width); null for the root-mean-square norm
    bf16 *out;          // (rows, width)
    Ahead ahead;        // what a product after it reads
    int width, root_mean_square;
    float eps;
};

// residual += addend, rounded as the plain operators round it, then LayerNorm with weight and bias or RMSNorm. RMSNorm
// rounds before the weight is multiplied, as the reference does.
KERNEL(backbone_norm, BackboneNormArguments)
{
    SHARED(float, scratch, 32);
    const long long from = (long long)blockIdx.x * args.width;
    release_successor();
    prefetch_ahead(args.ahead);
    wait_for_predecessor();
    float4 row[VECTORS];
    float sum = 0.0f;
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        const int column = (v * blockDim.x + threadIdx.x) * 4;
        row[v] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (column >= args.width)
            continue;
        row[v] = unpack4(*(const uint2 *)(args.residual + from + column));
        if (args.addend) {
            const uint2 packed = pack4(add4(row[v], unpack4(*(const uint2 *)(args.addend + from + column))));
            *(uint2 *)(args.residual + from + column) = packed;
            row[v] = unpack4(packed);
        }
        const float4 x = row[v];
        sum += args.root_mean_square ? x.x * x.x + x.y * x.y + (x.z * x.z + x.w * x.w) : x.x + x.y + (x.z + x.w);
    }
    const float mean = block_sum(sum, scratch) / args.width;
    float scale;
    if (args.root_mean_square) {
        scale = rsqrtf(mean + args.eps);
    } else {
        float square = 0.0f;
#pragma unroll
        for (int v = 0; v < VECTORS; v++) {
            if ((v * blockDim.x + threadIdx.x) * 4 < args.width) {
                row[v] = make_float4(row[v].x - mean, row[v].y - mean, row[v].z - mean, row[v].w - mean);
                square += row[v].x * row[v].x + row[v].y * row[v].y + (row[v].z * row[v].z + row[v].w * row[v].w);
            }
        }
        scale = rsqrtf(block_sum(square, scratch) / args.width + args.eps);
    }
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        const int column = (v * blockDim.x + threadIdx.x) * 4;
        if (column >= args.width)
            continue;
        const float4 w = unpack4(*(const uint2 *)(args.weight + column));
        float4 y = make_float4(row[v].x * scale, row[v].y * scale, row[v].z * scale, row[v].w * scale);
        if (args.root_mean_square)
            y = unpack4(pack4(y));
        y = make_float4(y.x * w.x, y.y * w.y, y.z * w.z, y.w * w.w);
        if (args.bias)
            y = add4(y, unpack4(*(const uint2 *)(args.bias + column)));
        *(uint2 *)(args.out + from + column) = pack4(y);
    }
}
