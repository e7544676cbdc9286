// What of libtorch's CUDA half the program uses beyond tensors: streams, captured graphs, events, pinned memory and the
// allocator's counters.
//
// Every function that can fail returns 0, or else 1 with the reason in `reason`, cut to `capacity` bytes with the closing
// zero. No exception leaves any of them.
#ifndef GROOT_TORCH_CUDA_SHIM_H
#define GROOT_TORCH_CUDA_SHIM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C"
{
#endif

#define GROOT_EXPORT __attribute__((visibility("default")))

// Changed with every change of a function below.
#define GROOT_TORCH_CUDA_ABI 2

// A stream as libtorch packs it into numbers.
typedef struct
{
    int64_t id;
    int64_t device;
    int64_t kind;
} GrootStream;

// Which memory of the allocator a graph keeps for itself.
typedef struct
{
    uint64_t first;
    uint64_t second;
} GrootPool;

// Bytes.
typedef struct
{
    int64_t allocated;
    int64_t allocated_peak;
    int64_t reserved;
    int64_t reserved_peak;
} GrootMemory;

typedef struct GrootGraph GrootGraph;

GROOT_EXPORT uint32_t groot_torch_cuda_abi(void);

// One of the streams that libtorch keeps for a device; what is queued on an urgent one goes before what waits on others.
GROOT_EXPORT int32_t groot_stream_take(int32_t device, int32_t urgent, GrootStream* stream, char* reason,
                                       size_t capacity);
// The stream on which libtorch queues this thread's work for a device.
GROOT_EXPORT int32_t groot_stream_current(int32_t device, GrootStream* stream, char* reason, size_t capacity);
// Makes `stream` that one.
GROOT_EXPORT int32_t groot_stream_enter(GrootStream const* stream, char* reason, size_t capacity);
GROOT_EXPORT int32_t groot_stream_wait(GrootStream const* stream, char* reason, size_t capacity);
// The cudaStream_t of a stream.
GROOT_EXPORT int32_t groot_stream_raw(GrootStream const* stream, void** raw, char* reason, size_t capacity);

GROOT_EXPORT int32_t groot_device_current(int32_t* device, char* reason, size_t capacity);
GROOT_EXPORT int32_t groot_device_enter(int32_t device, char* reason, size_t capacity);

GROOT_EXPORT int32_t groot_pool_new(GrootPool* pool, char* reason, size_t capacity);

// Begins to capture what this thread queues on the current stream of the current device; other threads go on as ever.
GROOT_EXPORT int32_t groot_graph_begin(GrootPool const* pool, GrootGraph** graph, char* reason, size_t capacity);
// Ends the capture and makes the graph ready to run; `nodes` is the number of its nodes. On failure the graph is gone.
GROOT_EXPORT int32_t groot_graph_end(GrootGraph* graph, size_t* nodes, char* reason, size_t capacity);
// Ends a capture in which something went wrong; the graph is gone.
GROOT_EXPORT void groot_graph_abandon(GrootGraph* graph);
// Queues the captured work on the current stream.
GROOT_EXPORT int32_t groot_graph_replay(GrootGraph* graph, char* reason, size_t capacity);
// The graph must not be running any more.
GROOT_EXPORT void groot_graph_delete(GrootGraph* graph);

GROOT_EXPORT int32_t groot_event_new(void** event, char* reason, size_t capacity);
GROOT_EXPORT int32_t groot_event_record(void* event, GrootStream const* stream, char* reason, size_t capacity);
// Waits until the event has passed; one that was never recorded has.
GROOT_EXPORT int32_t groot_event_wait(void* event, char* reason, size_t capacity);
// What is queued on `stream` from now on waits for the event.
GROOT_EXPORT int32_t groot_event_hold(void* event, GrootStream const* stream, char* reason, size_t capacity);
// Milliseconds between two events that have passed.
GROOT_EXPORT int32_t groot_event_elapsed(void* from, void* to, float* elapsed, char* reason, size_t capacity);
GROOT_EXPORT void groot_event_delete(void* event);

GROOT_EXPORT int32_t groot_pinned_new(size_t bytes, void** memory, char* reason, size_t capacity);
GROOT_EXPORT void groot_pinned_delete(void* memory);
// Queues a copy between pinned memory and a device; comes back at once.
GROOT_EXPORT int32_t groot_copy(void* to, void const* from, size_t bytes, GrootStream const* stream, char* reason,
                                size_t capacity);

GROOT_EXPORT int32_t groot_memory(int32_t device, GrootMemory* memory, char* reason, size_t capacity);
// From now on the peaks count anew.
GROOT_EXPORT int32_t groot_memory_reset_peaks(int32_t device, char* reason, size_t capacity);
// Gives memory that the allocator keeps for later back to the device.
GROOT_EXPORT int32_t groot_memory_trim(char* reason, size_t capacity);

#ifdef __cplusplus
}
#endif

#endif
