// Kernels that look at each value once.

struct EulerArguments {
    const float *noise;  // f32 (rows, dim): the accumulator's start; null: go on with `actions`
    float *actions;      // f32 (rows, dim): the accumulator
    const float *parts;  // f32 (splits, rows, columns): the velocity, or null
    const float *bias;   // (columns)
    float *velocity;     // f32 (rows, dim), or null
    bf16 *rounded;       // (rows, padded): what the next step reads
    long long part_stride;
    int splits, rows, dim, columns, padded;
    float factor;        // 1 / denoising steps
};

// actions += velocity / steps, four values per thread.
KERNEL(euler, EulerArguments)
{
    release_successor();
    wait_for_predecessor();
    const int i = blockIdx.x * blockDim.x + threadIdx.x, row = i / (args.padded / 4), column = i % (args.padded / 4) * 4;
    if (row >= args.rows)
        return;
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f), now = sum;
    if (column < args.dim) {
        const long long at = (long long)row * args.dim + column;
        now = *(const float4 *)((args.noise ? args.noise : args.actions) + at);
        if (args.parts) {
            sum = add4(sum_parts(args.parts + (long long)row * args.columns + column, args.splits, args.part_stride),
                       *(const float4 *)(args.bias + column));
            if (args.velocity)
                *(float4 *)(args.velocity + at) = sum;
            now = make_float4(now.x + sum.x * args.factor, now.y + sum.y * args.factor, now.z + sum.z * args.factor,
                              now.w + sum.w * args.factor);
        }
        *(float4 *)(args.actions + at) = now;
    }
    *(uint2 *)(args.rounded + (long long)row * args.padded + column) = pack4(now);
}

struct FinishArguments {
    const float *parts; // f32 (splits, rows, columns)
    const float *bias;  // (columns), or null
    bf16 *out;          // (rows, columns)
    long long part_stride, count;
    int splits, columns, activation;
};

// Ends a split product: sum, bias, activation; four values per thread.
KERNEL(finish, FinishArguments)
{
    release_successor();
    wait_for_predecessor();
    const long long i = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * 4;
    if (i >= args.count)
        return;
    float4 sum = sum_parts(args.parts + i, args.splits, args.part_stride);
    if (args.bias)
        sum = add4(sum, *(const float4 *)(args.bias + i % args.columns));
    sum = make_float4(activate(sum.x, args.activation), activate(sum.y, args.activation),
                      activate(sum.z, args.activation), activate(sum.w, args.activation));
    *(uint2 *)(args.out + i) = pack4(sum);
}

struct BiasActivationArguments {
    const bf16 *in;   // (rows, columns)
    const bf16 *bias; // (columns), or null
    bf16 *out;
    long long count;
    int columns, activation;
};

// The sum is rounded first, as a product with bias would be.
KERNEL(bias_activation, BiasActivationArguments)
{
    release_successor();
    wait_for_predecessor();
    const long long i = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * 4;
    if (i >= args.count)
        return;
    float4 x = unpack4(*(const uint2 *)(args.in + i));
    if (args.bias)
        x = unpack4(pack4(add4(x, unpack4(*(const uint2 *)(args.bias + i % args.columns)))));
    x = make_float4(activate(x.x, args.activation), activate(x.y, args.activation), activate(x.z, args.activation),
                    activate(x.w, args.activation));
    *(uint2 *)(args.out + i) = pack4(x);
}

struct SwigluArguments {
    const bf16 *gate; // rows `stride` apart
    const bf16 *up;   // rows `stride` apart
    bf16 *out;        // (rows, columns)
    long long count, stride;
    int columns;
};

// silu(gate), rounded, times up.
KERNEL(swiglu, SwigluArguments)
{
    release_successor();
    wait_for_predecessor();
    const long long i = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * 4;
    if (i >= args.count)
        return;
    const long long at = i / args.columns * args.stride + i % args.columns;
    const float4 g = unpack4(*(const uint2 *)(args.gate + at)), u = unpack4(*(const uint2 *)(args.up + at));
    const float4 s = make_float4(rounded(activate(g.x, ACTIVATION_SILU)), rounded(activate(g.y, ACTIVATION_SILU)),
                                 rounded(activate(g.z, ACTIVATION_SILU)), rounded(activate(g.w, ACTIVATION_SILU)));
    *(uint2 *)(args.out + i) = pack4(make_float4(s.x * u.x, s.y * u.y, s.z * u.z, s.w * u.w));
}

// Heads of one kind.
struct RotaryHeads {
    const bf16 *weight; // (width) of their norm
    bf16 *out;          // (samples, heads, tokens, width)
    int heads;
};

struct RotaryArguments {
    const bf16 *in;  // (samples, tokens, stride): heads side by side from column 0 on, those of the queries first
    const bf16 *cos; // (tokens, width)
    const bf16 *sin;
    RotaryHeads query, key;
    long long stride;
    int rows; // samples · tokens
    int tokens, width;
    float eps;
};

// Root-mean-square norm of a head, then the rotation by halves: a warp per head and token, two neighbours of either half per
// thread and turn. Every operation rounds, as the plain operators do. Width 4 to 256, a multiple of 4.
KERNEL(norm_rotary, RotaryArguments)
{
    constexpr int TURNS = 2;
    release_successor();
    const int lane = threadIdx.x % 32, half = args.width / 2, all = args.query.heads + args.key.heads;
    const int unit = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    const int column_head = unit % all, row = unit / all, token = row % args.tokens, sample = row / args.tokens;
    wait_for_predecessor();
    if (row >= args.rows)
        return;
    const bool is_key = column_head >= args.query.heads;
    const bf16 *weight = is_key ? args.key.weight : args.query.weight;
    const int heads = is_key ? args.key.heads : args.query.heads;
    const int head = is_key ? column_head - args.query.heads : column_head;
    const bf16 *in = args.in + (long long)row * args.stride + column_head * args.width;
    const bf16 *cos = args.cos + (long long)token * args.width, *sin = args.sin + (long long)token * args.width;
    // All that is read is on its way before the first sum.
    u32 left[TURNS] = {}, right[TURNS] = {}, weights[TURNS][2], angles[TURNS][4];
#pragma unroll
    for (int turn = 0; turn < TURNS; turn++) {
        const int column = turn * 64 + lane * 2;
        if (column >= half)
            continue;
        left[turn] = *(const u32 *)(in + column);
        right[turn] = *(const u32 *)(in + half + column);
        weights[turn][0] = *(const u32 *)(weight + column);
        weights[turn][1] = *(const u32 *)(weight + half + column);
        angles[turn][0] = *(const u32 *)(cos + column);
        angles[turn][1] = *(const u32 *)(sin + column);
        angles[turn][2] = *(const u32 *)(cos + half + column);
        angles[turn][3] = *(const u32 *)(sin + half + column);
    }
    float square = 0.0f;
#pragma unroll
    for (int turn = 0; turn < TURNS; turn++) {
        square += low_float(left[turn]) * low_float(left[turn]) + low_float(right[turn]) * low_float(right[turn]);
        square += high_float(left[turn]) * high_float(left[turn]) + high_float(right[turn]) * high_float(right[turn]);
    }
    for (int mask = 16; mask > 0; mask >>= 1)
        square += shuffle_xor(square, mask);
    const float scale = rsqrtf(square / args.width + args.eps);
    bf16 *out = is_key ? args.key.out : args.query.out;
    out += (((long long)sample * heads + head) * args.tokens + token) * args.width;
#pragma unroll
    for (int turn = 0; turn < TURNS; turn++) {
        const int column = turn * 64 + lane * 2;
        if (column >= half)
            continue;
        float first[2], second[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            auto value = [i](u32 pair) { return i ? high_float(pair) : low_float(pair); };
            const float a = rounded(rounded(value(left[turn]) * scale) * value(weights[turn][0]));
            const float b = rounded(rounded(value(right[turn]) * scale) * value(weights[turn][1]));
            first[i] = rounded(a * value(angles[turn][0])) + rounded(-b * value(angles[turn][1]));
            second[i] = rounded(b * value(angles[turn][2])) + rounded(a * value(angles[turn][3]));
        }
        *(u32 *)(out + column) = pack_bf16(first[0], first[1]);
        *(u32 *)(out + half + column) = pack_bf16(second[0], second[1]);
    }
}

struct PatchArguments {
    const unsigned char *frames; // (images, rows · side, columns · side, 3)
    bf16 *out;                   // (images, rows · columns, padded)
    long long count;             // of values out
    int rows, columns;           // of patches
    int side;                    // of a patch, in pixels
    int padded;                  // a multiple of 4; behind side · side · 3 values are zeros
};

// Bytes to (byte - 127.5) / 127.5, a patch's pixels in raster order, channel fastest.
KERNEL(patches, PatchArguments)
{
    release_successor();
    wait_for_predecessor();
    const long long first = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * 4;
    if (first >= args.count)
        return;
    const int column = (int)(first % args.padded), row = args.side * 3;
    const long long patch = first / args.padded, along = patch % args.columns;
    // The frames stand above each other.
    const unsigned char *corner = args.frames + (patch / args.columns * args.side * args.columns + along) * row;
    float values[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int at = column + i;
        values[i] = 0.0f;
        if (at < args.side * row)
            values[i] = ((float)corner[(long long)(at / row) * args.columns * row + at % row] - 127.5f) / 127.5f;
    }
    *(uint2 *)(args.out + first) = pack4(make_float4(values[0], values[1], values[2], values[3]));
}

struct FillArguments {
    bf16 *out;
    long long count;
    u32 seed;
    float spread;
};

// Pseudo-random values in ±spread, for timings.
KERNEL(fill, FillArguments)
{
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < args.count; i += (long long)gridDim.x * blockDim.x) {
        u32 x = (u32)i * 2654435761u + args.seed;
        x ^= x >> 16;
        x *= 0x85ebca6bu;
        x ^= x >> 13;
        x *= 0xc2b2ae35u;
        x ^= x >> 16;
        args.out[i] = to_bf16(((float)(x & 0xffffu) / 32768.0f - 1.0f) * args.spread);
    }
}
