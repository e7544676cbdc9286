// ptx.cuh for the CPU: the hardware that the kernels need, emulated for tests.
//
// Every thread of a block is a fiber, and the blocks of a cluster run together. What the hardware leaves open is made as
// bad as it may be, so that code that is only right by luck fails:
//
// - A warp runs until all its threads wait, then the next, in the order that the launch names: ascending, descending, or
//   shuffled. A barrier that is missing between two warps is missed in one of them.
// - Shared memory starts as NaN, and what an asynchronous copy will overwrite is NaN from when the copy is asked for until
//   its thread has waited for it.
// - A launch may begin early: everything before `wait_for_predecessor` then runs before the predecessor.
//
// These end a launch with a message: a barrier or a warp's operation that not all threads reach; lanes that disagree about
// what their warp does; writing beside shared memory; a copy whose ends are not 16-byte aligned or whose target is not
// shared; reading from a block of the cluster that may have left; and, through the compiler's checks, misaligned accesses
// and indices beyond an array.
//
// Boxes arrive when somebody waits for them, and products of warpgroups are made when their thread waits for them.
//
// Not emulated: the order of memory accesses between threads that no barrier orders, registers, time. Sums of the tensor
// core are exact before they are rounded once; the hardware's are a little less exact.

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <memory>
#include <vector>

// As the newest code paths of the kernels want it.
#define __CUDA_ARCH__ 900

typedef unsigned short bf16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define DEVICE __attribute__((unused)) static inline
#define DEVICE_METHOD inline

struct uint2 { u32 x, y; } __attribute__((aligned(8)));
struct uint3 { u32 x, y, z; };
struct uint4 { u32 x, y, z, w; } __attribute__((aligned(16)));
struct float2 { float x, y; } __attribute__((aligned(8)));
struct float4 { float x, y, z, w; } __attribute__((aligned(16)));

DEVICE uint2 make_uint2(u32 x, u32 y) { return {x, y}; }
DEVICE uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) { return {x, y, z, w}; }
DEVICE float2 make_float2(float x, float y) { return {x, y}; }
DEVICE float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
template <typename T> DEVICE T min(T a, T b) { return b < a ? b : a; }
template <typename T> DEVICE T max(T a, T b) { return a < b ? b : a; }
DEVICE float rsqrtf(float x) { return 1.0f / sqrtf(x); }

// Of the fiber that runs.
static uint3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

constexpr size_t STACK = 64 << 10;
// Bytes on both sides of shared memory that must stay as they are.
constexpr size_t MARGIN = 8 << 10;
constexpr u64 UNTOUCHED = 0x5afe57ac5afe57acull;

// As `Launch` on the Rust side.
struct Launch {
    const void *arguments;
    u64 argument_bytes;
    u32 grid[3];
    u32 threads;
    u32 shared;
    u32 order; // 0: ascending, 1: descending, otherwise the seed of a shuffle
};

// What a KERNEL declares.
struct Kernel {
    const char *name;
    void (*enter)(const void *arguments);
    u64 argument_bytes;
    u32 most_threads;
    u32 cluster; // blocks along y
};

struct Copy {
    char *to;
    const char *from;
    bool valid;
    u32 group;
};

enum State { READY, AT_BARRIER, AT_CLUSTER_BARRIER, AT_COPY_BARRIER, IN_WARP, AT_GATE, DONE };

// A product of a warpgroup, which may be done at any time until its thread has waited for it.
struct Product {
    void (*multiply)(void *sums, u64 a, u64 b, const char *shared, u32 thread);
    void *sums;
    u64 a, b;
    u32 group;
};

struct Block;

// Made once, and given one thread after the other.
struct Fiber {
    jmp_buf context;
    ucontext_t first;
    char *stack;
    Block *block;
    u32 id;
    State state;
    bool started = false;
    std::vector<Copy> copies;
    size_t delivered;
    u32 groups; // committed
    std::vector<Product> products;
    u32 product_groups; // committed
};

enum Kind { NOTHING, SHUFFLE, MMA, MATRICES, TRANSPOSED };

// What a lane brings to an operation of its warp.
struct Operands {
    Kind kind;
    int mask;
    float value;
    float *result;
    u32 a[4], b[2];
    const void *row;
    u32 *matrices;
};

struct Warp {
    u32 arrived = 0;
    Operands lanes[32];
};

// Shared memory between its margins.
struct Region {
    const void *key;
    char *base;
    size_t bytes;
    std::unique_ptr<char[]> memory;
    char *end;
};

struct Cluster;

// A copy of a box, which may arrive at any time until somebody has waited for it.
struct BoxCopy {
    char *to;
    const void *map;
    int k, row;
    void *barrier;
};

struct Block {
    Cluster *cluster = nullptr;
    uint3 index = {};
    std::vector<Fiber *> fibers;
    std::vector<Warp> warps;
    Region dynamic;
    std::vector<Region> arrays;
    u32 at_barrier = 0, left = 0;
    std::vector<BoxCopy> boxes;
};

struct Run;

struct Cluster {
    Run *run = nullptr;
    std::vector<std::unique_ptr<Block>> blocks;
    // (block, warp) in the order in which they run.
    std::vector<std::pair<u32, u32>> warps;
    u32 at_barrier = 0;
};

struct Run {
    Kernel kernel;
    Launch launch;
    std::vector<char> arguments;
    char *arguments_at = nullptr; // in them, aligned as parameters are
    std::vector<std::unique_ptr<Cluster>> begun;
    std::vector<u32> order; // of clusters
    std::vector<u32> lanes;
    bool gate_closed = false;
    bool failed = false;
    char message[512] = {};
};

static Fiber *current;
static jmp_buf scheduler;
static std::vector<Fiber *> idle;

static void record(Run &run, const char *place, const char *format, va_list values)
{
    if (run.failed)
        return;
    run.failed = true;
    char text[384];
    vsnprintf(text, sizeof text, format, values);
    snprintf(run.message, sizeof run.message, "%s%s: %s", run.kernel.name, place, text);
}

__attribute__((format(printf, 2, 3))) static void failed(Run &run, const char *format, ...)
{
    va_list values;
    va_start(values, format);
    record(run, "", format, values);
    va_end(values);
}

// Ends the launch from within a fiber.
__attribute__((noreturn, format(printf, 1, 2))) static void fail(const char *format, ...)
{
    const uint3 &block = current->block->index;
    char place[96];
    snprintf(place, sizeof place, ", block (%u, %u, %u), thread %u", block.x, block.y, block.z, current->id);
    va_list values;
    va_start(values, format);
    record(*current->block->cluster->run, place, format, values);
    va_end(values);
    _longjmp(scheduler, 1);
}

static void suspend(State state)
{
    current->state = state;
    if (_setjmp(current->context) == 0)
        _longjmp(scheduler, 1);
}

static void enter()
{
    for (;;) {
        const Run &run = *current->block->cluster->run;
        run.kernel.enter(run.arguments_at);
        current->block->left++;
        suspend(DONE);
    }
}

static Fiber *take_fiber()
{
    if (!idle.empty()) {
        Fiber *fiber = idle.back();
        idle.pop_back();
        return fiber;
    }
    void *memory = mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
        return nullptr;
    Fiber *fiber = new Fiber;
    fiber->stack = (char *)memory;
    *(u64 *)fiber->stack = UNTOUCHED;
    return fiber;
}

__attribute__((noinline)) static void resume(Fiber *fiber)
{
    current = fiber;
    threadIdx = {fiber->id, 0, 0};
    blockIdx = fiber->block->index;
    if (_setjmp(scheduler) != 0)
        return;
    if (current->started)
        _longjmp(current->context, 1);
    current->started = true;
    getcontext(&current->first);
    current->first.uc_stack.ss_sp = current->stack;
    current->first.uc_stack.ss_size = STACK;
    current->first.uc_link = nullptr;
    makecontext(&current->first, enter, 0);
    setcontext(&current->first);
}

// Numbers that look random, the same every time.
struct Shuffle {
    u64 state;
    u32 below(u32 n)
    {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        return (u32)((state >> 33) % n);
    }
};

template <typename T> static void arrange(std::vector<T> &all, u32 order, u32 salt)
{
    if (order == 1) {
        for (size_t i = 0; i < all.size() / 2; i++)
            std::swap(all[i], all[all.size() - 1 - i]);
    } else if (order > 1) {
        Shuffle shuffle = {order * 0x9e3779b97f4a7c15ull + salt};
        for (size_t i = all.size(); i > 1; i--)
            std::swap(all[i - 1], all[shuffle.below((u32)i)]);
    }
}

static Region make_region(const void *key, size_t bytes)
{
    Region region;
    region.key = key;
    region.bytes = bytes;
    const size_t whole = (bytes + 15) / 16 * 16, all = MARGIN + whole + MARGIN + 16;
    region.memory.reset(new char[all]);
    memset(region.memory.get(), 0xff, all);
    char *start = region.memory.get() + MARGIN;
    // No better aligned than the hardware promises.
    region.base = start + (16 - (size_t)start % 16) % 16;
    if ((size_t)region.base % 32 == 0)
        region.base += 16;
    region.end = region.memory.get() + all;
    return region;
}

static void check_margins(Run &run, const Region &region)
{
    for (const char *at = region.memory.get(); at < region.end; at++)
        if ((at < region.base || at >= region.base + region.bytes) && *at != (char)0xff)
            return failed(run, "something was written at byte %ld of %zu bytes of shared memory", (long)(at - region.base),
                          region.bytes);
}

static std::unique_ptr<Cluster> make_cluster(Run &run, u32 number)
{
    auto cluster = std::make_unique<Cluster>();
    cluster->run = &run;
    const u32 *grid = run.launch.grid, size = run.kernel.cluster, along = grid[1] / size;
    for (u32 rank = 0; rank < size; rank++) {
        auto block = std::make_unique<Block>();
        block->cluster = cluster.get();
        block->index = {number % grid[0], number / grid[0] % along * size + rank, number / grid[0] / along};
        block->dynamic = make_region(nullptr, run.launch.shared);
        block->warps.resize((run.launch.threads + 31) / 32);
        for (u32 id = 0; id < run.launch.threads; id++) {
            Fiber *fiber = take_fiber();
            if (!fiber) {
                failed(run, "no memory for %u threads", run.launch.threads);
                break;
            }
            fiber->block = block.get();
            fiber->id = id;
            fiber->state = READY;
            fiber->copies.clear();
            fiber->delivered = 0;
            fiber->groups = 0;
            fiber->products.clear();
            fiber->product_groups = 0;
            block->fibers.push_back(fiber);
        }
        for (u32 warp = 0; warp < block->warps.size(); warp++)
            cluster->warps.push_back({rank, warp});
        cluster->blocks.push_back(std::move(block));
    }
    arrange(cluster->warps, run.launch.order, number);
    return cluster;
}

static void end_cluster(Run &run, Cluster &cluster)
{
    for (auto &block : cluster.blocks) {
        check_margins(run, block->dynamic);
        for (const Region &array : block->arrays)
            check_margins(run, array);
        for (Fiber *fiber : block->fibers) {
            if (*(u64 *)fiber->stack != UNTOUCHED)
                failed(run, "thread %u needed more than %zu bytes of stack", fiber->id, STACK);
            // After a failure it may be anywhere.
            fiber->started = fiber->state == DONE && !run.failed;
            idle.push_back(fiber);
        }
        block->fibers.clear();
    }
}

static void report_standstill(Run &run, Cluster &cluster)
{
    u32 counts[DONE + 1] = {}, first[DONE + 1] = {};
    for (auto &block : cluster.blocks)
        for (Fiber *fiber : block->fibers)
            if (counts[fiber->state]++ == 0)
                first[fiber->state] = fiber->id;
    const uint3 &index = cluster.blocks[0]->index;
    failed(run,
           "block (%u, %u, %u): %u threads wait at a barrier (the first is %u), %u at the cluster's (%u), %u for the rest "
           "of their warp (%u), %u for copies (%u), while %u have left (%u): nobody can go on",
           index.x, index.y, index.z, counts[AT_BARRIER], first[AT_BARRIER], counts[AT_CLUSTER_BARRIER],
           first[AT_CLUSTER_BARRIER], counts[IN_WARP], first[IN_WARP], counts[AT_COPY_BARRIER], first[AT_COPY_BARRIER],
           counts[DONE], first[DONE]);
}

// Runs until all threads have left or, with the gate closed, nobody can go on.
static void advance(Run &run, Cluster &cluster)
{
    blockDim = {run.launch.threads, 1, 1};
    gridDim = {run.launch.grid[0], run.launch.grid[1], run.launch.grid[2]};
    for (;;) {
        bool progress = false;
        for (auto &place : cluster.warps) {
            Block &block = *cluster.blocks[place.first];
            for (bool again = true; again && !run.failed;) {
                again = false;
                for (u32 lane : run.lanes) {
                    const u32 id = place.second * 32 + lane;
                    if (id < block.fibers.size() && block.fibers[id]->state == READY && !run.failed) {
                        resume(block.fibers[id]);
                        again = progress = true;
                    }
                }
            }
        }
        if (run.failed)
            return;
        if (progress)
            continue;
        bool all_left = true, gated = false;
        for (auto &block : cluster.blocks)
            for (Fiber *fiber : block->fibers) {
                all_left = all_left && fiber->state == DONE;
                gated = gated || fiber->state == AT_GATE;
            }
        if (!all_left && !(gated && run.gate_closed))
            report_standstill(run, cluster);
        return;
    }
}

static void *address_in(const Region &region, const void *pointer, size_t bytes, const char *what)
{
    const long at = (const char *)pointer - region.base;
    if (at < 0 || at + (long)bytes > (long)region.bytes)
        fail("%s byte %ld of %zu bytes of shared memory", what, at, region.bytes);
    if ((size_t)pointer % 16 != 0)
        fail("%s byte %ld of shared memory: not aligned to 16", what, at);
    return (void *)pointer;
}

static void *shared_array(const void *key, size_t bytes)
{
    for (Region &array : current->block->arrays)
        if (array.key == key)
            return array.base;
    current->block->arrays.push_back(make_region(key, bytes));
    return current->block->arrays.back().base;
}

static void deliver(Fiber &fiber, u32 before)
{
    for (; fiber.delivered < fiber.copies.size() && fiber.copies[fiber.delivered].group < before; fiber.delivered++) {
        const Copy &copy = fiber.copies[fiber.delivered];
        if (copy.valid)
            memcpy(copy.to, copy.from, 16);
        else
            memset(copy.to, 0, 16);
    }
}

// What most of the time goes into.
#if defined(__GNUC__) && !defined(__clang__)
#define FAST __attribute__((optimize("O3"), no_sanitize("alignment", "bounds")))
#else
#define FAST
#endif

FAST static inline float widened(u32 bits)
{
    float value;
    bits <<= 16;
    memcpy(&value, &bits, 4);
    return value;
}

FAST static void multiply(Operands *lanes)
{
    double a[16][16], b[16][8], sums[16][8];
    for (int lane = 0; lane < 32; lane++) {
        const int g = lane / 4, t = lane % 4 * 2;
        for (int i = 0; i < 4; i++)
            for (int j = 0; j < 2; j++)
                a[g + i % 2 * 8][t + i / 2 * 8 + j] = widened(lanes[lane].a[i] >> (16 * j) & 0xffff);
        for (int i = 0; i < 2; i++)
            for (int j = 0; j < 2; j++)
                b[t + i * 8 + j][g] = widened(lanes[lane].b[i] >> (16 * j) & 0xffff);
    }
    for (int lane = 0; lane < 32; lane++)
        for (int i = 0; i < 4; i++)
            sums[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2] = lanes[lane].result[i];
    for (int row = 0; row < 16; row++)
        for (int k = 0; k < 16; k++)
            for (int column = 0; column < 8; column++)
                sums[row][column] += a[row][k] * b[k][column];
    for (int lane = 0; lane < 32; lane++)
        for (int i = 0; i < 4; i++)
            lanes[lane].result[i] = (float)sums[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
}

static void spread(Operands *lanes, bool transposed)
{
    for (int lane = 0; lane < 32; lane++)
        for (int matrix = 0; matrix < 4; matrix++) {
            bf16 pair[2];
            for (int j = 0; j < 2; j++) {
                const int along = lane % 4 * 2 + j, across = lane / 4;
                pair[j] = ((const bf16 *)lanes[matrix * 8 + (transposed ? along : across)].row)[transposed ? across : along];
            }
            lanes[lane].matrices[matrix] = pair[0] | (u32)pair[1] << 16;
        }
}

// The last lane to come does the work of all.
static void with_warp(const Operands &mine)
{
    static const char *const NAMES[] = {"nothing", "a shuffle", "an mma", "an ldmatrix", "an ldmatrix.trans"};
    Block &block = *current->block;
    const u32 lane = current->id % 32, start = current->id - lane;
    if (block.fibers.size() < start + 32)
        fail("%s in a warp of %zu threads", NAMES[mine.kind], block.fibers.size() - start);
    Warp &warp = block.warps[start / 32];
    warp.lanes[lane] = mine;
    if (++warp.arrived < 32)
        return suspend(IN_WARP);
    warp.arrived = 0;
    for (const Operands &other : warp.lanes)
        if (other.kind != mine.kind || other.mask != mine.mask)
            fail("the warp disagrees: %s (%d) and %s (%d)", NAMES[mine.kind], mine.mask, NAMES[other.kind], other.mask);
    if (mine.kind == SHUFFLE)
        for (u32 i = 0; i < 32; i++)
            *warp.lanes[i].result = warp.lanes[i ^ mine.mask].value;
    else if (mine.kind == MMA)
        multiply(warp.lanes);
    else
        spread(warp.lanes, mine.kind == TRANSPOSED);
    for (u32 i = 0; i < 32; i++)
        block.fibers[start + i]->state = READY;
}

} // namespace emulation

// Starts a launch; with `early`, runs what comes before `wait_for_predecessor`.
extern "C" void *emulation_begin(const emulation::Kernel *kernel, const emulation::Launch *launch, int early)
{
    using namespace emulation;
    Run *run = new Run;
    run->kernel = *kernel;
    run->launch = *launch;
    if (kernel->argument_bytes != launch->argument_bytes) {
        failed(*run, "%llu bytes of arguments, where the kernel has %llu", launch->argument_bytes, kernel->argument_bytes);
        return run;
    }
    if (launch->threads == 0 || launch->threads > kernel->most_threads || launch->grid[1] % kernel->cluster != 0) {
        failed(*run, "%u threads, where the kernel takes %u, %u blocks along y in clusters of %u", launch->threads,
               kernel->most_threads, launch->grid[1], kernel->cluster);
        return run;
    }
    run->arguments.resize(launch->argument_bytes + 64);
    run->arguments_at = run->arguments.data() + (64 - (size_t)run->arguments.data() % 64) % 64;
    memcpy(run->arguments_at, launch->arguments, launch->argument_bytes);
    for (u32 i = 0; i < launch->grid[0] * launch->grid[1] * launch->grid[2] / kernel->cluster; i++)
        run->order.push_back(i);
    arrange(run->order, launch->order, 1);
    for (u32 i = 0; i < 32; i++)
        run->lanes.push_back(i);
    arrange(run->lanes, launch->order, 2);
    run->gate_closed = early != 0;
    for (size_t i = 0; early && i < run->order.size() && !run->failed; i++) {
        run->begun.push_back(make_cluster(*run, run->order[i]));
        if (!run->failed)
            advance(*run, *run->begun.back());
    }
    return run;
}

// Ends it: 0, or 1 and a message.
extern "C" int emulation_end(void *begun, char *message, u64 bytes)
{
    using namespace emulation;
    std::unique_ptr<Run> run((Run *)begun);
    run->gate_closed = false;
    for (size_t i = 0; i < run->order.size() && !run->failed; i++) {
        if (run->begun.size() <= i)
            run->begun.push_back(make_cluster(*run, run->order[i]));
        Cluster &cluster = *run->begun[i];
        for (auto &block : cluster.blocks)
            for (Fiber *fiber : block->fibers)
                if (fiber->state == AT_GATE)
                    fiber->state = READY;
        if (!run->failed)
            advance(*run, cluster);
        end_cluster(*run, cluster);
        cluster.blocks.clear();
    }
    for (auto &cluster : run->begun)
        end_cluster(*run, *cluster);
    snprintf(message, bytes, "%s", run->message);
    return run->failed;
}

// Called by the compiler's own checks.
struct EmulationSource { const char *file; u32 line, column; };
extern "C" void __ubsan_handle_type_mismatch_v1(void *data, u64 address)
{
    const EmulationSource &source = *(const EmulationSource *)data;
    emulation::fail("%s:%u: address %llx is misaligned or null", source.file, source.line, address);
}
extern "C" void __ubsan_handle_out_of_bounds(void *data, u64 index)
{
    const EmulationSource &source = *(const EmulationSource *)data;
    emulation::fail("%s:%u: index %lld is beyond the array", source.file, source.line, (long long)index);
}

#define CLUSTER_KERNEL(name, Arguments, threads, cluster)                                                              \
    static void name##_body(const Arguments args);                                                                     \
    static void name##_enter(const void *args) { name##_body(*(const Arguments *)args); }                              \
    extern "C" const emulation::Kernel name##_kernel;                                                                  \
    const emulation::Kernel name##_kernel = {#name, name##_enter, sizeof(Arguments), threads, cluster};                \
    static void name##_body(const Arguments args)
#define BOUNDED_KERNEL(name, Arguments, threads) CLUSTER_KERNEL(name, Arguments, threads, 1)
#define KERNEL(name, Arguments) CLUSTER_KERNEL(name, Arguments, 1024, 1)

#define SHARED(type, name, count)                                                                                      \
    static const char name##_key = 0;                                                                                  \
    type *const name = (type *)emulation::shared_array(&name##_key, sizeof(type) * (count))
#define DYNAMIC_SHARED(type, name) type *const name = (type *)emulation::current->block->dynamic.base
// Boxes are swizzled by where they are in it.
#define SWIZZLED_SHARED(name) DYNAMIC_SHARED(char, name)

DEVICE void __syncthreads()
{
    using namespace emulation;
    Block &block = *current->block;
    if (++block.at_barrier < block.fibers.size())
        return suspend(AT_BARRIER);
    block.at_barrier = 0;
    for (Fiber *fiber : block.fibers)
        fiber->state = READY;
}

DEVICE void copy_async(void *to, const void *from, bool valid)
{
    using namespace emulation;
    address_in(current->block->dynamic, to, 16, "copying to");
    if ((size_t)from % 16 != 0)
        fail("copying from %p: not aligned to 16", from);
    memset(to, 0xff, 16);
    current->copies.push_back({(char *)to, (const char *)from, valid, current->groups});
}

DEVICE void copy_commit() { emulation::current->groups++; }

template <int PENDING> DEVICE void copy_wait()
{
    emulation::Fiber &fiber = *emulation::current;
    if (fiber.groups > PENDING)
        emulation::deliver(fiber, fiber.groups - PENDING);
}

DEVICE void prefetch_l2(const void *from, u32 bytes)
{
    if ((size_t)from % 16 != 0 || bytes % 16 != 0 || bytes == 0)
        emulation::fail("prefetching %u bytes from %p: not a multiple of 16", bytes, from);
    // They are there.
    (void)*(volatile const char *)from;
    (void)*((volatile const char *)from + bytes - 1);
}

DEVICE void wait_for_predecessor()
{
    if (emulation::current->block->cluster->run->gate_closed)
        emulation::suspend(emulation::AT_GATE);
}

DEVICE void release_successor() {}

DEVICE void cluster_sync()
{
    using namespace emulation;
    Cluster &cluster = *current->block->cluster;
    if (++cluster.at_barrier < cluster.blocks.size() * current->block->fibers.size())
        return suspend(AT_CLUSTER_BARRIER);
    cluster.at_barrier = 0;
    for (auto &block : cluster.blocks)
        for (Fiber *fiber : block->fibers)
            fiber->state = READY;
}

DEVICE float4 load_from_peer(const float *pointer, u32 rank)
{
    using namespace emulation;
    const Block &mine = *current->block;
    if (rank >= mine.cluster->blocks.size())
        fail("reading from block %u of a cluster of %zu", rank, mine.cluster->blocks.size());
    const Block &peer = *mine.cluster->blocks[rank];
    if (peer.left > 0)
        fail("reading from block %u of the cluster, which %u threads have left", rank, peer.left);
    address_in(mine.dynamic, pointer, 16, "reading a peer's");
    return *(const float4 *)(peer.dynamic.base + ((const char *)pointer - mine.dynamic.base));
}

DEVICE void mma(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1)
{
    emulation::Operands mine = {};
    mine.kind = emulation::MMA;
    mine.a[0] = a0, mine.a[1] = a1, mine.a[2] = a2, mine.a[3] = a3, mine.b[0] = b0, mine.b[1] = b1;
    mine.result = d;
    emulation::with_warp(mine);
}

DEVICE void emulated_matrices(emulation::Kind kind, u32 (&d)[4], const void *row)
{
    emulation::Operands mine = {};
    mine.kind = kind;
    mine.row = emulation::address_in(emulation::current->block->dynamic, row, 16, "loading a matrix from");
    mine.matrices = d;
    emulation::with_warp(mine);
}

// As warpgroup.cuh, which tells what these do.

// As `TensorMap` on the Rust side makes it for this.
struct TensorMap {
    const bf16 *matrix;
    u64 rows, k, box_rows, unused[12];
} __attribute__((aligned(64)));

struct CopyBarrier {
    u32 arrivals, missing, bytes, phase;
};

namespace emulation {

// Wakes who waits for copies, if nothing is missing.
static void look_at(CopyBarrier &barrier)
{
    if (barrier.missing > 0 || barrier.bytes > 0)
        return;
    barrier.missing = barrier.arrivals;
    barrier.phase++;
    for (Fiber *fiber : current->block->fibers)
        if (fiber->state == AT_COPY_BARRIER)
            fiber->state = READY;
}

static char *box_at(const void *pointer)
{
    const Region &region = current->block->dynamic;
    const long at = (const char *)pointer - region.base;
    if (at < 0 || at >= (long)region.bytes || at % 1024 != 0)
        fail("a box at byte %ld of %zu bytes of shared memory, where the swizzling does not begin", at, region.bytes);
    return region.base + at;
}

static void bring(const BoxCopy &copy)
{
    const TensorMap &map = *(const TensorMap *)copy.map;
    for (u32 row = 0; row < map.box_rows; row++)
        for (u32 vector = 0; vector < 8; vector++) {
            bf16 *to = (bf16 *)(copy.to + row * 128 + (vector ^ row % 8) * 16);
            for (u32 i = 0; i < 8; i++) {
                const u64 k = copy.k + vector * 8 + i, from = copy.row + row;
                to[i] = k < map.k && from < map.rows ? map.matrix[from * map.k + k] : 0;
            }
        }
    CopyBarrier &barrier = *(CopyBarrier *)copy.barrier;
    barrier.bytes -= (u32)map.box_rows * 128;
    look_at(barrier);
}

template <int TILES> FAST static void multiply_group(void *into, u64 a, u64 b, const char *shared, u32 thread)
{
    auto &sums = *(float(*)[TILES][4])into;
    auto row_of = [&](u64 operand, u32 row, float (&values)[16]) {
        const u32 at = (u32)(operand & 0x3fff) << 4, box = at / 1024 * 1024, first = at % 128;
        for (u32 i = 0; i < 16; i++) {
            const u32 byte = first + i * 2;
            values[i] = widened(*(const bf16 *)(shared + box + row * 128 + (byte / 16 ^ row % 8) * 16 + byte % 16));
        }
    };
    const u32 lane = thread % 32, first_row = thread / 32 % 4 * 16 + lane / 4;
    float rows[2][16];
    row_of(a, first_row, rows[0]);
    row_of(a, first_row + 8, rows[1]);
    for (u32 column = 0; column < TILES * 2; column++) {
        float values[16];
        row_of(b, column / 2 * 8 + lane % 4 * 2 + column % 2, values);
        for (u32 half = 0; half < 2; half++) {
            double sum = sums[column / 2][half * 2 + column % 2];
            for (u32 i = 0; i < 16; i++)
                sum += (double)rows[half][i] * values[i];
            sums[column / 2][half * 2 + column % 2] = (float)sum;
        }
    }
}

} // namespace emulation

DEVICE void barrier_init(CopyBarrier &barrier, u32 arrivals) { barrier = {arrivals, arrivals, 0, 0}; }

DEVICE void barriers_ready() {}

DEVICE void barrier_arrive(CopyBarrier &barrier)
{
    if (barrier.missing == 0)
        emulation::fail("one arrival too many at a barrier of %u", barrier.arrivals);
    barrier.missing--;
    emulation::look_at(barrier);
}

DEVICE void barrier_expect(CopyBarrier &barrier, u32 bytes)
{
    barrier.bytes += bytes;
    barrier_arrive(barrier);
}

DEVICE void barrier_wait(CopyBarrier &barrier, u32 parity)
{
    using namespace emulation;
    while (barrier.phase % 2 == parity) {
        std::vector<BoxCopy> &boxes = current->block->boxes, mine;
        for (size_t i = 0; i < boxes.size();)
            if (boxes[i].barrier == &barrier) {
                mine.push_back(boxes[i]);
                boxes.erase(boxes.begin() + i);
            } else {
                i++;
            }
        if (mine.empty())
            suspend(AT_COPY_BARRIER);
        for (const BoxCopy &copy : mine)
            bring(copy);
    }
}

enum Keep : u64 { READ_ONCE, READ_AGAIN };

DEVICE void copy_box(void *to, const TensorMap &map, int k, int row, CopyBarrier &barrier, Keep)
{
    using namespace emulation;
    char *box = box_at(to);
    if (box + map.box_rows * 128 > current->block->dynamic.base + current->block->dynamic.bytes)
        fail("a box of %llu rows beyond the %zu bytes of shared memory", map.box_rows, current->block->dynamic.bytes);
    memset(box, 0xff, map.box_rows * 128);
    current->block->boxes.push_back({box, &map, k, row, &barrier});
    // Who waits for it may have it.
    for (Fiber *fiber : current->block->fibers)
        if (fiber->state == AT_COPY_BARRIER)
            fiber->state = READY;
}

DEVICE void prefetch_map(const TensorMap &) {}

DEVICE u64 swizzled_operand(const void *from)
{
    return (u64)(emulation::box_at(from) - emulation::current->block->dynamic.base) >> 4;
}
DEVICE u64 next_k(u64 operand) { return operand + (16 * 2 >> 4); }

DEVICE void products_begin() {}
DEVICE void products_end() { emulation::current->product_groups++; }

template <int PENDING> DEVICE void products_wait()
{
    emulation::Fiber &fiber = *emulation::current;
    size_t done = 0;
    for (; done < fiber.products.size() && fiber.products[done].group + PENDING < fiber.product_groups; done++) {
        const emulation::Product &product = fiber.products[done];
        product.multiply(product.sums, product.a, product.b, fiber.block->dynamic.base, fiber.id);
    }
    fiber.products.erase(fiber.products.begin(), fiber.products.begin() + done);
}

template <int TILES> DEVICE void multiply(float (&sums)[TILES][4], u64 a, u64 b)
{
    emulation::Fiber &fiber = *emulation::current;
    fiber.products.push_back({emulation::multiply_group<TILES>, &sums, a, b, fiber.product_groups});
}
DEVICE void load_matrices(u32 (&d)[4], const void *row) { emulated_matrices(emulation::MATRICES, d, row); }
DEVICE void load_matrices_transposed(u32 (&d)[4], const void *row) { emulated_matrices(emulation::TRANSPOSED, d, row); }

DEVICE float float_of_bits(u32 bits)
{
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

DEVICE u32 bits_of_float(float value)
{
    u32 bits;
    memcpy(&bits, &value, 4);
    return bits;
}

DEVICE float exp2_fast(float power) { return power < -126.0f ? 0.0f : exp2f(power); }

// The compiler is told to join nothing.
DEVICE float multiply_rounded(float a, float b) { return a * b; }
DEVICE float add_rounded(float a, float b) { return a + b; }

DEVICE u32 emulated_bf16(float value)
{
    const u32 bits = bits_of_float(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return 0x7fff;
    return (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
}

DEVICE u32 pack_bf16(float low, float high) { return emulated_bf16(low) | emulated_bf16(high) << 16; }

DEVICE float shuffle_xor(float value, int mask)
{
    float result = 0.0f;
    emulation::Operands mine = {};
    mine.kind = emulation::SHUFFLE;
    mine.mask = mask;
    mine.value = value;
    mine.result = &result;
    emulation::with_warp(mine);
    return result;
}
