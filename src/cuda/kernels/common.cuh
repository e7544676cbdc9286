// Arithmetic that all kernels share.

DEVICE float low_float(u32 pair) { return float_of_bits(pair << 16); }
DEVICE float high_float(u32 pair) { return float_of_bits(pair & 0xffff0000u); }
DEVICE float to_float(bf16 value) { return float_of_bits((u32)value << 16); }
DEVICE bf16 to_bf16(float value) { return (bf16)(pack_bf16(value, 0.0f) & 0xffffu); }
// The value that bf16 keeps of it.
DEVICE float rounded(float value) { return low_float(pack_bf16(value, 0.0f)); }

// As in `Activation` on the Rust side.
enum { ACTIVATION_NONE = 0, ACTIVATION_GELU_TANH = 1, ACTIVATION_RELU = 2, ACTIVATION_SILU = 3, ACTIVATION_GELU_ERF = 4 };

DEVICE float activate(float x, int activation)
{
    switch (activation) {
    case ACTIVATION_GELU_TANH:
        return 0.5f * x * (1.0f + tanhf(0.7978845608028654f * (x + 0.044715f * x * x * x)));
    case ACTIVATION_RELU:
        return x > 0.0f ? x : 0.0f;
    case ACTIVATION_SILU:
        return x / (1.0f + expf(-x));
    case ACTIVATION_GELU_ERF:
        return 0.5f * x * (1.0f + erff(x * 0.7071067811865476f));
    default:
        return x;
    }
}

DEVICE float4 add4(float4 a, float4 b) { return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }

DEVICE float4 unpack4(uint2 packed)
{
    return make_float4(low_float(packed.x), high_float(packed.x), low_float(packed.y), high_float(packed.y));
}

DEVICE uint2 pack4(float4 v) { return make_uint2(pack_bf16(v.x, v.y), pack_bf16(v.z, v.w)); }

// Four neighbours of a row of a product: as they are, f32 of one of its parts, or finished, with bias and activation, in bf16.
template <typename Arguments> DEVICE void write_product(const Arguments &args, float4 sum, long long part, long long row, int n)
{
    if (!args.finished) {
        *(float4 *)((float *)args.out + (part * args.rows + row) * args.n + n) = sum;
        return;
    }
    if (args.bias)
        sum = add4(sum, *(const float4 *)(args.bias + n));
    sum = make_float4(activate(sum.x, args.activation), activate(sum.y, args.activation),
                      activate(sum.z, args.activation), activate(sum.w, args.activation));
    *(uint2 *)((bf16 *)args.out + row * args.n + n) = pack4(sum);
}

// The sum of the parts of a split product, in the order of the parts: the same result in every run.
DEVICE float4 sum_parts(const float *parts, int count, long long stride)
{
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    int part = 0;
    for (; part + 8 <= count; part += 8) {
        // Eight loads on their way at once.
        float4 all[8];
#pragma unroll
        for (int i = 0; i < 8; i++)
            all[i] = *(const float4 *)(parts + (part + i) * stride);
#pragma unroll
        for (int i = 0; i < 8; i++)
            sum = add4(sum, all[i]);
    }
    for (; part + 4 <= count; part += 4) {
        float4 a = *(const float4 *)(parts + part * stride), b = *(const float4 *)(parts + (part + 1) * stride);
        float4 c = *(const float4 *)(parts + (part + 2) * stride), d = *(const float4 *)(parts + (part + 3) * stride);
        sum = add4(add4(add4(add4(sum, a), b), c), d);
    }
    for (; part < count; part++)
        sum = add4(sum, *(const float4 *)(parts + part * stride));
    return sum;
}

// Weights of a kernel that is to come, which are asked into the L2 cache while memory has little else to do.
struct Ahead {
    const void *from; // null: nothing
    u64 bytes;        // a multiple of 16
};

// Each thread of the grid asks for its share.
DEVICE void prefetch_ahead(const Ahead &ahead)
{
    constexpr u64 PIECE = 4096;
    if (!ahead.from)
        return;
    const u64 block = ((u64)blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    const u64 threads = (u64)gridDim.x * gridDim.y * gridDim.z * blockDim.x;
    // Neighbouring blocks take neighbouring pieces, so that all that run at once are near the beginning.
    for (u64 piece = (u64)threadIdx.x * gridDim.x * gridDim.y * gridDim.z + block; piece * PIECE < ahead.bytes; piece += threads) {
        const u64 left = ahead.bytes - piece * PIECE;
        prefetch_l2((const char *)ahead.from + piece * PIECE, (u32)(left < PIECE ? left : PIECE));
    }
}

// Sum over all threads of the block, given to all; `scratch` holds a float per warp. Ends with the scratch free for reuse.
DEVICE float block_sum(float value, float *scratch)
{
    for (int mask = 16; mask > 0; mask >>= 1)
        value += shuffle_xor(value, mask);
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = (blockDim.x + 31) / 32;
    if (lane == 0)
        scratch[warp] = value;
    __syncthreads();
    float sum = lane < warps ? scratch[lane] : 0.0f;
    for (int mask = 16; mask > 0; mask >>= 1)
        sum += shuffle_xor(sum, mask);
    __syncthreads();
    return sum;
}
