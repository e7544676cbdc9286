// Compiled against the installed libtorch into a shared object of its own, whose CUDA symbols stay open: it is loaded only
// where libtorch's CUDA half is there already to fill them.
#include "shim.h"

#include <ATen/core/CachingHostAllocator.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <memory>

namespace allocator = c10::cuda::CUDACachingAllocator;

struct GrootGraph
{
    // Kept beside its runnable form, so that its nodes can be counted.
    at::cuda::CUDAGraph graph{true};
    c10::cuda::MempoolId_t pool;
    c10::DeviceIndex device;
};

namespace
{

void say(char const* text, char* reason, size_t capacity) noexcept
{
    if (reason == nullptr || capacity == 0)
    {
        return;
    }
    size_t const length = std::min(std::strlen(text), capacity - 1);
    std::memcpy(reason, text, length);
    reason[length] = '\0';
}

template <typename Body>
int32_t guarded(char* reason, size_t capacity, Body&& body) noexcept
{
    try
    {
        body();
        return 0;
    }
    catch (c10::Error const& error)
    {
        say(error.what_without_backtrace(), reason, capacity);
    }
    catch (std::exception const& error)
    {
        say(error.what(), reason, capacity);
    }
    catch (...)
    {
        say("a C++ exception of unknown type", reason, capacity);
    }
    return 1;
}

c10::cuda::CUDAStream unpack(GrootStream const& stream)
{
    return c10::cuda::CUDAStream::unpack3(stream.id, static_cast<c10::DeviceIndex>(stream.device),
                                          static_cast<c10::DeviceType>(stream.kind));
}

GrootStream pack(c10::cuda::CUDAStream const& stream)
{
    c10::StreamData3 const data = stream.pack3();
    return {data.stream_id, static_cast<int64_t>(data.device_index), static_cast<int64_t>(data.device_type)};
}

// Ends what a failed capture leaves open: the capture of the stream, and the redirection of allocations into the pool, both
// the device's and the host's. Each of these asks the graph, which is about to be gone, whether an allocation is its own.
void close(GrootGraph& capture) noexcept
{
    char reason[1];
    if (guarded(reason, sizeof reason, [&] { capture.graph.capture_end(); }) == 0)
    {
        return;
    }
    // Of these only what was begun and not ended already succeeds.
    guarded(reason, sizeof reason, [&] {
        allocator::endAllocateToPool(capture.device, capture.pool);
        allocator::releasePool(capture.device, capture.pool);
    });
    guarded(reason, sizeof reason, [&] {
        at::HostAllocator* const host = at::getHostAllocator(at::kCUDA);
        host->end_allocate_to_pool(capture.pool);
        host->release_pool(capture.pool);
    });
    // The error that ended the capture is not one of whatever comes next.
    static_cast<void>(cudaGetLastError());
}

} // namespace

uint32_t groot_torch_cuda_abi(void)
{
    return GROOT_TORCH_CUDA_ABI;
}

int32_t groot_stream_take(int32_t device, int32_t urgent, GrootStream* stream, char* reason, size_t capacity)
{
    return guarded(reason, capacity, [&] {
        bool const high_priority = urgent != 0;
        *stream = pack(c10::cuda::getStreamFromPool(high_priority, static_cast<c10::DeviceIndex>(device)));
    });
}

int32_t groot_stream_current(int32_t device, GrootStream* stream, char* reason, size_t capacity)
{
    return guarded(reason, capacity, [&] {
        *stream = pack(c10::cuda::getCurrentCUDAStream(static_cast<c10::DeviceIndex>(device)));
    });
}

int32_t groot_stream_enter(GrootStream const* stream, char* reason, size_t capacity)
{
    return guarded(reason, capacity, [&] { c10::cuda::setCurrentCUDAStream(unpack(*stream)); });
}

int32_t groot_stream_wait(GrootStream const* stream, char* reason, size_t capacity)
{
    return guarded(reason, capacity, [&] { unpack(*stream).synchronize(); });
}

int32_t groot_stream_raw(GrootStream const* stream, void** raw, char* reason, size_t capacity)
{
    return guarded(reason, capacity, [&] { *raw = unpack(*stream).stream(); });
}

int32_t groot_device_current(int32_t* device, char* reason, size_t capacity)
{
    return guarded(reason, capacity, [&] { *device = c10::cuda::current_device(); });
}

int32_t groot_device_enter(int32_t device, char* reason, size_t capacity)
{
    return guarded(reason, capacity, [&] { c10::cuda::set_device(static_cast<c10::DeviceIndex>(device)); });
}

int32_t groot_pool_new(GrootPool* pool, char* reason, size_t capacity)
{
    return guarded(reason, capacity, [&] {
        c10::cuda::MempoolId_t const id = at::cuda::graph_pool_handle();
        *pool = {id.first, id.second};
    });
}

int32_t groot_graph_begin(GrootPool const* pool, GrootGraph** graph, char* reason, size_t capacity)
{
    std::unique_ptr<GrootGraph> capture;
    int32_t const status = guarded(reason, capacity, [&] {
        capture = std::make_unique<GrootGraph>();
        capture->pool = {pool->first, pool->second};
        capture->device = c10::cuda::current_device();
        capture->graph.capture_begin(capture->pool, cudaStreamCaptureModeThreadLocal);
        *graph = capture.release();
    });
    if (status != 0 && capture)
    {
        close(*capture);
    }
    return status;
}

int32_t groot_graph_end(GrootGraph* graph, size_t* nodes, char* reason, size_t capacity)
{
    std::unique_ptr<GrootGraph> capture(graph);
    bool ended = false;
    int32_t const status = guarded(reason, capacity, [&] {
        capture->graph.capture_end();
        ended = true;
        C10_CUDA_CHECK(cudaGraphGetNodes(capture->graph.raw_cuda_graph(), nullptr, nodes));
        capture->graph.instantiate();
    });
    if (status == 0)
    {
        // The caller has it still.
        static_cast<void>(capture.release());
    }
    else if (!ended)
    {
        close(*capture);
    }
    return status;
}

void groot_graph_abandon(GrootGraph* graph)
{
    std::unique_ptr<GrootGraph> capture(graph);
    close(*capture);
}

int32_t groot_graph_replay(GrootGraph* graph, char* reason, size_t capacity)
{
    return guarded(reason, capacity, [&] { graph->graph.replay(); });
}

void groot_graph_delete(GrootGraph* graph)
{
    char reason[1];
    guarded(reason, sizeof reason, [&] { graph->graph.reset(); });
    delete graph;
}

int32_t groot_event_new(void** event, char* reason, size_t capacity)
{
    return guarded(reason, capacity, [&] {
        cudaEvent_t made = nullptr;
        C10_CUDA_CHECK(cudaEventCreateWithFlags(&made, cudaEventDefault));
        *event = made;
    });
}

int32_t groot_event_record(void* event, GrootStream const* stream, char* reason, size_t capacity)
{
    return guarded(reason, capacity, [&] {
        C10_CUDA_CHECK(cudaEventRecord(static_cast<cudaEvent_t>(event), unpack(*stream).stream()));
    });
}

int32_t groot_event_wait(void* event, char* reason, size_t capacity)
{
    return guarded(reason, capacity, [&] { C10_CUDA_CHECK(cudaEventSynchronize(static_cast<cudaEvent_t>(event))); });
}

int32_t groot_event_hold(void* event, GrootStream const* stream, char* reason, size_t capacity)
{
    return guarded(reason, capacity, [&] {
        C10_CUDA_CHECK(cudaStreamWaitEvent(unpack(*stream).stream(), static_cast<cudaEvent_t>(event), 0));
    });
}

int32_t groot_event_elapsed(void* from, void* to, float* elapsed, char* reason, size_t capacity)
{
    return guarded(reason, capacity, [&] {
        C10_CUDA_CHECK(
            cudaEventElapsedTime(elapsed, static_cast<cudaEvent_t>(from), static_cast<cudaEvent_t>(to)));
    });
}

void groot_event_delete(void* event)
{
    static_cast<void>(cudaEventDestroy(static_cast<cudaEvent_t>(event)));
}

int32_t groot_pinned_new(size_t bytes, void** memory, char* reason, size_t capacity)
{
    return guarded(reason, capacity, [&] { C10_CUDA_CHECK(cudaHostAlloc(memory, bytes, cudaHostAllocDefault)); });
}

void groot_pinned_delete(void* memory)
{
    static_cast<void>(cudaFreeHost(memory));
}

int32_t groot_copy(void* to, void const* from, size_t bytes, GrootStream const* stream, char* reason, size_t capacity)
{
    return guarded(reason, capacity, [&] {
        C10_CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, unpack(*stream).stream()));
    });
}

int32_t groot_memory(int32_t device, GrootMemory* memory, char* reason, size_t capacity)
{
    return guarded(reason, capacity, [&] {
        auto const stats = allocator::getDeviceStats(static_cast<c10::DeviceIndex>(device));
        auto const all = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
        auto const& allocated = stats.allocated_bytes[all];
        auto const& reserved = stats.reserved_bytes[all];
        *memory = {allocated.current, allocated.peak, reserved.current, reserved.peak};
    });
}

int32_t groot_memory_reset_peaks(int32_t device, char* reason, size_t capacity)
{
    return guarded(reason, capacity, [&] { allocator::resetPeakStats(static_cast<c10::DeviceIndex>(device)); });
}

int32_t groot_memory_trim(char* reason, size_t capacity)
{
    return guarded(reason, capacity, [&] { allocator::emptyCache(); });
}
