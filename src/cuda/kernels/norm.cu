// Norms over rows, one block per row, the row in registers: everything is read once.

// Threads that make a row of `width` take four neighbours each, `V` times.
enum { VECTORS = 3 };

DEVICE int column_of(int vector) { return (vector * blockDim.x + threadIdx.x) * 4; }

DEVICE float4 all_of(float value) { return make_float4(value, value, value, value); }

// Values that nobody writes while the kernels run: where a thread has one vector, it asks for them before the predecessor has
// ended; wider rows have no registers to keep them in.
template <int V> struct Constants {
    float4 kept;

    DEVICE_METHOD Constants(const float *from, int width, float otherwise) : kept(all_of(otherwise))
    {
        if (V == 1 && from && column_of(0) < width)
            kept = *(const float4 *)(from + column_of(0));
    }

    DEVICE_METHOD float4 at(const float *from, int column, float otherwise) const
    {
        if (V == 1)
            return kept;
        return from ? *(const float4 *)(from + column) : all_of(otherwise);
    }
};

struct Modulation {
    const float *multiply; // (width), or null
    const float *add;      // (width), or null
};

// (row - mean) / deviation · multiply + add, to bf16.
template <int V>
DEVICE void write_layer_norm(const float4 (&row)[V], int width, float eps, const Modulation &modulation,
                             const Constants<V> &multiply, const Constants<V> &add, bf16 *out, float *scratch)
{
    float sum = 0.0f;
#pragma unroll
    for (int v = 0; v < V; v++)
        sum += row[v].x + row[v].y + (row[v].z + row[v].w);
    const float mean = block_sum(sum, scratch) / width;
    float square = 0.0f;
#pragma unroll
    for (int v = 0; v < V; v++) {
        if (column_of(v) < width) {
            const float4 d = make_float4(row[v].x - mean, row[v].y - mean, row[v].z - mean, row[v].w - mean);
            square += d.x * d.x + d.y * d.y + (d.z * d.z + d.w * d.w);
        }
    }
    const float scale = rsqrtf(block_sum(square, scratch) / width + eps);
#pragma unroll
    for (int v = 0; v < V; v++) {
        const int column = column_of(v);
        if (column >= width)
            continue;
        const float4 m = multiply.at(modulation.multiply, column, 1.0f), a = add.at(modulation.add, column, 0.0f);
        const float4 y = make_float4((row[v].x - mean) * scale * m.x, (row[v].y - mean) * scale * m.y,
                                     (row[v].z - mean) * scale * m.z, (row[v].w - mean) * scale * m.w);
        *(uint2 *)(out + column) = pack4(add4(y, a));
    }
}

struct NormArguments {
    float *residual;        // f32 (samples · tokens, width), read and, if `keep`, written
    const float *parts;     // f32 (splits, samples · tokens, width) to be added to it, or null
    const float *bias;      // (width), added with the parts
    Modulation modulation;
    bf16 *out;              // (blocks, width)
    long long part_stride;
    int splits, width;
    int tokens;             // rows of a sample in `residual`
    int first, count;       // which of them are normed: blocks = samples · count
    int keep;
    float eps;
};

template <int V> DEVICE void residual_norm_of(const NormArguments &args, float *scratch)
{
    const long long from = (long long)(blockIdx.x / args.count * args.tokens + args.first + blockIdx.x % args.count) * args.width;
    release_successor();
    const Constants<V> multiply(args.modulation.multiply, args.width, 1.0f), add(args.modulation.add, args.width, 0.0f);
    const Constants<V> bias(args.bias, args.width, 0.0f);
    wait_for_predecessor();
    float4 row[V];
#pragma unroll
    for (int v = 0; v < V; v++) {
        const int column = column_of(v);
        row[v] = all_of(0.0f);
        if (column >= args.width)
            continue;
        row[v] = *(const float4 *)(args.residual + from + column);
        if (args.parts) {
            const float4 sum = sum_parts(args.parts + from + column, args.splits, args.part_stride);
            row[v] = add4(row[v], add4(sum, bias.at(args.bias, column, 0.0f)));
            if (args.keep)
                *(float4 *)(args.residual + from + column) = row[v];
        }
    }
    write_layer_norm<V>(row, args.width, args.eps, args.modulation, multiply, add,
                        args.out + (long long)blockIdx.x * args.width, scratch);
}

// Rows of one vector a thread.
BOUNDED_KERNEL(residual_norm, NormArguments, 512)
{
    SHARED(float, scratch, 32);
    residual_norm_of<1>(args, scratch);
}

BOUNDED_KERNEL(residual_norm_wide, NormArguments, 1024)
{
    SHARED(float, scratch, 32);
    residual_norm_of<VECTORS>(args, scratch);
}

struct StartArguments {
    float *residual;        // written, (samples · (states + horizon), width)
    const bf16 *states;     // (samples · states, width)
    const float *parts;     // f32 (splits, samples · horizon, width): the action tokens
    const float *bias;      // (width)
    const float *positions; // (horizon, width), or null
    Modulation modulation;
    bf16 *out;
    long long part_stride;
    int splits, width, state_count, horizon;
    float eps;
};

// The tokens of a denoising step, state tokens first, and the first block's norm of them.
template <int V> DEVICE void start_norm_of(const StartArguments &args, float *scratch)
{
    const int tokens = args.state_count + args.horizon;
    const int sample = blockIdx.x / tokens, token = blockIdx.x % tokens, action = token - args.state_count;
    release_successor();
    const Constants<V> multiply(args.modulation.multiply, args.width, 1.0f), add(args.modulation.add, args.width, 0.0f);
    wait_for_predecessor();
    float4 row[V];
#pragma unroll
    for (int v = 0; v < V; v++) {
        const int column = column_of(v);
        row[v] = all_of(0.0f);
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
    write_layer_norm<V>(row, args.width, args.eps, args.modulation, multiply, add,
                        args.out + (long long)blockIdx.x * args.width, scratch);
}

BOUNDED_KERNEL(start_norm, StartArguments, 512)
{
    SHARED(float, scratch, 32);
    start_norm_of<1>(args, scratch);
}

BOUNDED_KERNEL(start_norm_wide, StartArguments, 512)
{
    SHARED(float, scratch, 32);
    start_norm_of<VECTORS>(args, scratch);
}

struct BackboneNormArguments {
    bf16 *residual;     // (rows, width), read and, with an addend, written
    const bf16 *addend; // (rows, width), or null
    const bf16 *weight; // (width)
    const bf16 *bias;   // (width); null for the root-mean-square norm
    bf16 *out;          // (rows, width)
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
