// Camera frames to the bytes that the vision tower reads, the same bytes as those of the CPU. What is done with which
// numbers is told in src/processor/image/tables.rs, where the tables come from. Products and sums of floats are rounded one by
// one: nothing here may be contracted.

typedef unsigned char u8;

// Destinations that a block of `finish_frames` makes.
enum { TILE_COLUMNS = 32, TILE_ROWS = 16 };

enum Method { COPY = 0, BLOCKS = 1, SHRINK = 2, ENLARGE = 3 };

struct Axis {
    const u32 *table; // starts (length), counts (length), weights (length, taps)
    int length, taps; // length 0: the axis stays as it is
};

DEVICE int start_of(const Axis &axis, int at) { return (int)axis.table[at]; }
DEVICE int count_of(const Axis &axis, int at) { return (int)axis.table[axis.length + at]; }
DEVICE const u32 *weights_of(const Axis &axis, int at) { return axis.table + 2 * axis.length + at * axis.taps; }

struct Resize {
    Axis x, y;
    int method, left, top, across, down;
    float factor;
};

struct Frame {
    const u8 *frame; // rows `frame_stride` bytes apart
    u8 *cropped;     // (cropped_height, cropped_width, 3)
    u8 *out;         // (height, width, 3)
    Resize resize, restore;
    Axis x, y;
    long long frame_stride;
    int cropped_width, cropped_height, width, height;
};

struct Pixel {
    u8 value[3];
};

// Of a float that is not negative and far below 2^22: the sum has no room for a fraction, so the addition rounds.
DEVICE u8 nearest_byte(float value)
{
    const u32 whole = bits_of_float(add_rounded(value, 12582912.0f)) & 0xffffu;
    return (u8)(whole < 255u ? whole : 255u);
}

DEVICE Pixel mean_of_block(const Resize &resize, const u8 *from, long long stride, int x, int y)
{
    const u8 *row = from + (long long)(resize.top + y) * resize.down * stride + (resize.left + x) * resize.across * 3;
    u32 sums[3] = {0, 0, 0};
    for (int i = 0; i < resize.down; i++, row += stride)
        for (int j = 0; j < resize.across; j++)
            for (int channel = 0; channel < 3; channel++)
                sums[channel] += row[j * 3 + channel];
    Pixel pixel;
    for (int channel = 0; channel < 3; channel++)
        pixel.value[channel] = resize.across == 2 && resize.down == 2
                                   ? (u8)((sums[channel] + 2) >> 2)
                                   : nearest_byte(multiply_rounded((float)sums[channel], resize.factor));
    return pixel;
}

DEVICE Pixel weighted_by_area(const Resize &resize, const u8 *from, long long stride, int x, int y)
{
    const u8 *row = from + start_of(resize.y, y) * stride + start_of(resize.x, x) * 3;
    const u32 *down = weights_of(resize.y, y), *along = weights_of(resize.x, x);
    const int rows = count_of(resize.y, y), columns = count_of(resize.x, x);
    float sums[3] = {0.0f, 0.0f, 0.0f};
    for (int i = 0; i < rows; i++, row += stride) {
        float part[3] = {0.0f, 0.0f, 0.0f};
        for (int j = 0; j < columns; j++) {
            const float weight = float_of_bits(along[j]);
            for (int channel = 0; channel < 3; channel++)
                part[channel] = add_rounded(part[channel], multiply_rounded((float)row[j * 3 + channel], weight));
        }
        // Added to zero, the first product stays what it is.
        for (int channel = 0; channel < 3; channel++)
            sums[channel] = add_rounded(sums[channel], multiply_rounded(float_of_bits(down[i]), part[channel]));
    }
    Pixel pixel;
    for (int channel = 0; channel < 3; channel++)
        pixel.value[channel] = nearest_byte(sums[channel]);
    return pixel;
}

DEVICE Pixel between_two(const Resize &resize, const u8 *from, long long stride, int x, int y)
{
    const u8 *top = from + start_of(resize.y, y) * stride + start_of(resize.x, x) * 3;
    const u8 *bottom = count_of(resize.y, y) > 1 ? top + stride : top;
    const int next = count_of(resize.x, x) > 1 ? 3 : 0;
    const u32 along = *weights_of(resize.x, x), down = *weights_of(resize.y, y);
    // Weights are 0 to 2048, so all of it is positive.
    const u32 x0 = along & 0xffffu, x1 = along >> 16, y0 = down & 0xffffu, y1 = down >> 16;
    Pixel pixel;
    for (int channel = 0; channel < 3; channel++) {
        const u32 above = (top[channel] * x0 + top[next + channel] * x1) >> 4;
        const u32 below = (bottom[channel] * x0 + bottom[next + channel] * x1) >> 4;
        pixel.value[channel] = (u8)((((above * y0) >> 16) + ((below * y1) >> 16) + 2) >> 2);
    }
    return pixel;
}

DEVICE Pixel resized(const Resize &resize, const u8 *from, long long stride, int x, int y)
{
    switch (resize.method) {
    case BLOCKS:
        return mean_of_block(resize, from, stride, x, y);
    case SHRINK:
        return weighted_by_area(resize, from, stride, x, y);
    case ENLARGE:
        return between_two(resize, from, stride, x, y);
    default: {
        const u8 *at = from + (resize.top + y) * stride + (resize.left + x) * 3;
        return Pixel{{at[0], at[1], at[2]}};
    }
    }
}

// Of a sum with 22 fractional bits, its half added.
DEVICE u8 clamped_byte(u32 sum)
{
    const int whole = (int)sum >> 22;
    return (u8)(whole < 0 ? 0 : whole > 255 ? 255 : whole);
}

struct FrameArguments {
    const Frame *frames; // one for each block along z
};

// Resize and crop, a pixel per thread. Frames that are only cropped are left to their reader.
KERNEL(resize_frames, FrameArguments)
{
    release_successor();
    wait_for_predecessor();
    const Frame frame = args.frames[blockIdx.z];
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (frame.resize.method == COPY || i >= frame.cropped_width * frame.cropped_height)
        return;
    const int x = i % frame.cropped_width, y = i / frame.cropped_width;
    const Pixel pixel = resized(frame.resize, frame.frame, frame.frame_stride, x, y);
    for (int channel = 0; channel < 3; channel++)
        frame.cropped[(long long)i * 3 + channel] = pixel.value[channel];
}

// Restores the shortest edge and resizes to whole image tokens, a tile per block: first along x all rows that the tile needs,
// which stay in shared memory, then along y.
BOUNDED_KERNEL(finish_frames, FrameArguments, 256)
{
    release_successor();
    wait_for_predecessor();
    DYNAMIC_SHARED(uint4, shared);
    u8 *between = (u8 *)shared; // rows of TILE_COLUMNS pixels
    const Frame frame = args.frames[blockIdx.z];
    const int left = blockIdx.x * TILE_COLUMNS, top = blockIdx.y * TILE_ROWS;
    int columns = frame.width - left, rows = frame.height - top;
    columns = columns < TILE_COLUMNS ? columns : TILE_COLUMNS;
    rows = rows < TILE_ROWS ? rows : TILE_ROWS;
    if (columns <= 0 || rows <= 0)
        return;
    const int last = top + rows - 1;
    const int first_row = frame.y.length ? start_of(frame.y, top) : top;
    const int end_row = frame.y.length ? start_of(frame.y, last) + count_of(frame.y, last) : last + 1;
    const bool copied = frame.resize.method == COPY;
    const long long stride = copied ? frame.frame_stride : (long long)frame.cropped_width * 3;
    const u8 *cropped = copied ? frame.frame + frame.resize.top * stride + frame.resize.left * 3 : frame.cropped;

    for (int i = threadIdx.x; i < (end_row - first_row) * columns; i += blockDim.x) {
        const int row = i / columns, column = i % columns, x = left + column;
        Pixel pixel;
        if (frame.x.length) {
            const int start = start_of(frame.x, x), count = count_of(frame.x, x);
            const u32 *weights = weights_of(frame.x, x);
            u32 sums[3] = {1u << 21, 1u << 21, 1u << 21};
            for (int j = 0; j < count; j++) {
                const Pixel from = resized(frame.restore, cropped, stride, start + j, first_row + row);
                for (int channel = 0; channel < 3; channel++)
                    sums[channel] += from.value[channel] * weights[j];
            }
            for (int channel = 0; channel < 3; channel++)
                pixel.value[channel] = clamped_byte(sums[channel]);
        } else {
            pixel = resized(frame.restore, cropped, stride, x, first_row + row);
        }
        for (int channel = 0; channel < 3; channel++)
            between[(row * TILE_COLUMNS + column) * 3 + channel] = pixel.value[channel];
    }
    __syncthreads();

    for (int i = threadIdx.x; i < rows * columns * 3; i += blockDim.x) {
        const int row = i / (columns * 3), value = i % (columns * 3), y = top + row;
        u8 byte;
        if (frame.y.length) {
            const u8 *from = between + (start_of(frame.y, y) - first_row) * TILE_COLUMNS * 3 + value;
            const int count = count_of(frame.y, y);
            const u32 *weights = weights_of(frame.y, y);
            u32 sum = 1u << 21;
            for (int j = 0; j < count; j++)
                sum += from[j * TILE_COLUMNS * 3] * weights[j];
            byte = clamped_byte(sum);
        } else {
            byte = between[row * TILE_COLUMNS * 3 + value];
        }
        frame.out[((long long)y * frame.width + left) * 3 + value] = byte;
    }
}
