// One source for the C++ interfaces of TensorRT 8.5 to 11. It is compiled once for each major version whose headers are
// found, and the objects are linked into one binary. Hence the renaming below: an inline function or a vtable of one major
// must never stand in for that of another. Nothing here is linked against TensorRT: the libraries' entry points come in as
// arguments, and everything else is a virtual call.
#include <NvInferVersion.h>

#define GROOT_JOIN_EXPANDED(a, b) a##b
#define GROOT_JOIN(a, b) GROOT_JOIN_EXPANDED(a, b)
#define GROOT_OF_MAJOR(name) GROOT_JOIN(name, NV_TENSORRT_MAJOR)

#define nvinfer1 GROOT_OF_MAJOR(nvinfer1_)
#define nvonnxparser GROOT_OF_MAJOR(nvonnxparser_)
#define GrootLogger GROOT_OF_MAJOR(GrootLogger_)
#define GrootBuilder GROOT_OF_MAJOR(GrootBuilder_)
#define GrootBlob GROOT_OF_MAJOR(GrootBlob_)
#define GrootRuntime GROOT_OF_MAJOR(GrootRuntime_)
#define GrootEngine GROOT_OF_MAJOR(GrootEngine_)
#define GrootContext GROOT_OF_MAJOR(GrootContext_)

#include "shim.h"

#include <NvInfer.h>
#include <NvOnnxParser.h>

#include <cstdint>
#include <exception>
#include <limits>
#include <memory>
#include <new>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#define GROOT_AT_LEAST(major, minor) \
    (NV_TENSORRT_MAJOR > (major) || (NV_TENSORRT_MAJOR == (major) && NV_TENSORRT_MINOR >= (minor)))

namespace trt = nvinfer1;

namespace
{

class Logger final : public trt::ILogger
{
public:
    Logger(GrootLogFn log, void* user)
        : mLog(log)
        , mUser(user)
    {
    }

    void log(Severity severity, char const* text) noexcept override
    {
        mLog(mUser, static_cast<int32_t>(severity), text == nullptr ? "" : text);
    }

private:
    GrootLogFn mLog;
    void* mUser;
};

// TensorRT's functions are declared noexcept, but allocations made here can throw, and nothing may unwind into Rust.
template <typename Body>
auto guarded(trt::ILogger* logger, decltype(std::declval<Body>()()) onThrow, Body&& body) noexcept
    -> decltype(body())
{
    try
    {
        return body();
    }
    catch (std::exception const& error)
    {
        if (logger != nullptr)
        {
            logger->log(trt::ILogger::Severity::kERROR, error.what());
        }
    }
    catch (...)
    {
        if (logger != nullptr)
        {
            logger->log(trt::ILogger::Severity::kERROR, "a C++ exception of unknown type");
        }
    }
    return onThrow;
}

// Fewer than `rank` dimensions come back if TensorRT knows more than the table has room for, which it never does (8).
void copyDims(trt::Dims const& from, int64_t* dims, int32_t* rank)
{
    *rank = from.nbDims;
    for (int32_t i = 0; i < from.nbDims && i < 8; ++i)
    {
        dims[i] = from.d[i];
    }
}

bool toDims(int64_t const* dims, int32_t rank, trt::Dims* out)
{
    using Extent = std::remove_reference_t<decltype(out->d[0])>;
    if (rank < 0 || rank > trt::Dims::MAX_DIMS || rank > 8)
    {
        return false;
    }
    out->nbDims = rank;
    for (int32_t i = 0; i < rank; ++i)
    {
        if (dims[i] > static_cast<int64_t>(std::numeric_limits<Extent>::max()) || dims[i] < -1)
        {
            return false;
        }
        out->d[i] = static_cast<Extent>(dims[i]);
    }
    return true;
}

#if NV_TENSORRT_MAJOR >= 10
class Progress final : public trt::IProgressMonitor
{
public:
    explicit Progress(GrootProgress const& calls)
        : mCalls(calls)
    {
    }

    void phaseStart(char const* phase, char const* parent, int32_t steps) noexcept override
    {
        mCalls.start(mCalls.user, phase, parent, steps);
    }

    bool stepComplete(char const* phase, int32_t step) noexcept override
    {
        return mCalls.step(mCalls.user, phase, step) != 0;
    }

    void phaseFinish(char const* phase) noexcept override
    {
        mCalls.finish(mCalls.user, phase);
    }

private:
    GrootProgress mCalls;
};
#endif

#if NV_TENSORRT_MAJOR < 11
// The entropy and the min-max calibrator differ only in their base class, which tells TensorRT which it is.
template <typename Base>
class Calibrator final : public Base
{
public:
    explicit Calibrator(GrootCalibrator const& calls)
        : mCalls(calls)
    {
    }

    int32_t getBatchSize() const noexcept override
    {
        return mCalls.batch_size;
    }

    bool getBatch(void* bindings[], char const* names[], int32_t count) noexcept override
    {
        return mCalls.next(mCalls.user, bindings, names, count) != 0;
    }

    void const* readCalibrationCache(std::size_t& size) noexcept override
    {
        size = 0;
        return mCalls.read_cache(mCalls.user, &size);
    }

    void writeCalibrationCache(void const* data, std::size_t size) noexcept override
    {
        mCalls.write_cache(mCalls.user, data, size);
    }

private:
    GrootCalibrator mCalls;
};
#endif

} // namespace

struct GrootLogger
{
    Logger impl;
};

// Headers and libraries that both call themselves 8.6 place the parser's destructor at different ends of its list of virtual
// functions; deleting it may call something else. The place of destroy() never changed before it went with version 10.
struct DestroyParser
{
    void operator()(nvonnxparser::IParser* parser) const noexcept
    {
#if NV_TENSORRT_MAJOR < 10
        parser->destroy();
#else
        delete parser;
#endif
    }
};

// Members are destroyed from the last to the first: what TensorRT still points to goes after what points to it.
struct GrootBuilder
{
    Logger* logger = nullptr;
#if NV_TENSORRT_MAJOR >= 10
    std::unique_ptr<Progress> progress;
#endif
#if NV_TENSORRT_MAJOR < 11
    std::unique_ptr<trt::IInt8Calibrator> calibrator;
#endif
    std::unique_ptr<trt::IBuilder> builder;
    std::unique_ptr<trt::INetworkDefinition> network;
    std::unique_ptr<trt::IBuilderConfig> config;
    std::unique_ptr<trt::ITimingCache> timingCache;
    std::unique_ptr<nvonnxparser::IParser, DestroyParser> parser;
};

struct GrootBlob
{
    std::unique_ptr<trt::IHostMemory> memory;
};

struct GrootRuntime
{
    Logger* logger = nullptr;
    std::unique_ptr<trt::IRuntime> runtime;
};

struct GrootEngine
{
    Logger* logger = nullptr;
    std::unique_ptr<trt::ICudaEngine> engine;
};

struct GrootContext
{
    Logger* logger = nullptr;
    trt::ICudaEngine* engine = nullptr;
    std::unique_ptr<trt::IExecutionContext> context;
};

namespace
{

using CreateFn = void* (*)(void* logger, int32_t version);
using CreateParserFn = void* (*)(void* network, void* logger, int version);

// What an entry point returned. Those of 11.4's lean runtime add a base class's offset to a null pointer when they fail (as
// without a GPU), so whatever lies in the first page, where nothing can, is null too.
template <typename Interface>
Interface* created(void* address)
{
    constexpr std::uintptr_t kFIRST_PAGE = 4096;
    return reinterpret_cast<std::uintptr_t>(address) < kFIRST_PAGE ? nullptr : static_cast<Interface*>(address);
}

GrootLogger* loggerCreate(GrootLogFn log, void* user)
{
    return new (std::nothrow) GrootLogger{Logger(log, user)};
}

void loggerDestroy(GrootLogger* logger)
{
    delete logger;
}

// ---- builder ----

GrootBuilder* builderCreate(void* entry, GrootLogger* logger, int32_t stronglyTyped, int32_t* status)
{
    *status = GROOT_EXCEPTION;
    return guarded(&logger->impl, static_cast<GrootBuilder*>(nullptr), [&]() -> GrootBuilder* {
        uint32_t flags = 0;
#if NV_TENSORRT_MAJOR < 10
        flags |= 1U << static_cast<uint32_t>(trt::NetworkDefinitionCreationFlag::kEXPLICIT_BATCH);
        if (stronglyTyped != 0)
        {
            *status = GROOT_UNSUPPORTED;
            return nullptr;
        }
#elif NV_TENSORRT_MAJOR == 10
        if (stronglyTyped != 0)
        {
            flags |= 1U << static_cast<uint32_t>(trt::NetworkDefinitionCreationFlag::kSTRONGLY_TYPED);
        }
#else
        // Since 11 every network is strongly typed.
        if (stronglyTyped == 0)
        {
            *status = GROOT_UNSUPPORTED;
            return nullptr;
        }
#endif
        *status = GROOT_FAILED;
        auto made = std::make_unique<GrootBuilder>();
        made->logger = &logger->impl;
        auto const create = reinterpret_cast<CreateFn>(entry);
        // The entry point wants the base class's address, as a void pointer.
        made->builder.reset(
            created<trt::IBuilder>(create(static_cast<trt::ILogger*>(&logger->impl), NV_TENSORRT_VERSION)));
        if (!made->builder)
        {
            return nullptr;
        }
        made->network.reset(made->builder->createNetworkV2(flags));
        made->config.reset(made->builder->createBuilderConfig());
        if (!made->network || !made->config)
        {
            return nullptr;
        }
        *status = GROOT_OK;
        return made.release();
    });
}

void builderDestroy(GrootBuilder* builder)
{
    delete builder;
}

int32_t builderHasFast(GrootBuilder* builder, int32_t flag)
{
#if NV_TENSORRT_MAJOR < 11
    switch (flag)
    {
    case GROOT_FLAG_FP16: return builder->builder->platformHasFastFp16() ? 1 : 0;
    case GROOT_FLAG_INT8: return builder->builder->platformHasFastInt8() ? 1 : 0;
    case GROOT_FLAG_TF32: return builder->builder->platformHasTf32() ? 1 : 0;
    default: return -1;
    }
#else
    (void) builder;
    (void) flag;
    return -1;
#endif
}

int32_t builderParse(GrootBuilder* builder, void* entry, char const* path, GrootTextFn problem, void* user)
{
    return guarded(builder->logger, int32_t{GROOT_EXCEPTION}, [&]() -> int32_t {
        auto const create = reinterpret_cast<CreateParserFn>(entry);
        builder->parser.reset(created<nvonnxparser::IParser>(
            create(builder->network.get(), static_cast<trt::ILogger*>(builder->logger), NV_ONNX_PARSER_VERSION)));
        if (!builder->parser)
        {
            return GROOT_FAILED;
        }
        if (builder->parser->parseFromFile(path, static_cast<int>(trt::ILogger::Severity::kWARNING)))
        {
            return GROOT_OK;
        }
        for (int32_t i = 0; i < builder->parser->getNbErrors(); ++i)
        {
            auto const* error = builder->parser->getError(i);
            if (error == nullptr)
            {
                continue;
            }
            std::string text = error->desc() == nullptr ? "no description" : error->desc();
            text += " (node " + std::to_string(error->node());
#if NV_TENSORRT_MAJOR >= 10
            if (error->nodeName() != nullptr)
            {
                text += std::string(" \"") + error->nodeName() + '"';
            }
            if (error->nodeOperator() != nullptr)
            {
                text += std::string(", operator ") + error->nodeOperator();
            }
#endif
            text += ')';
            problem(user, text.data(), text.size());
        }
        return GROOT_FAILED;
    });
}

int32_t builderTensorCount(GrootBuilder* builder)
{
    return builder->network->getNbInputs() + builder->network->getNbOutputs();
}

int32_t builderTensor(GrootBuilder* builder, int32_t index, GrootTensor* out)
{
    auto const inputs = builder->network->getNbInputs();
    if (index < 0 || index >= builderTensorCount(builder))
    {
        return GROOT_ARGUMENT;
    }
    auto const* tensor = index < inputs ? builder->network->getInput(index) : builder->network->getOutput(index - inputs);
    if (tensor == nullptr)
    {
        return GROOT_ARGUMENT;
    }
    out->name = tensor->getName();
    out->is_input = index < inputs ? 1 : 0;
    out->data_type = static_cast<int32_t>(tensor->getType());
    out->on_host = tensor->isShapeTensor() ? 1 : 0;
    copyDims(tensor->getDimensions(), out->dims, &out->rank);
    return GROOT_OK;
}

int32_t builderLayerCount(GrootBuilder* builder)
{
    return builder->network->getNbLayers();
}

char const* layerKind(trt::LayerType kind)
{
    switch (kind)
    {
    case trt::LayerType::kACTIVATION: return "activation";
    case trt::LayerType::kCONSTANT: return "constant";
    case trt::LayerType::kCONVOLUTION: return "convolution";
    case trt::LayerType::kDEQUANTIZE: return "dequantise";
    case trt::LayerType::kELEMENTWISE: return "elementwise";
    case trt::LayerType::kMATRIX_MULTIPLY: return "matrix_multiply";
#if GROOT_AT_LEAST(8, 6)
    case trt::LayerType::kCAST: return "cast";
    case trt::LayerType::kNORMALIZATION: return "normalisation";
#endif
    case trt::LayerType::kQUANTIZE: return "quantise";
    case trt::LayerType::kREDUCE: return "reduce";
    case trt::LayerType::kSHUFFLE: return "shuffle";
    case trt::LayerType::kSLICE: return "slice";
    case trt::LayerType::kSOFTMAX: return "softmax";
    case trt::LayerType::kUNARY: return "unary";
    default: return "other";
    }
}

int32_t builderLayer(GrootBuilder* builder, int32_t index, char const** name, char const** kind)
{
    if (index < 0 || index >= builder->network->getNbLayers())
    {
        return GROOT_ARGUMENT;
    }
    auto const* layer = builder->network->getLayer(index);
    *name = layer->getName();
    *kind = layerKind(layer->getType());
    return GROOT_OK;
}

int32_t builderLayerInF32(GrootBuilder* builder, int32_t index)
{
#if NV_TENSORRT_MAJOR < 11
    if (index < 0 || index >= builder->network->getNbLayers())
    {
        return GROOT_ARGUMENT;
    }
    auto* layer = builder->network->getLayer(index);
    for (int32_t i = 0; i < layer->getNbOutputs(); ++i)
    {
        auto const* output = layer->getOutput(i);
        // Integers, booleans and shapes have no precision to choose.
        if (output == nullptr || output->isShapeTensor()
            || (output->getType() != trt::DataType::kFLOAT && output->getType() != trt::DataType::kHALF))
        {
            return GROOT_ARGUMENT;
        }
    }
    layer->setPrecision(trt::DataType::kFLOAT);
    for (int32_t i = 0; i < layer->getNbOutputs(); ++i)
    {
        layer->setOutputType(i, trt::DataType::kFLOAT);
    }
    return GROOT_OK;
#else
    (void) builder;
    (void) index;
    return GROOT_UNSUPPORTED;
#endif
}

int32_t builderSetFlag(GrootBuilder* builder, int32_t flag, int32_t on)
{
    auto const set = [&](trt::BuilderFlag which) -> int32_t {
        if (on != 0)
        {
            builder->config->setFlag(which);
        }
        else
        {
            builder->config->clearFlag(which);
        }
        return GROOT_OK;
    };
    switch (flag)
    {
#if NV_TENSORRT_MAJOR < 11
    case GROOT_FLAG_FP16: return set(trt::BuilderFlag::kFP16);
    case GROOT_FLAG_INT8: return set(trt::BuilderFlag::kINT8);
    case GROOT_FLAG_OBEY_PRECISION: return set(trt::BuilderFlag::kOBEY_PRECISION_CONSTRAINTS);
    case GROOT_FLAG_PREFER_PRECISION: return set(trt::BuilderFlag::kPREFER_PRECISION_CONSTRAINTS);
#endif
#if NV_TENSORRT_MAJOR >= 9 && NV_TENSORRT_MAJOR < 11
    case GROOT_FLAG_BF16: return set(trt::BuilderFlag::kBF16);
#endif
    case GROOT_FLAG_TF32: return set(trt::BuilderFlag::kTF32);
#if GROOT_AT_LEAST(8, 6)
    case GROOT_FLAG_VERSION_COMPATIBLE: return set(trt::BuilderFlag::kVERSION_COMPATIBLE);
#endif
    case GROOT_FLAG_DETAILED_PROFILING:
        builder->config->setProfilingVerbosity(
            on != 0 ? trt::ProfilingVerbosity::kDETAILED : trt::ProfilingVerbosity::kLAYER_NAMES_ONLY);
        return GROOT_OK;
    case GROOT_FLAG_DISABLE_TIMING_CACHE: return set(trt::BuilderFlag::kDISABLE_TIMING_CACHE);
    default: return GROOT_UNSUPPORTED;
    }
}

int32_t builderSetWorkspace(GrootBuilder* builder, size_t bytes)
{
    builder->config->setMemoryPoolLimit(trt::MemoryPoolType::kWORKSPACE, bytes);
    return GROOT_OK;
}

int32_t builderSetOptimisationLevel(GrootBuilder* builder, int32_t level)
{
#if GROOT_AT_LEAST(8, 6)
    builder->config->setBuilderOptimizationLevel(level);
    return GROOT_OK;
#else
    (void) builder;
    (void) level;
    return GROOT_UNSUPPORTED;
#endif
}

int32_t builderAddProfile(GrootBuilder* builder, char const* const* names, int32_t const* ranks, int64_t const* dims,
    int32_t count, int32_t forCalibration)
{
    return guarded(builder->logger, int32_t{GROOT_EXCEPTION}, [&]() -> int32_t {
        // The builder owns the profile.
        auto* profile = builder->builder->createOptimizationProfile();
        if (profile == nullptr)
        {
            return GROOT_FAILED;
        }
        constexpr trt::OptProfileSelector kSELECTORS[3]
            = {trt::OptProfileSelector::kMIN, trt::OptProfileSelector::kOPT, trt::OptProfileSelector::kMAX};
        for (int32_t i = 0; i < count; ++i)
        {
            for (int32_t which = 0; which < 3; ++which)
            {
                trt::Dims shape{};
                if (!toDims(dims + (i * 3 + which) * 8, ranks[i], &shape))
                {
                    return GROOT_ARGUMENT;
                }
                if (!profile->setDimensions(names[i], kSELECTORS[which], shape))
                {
                    return GROOT_FAILED;
                }
            }
        }
        if (!profile->isValid())
        {
            return GROOT_FAILED;
        }
        if (forCalibration != 0)
        {
#if NV_TENSORRT_MAJOR < 11
            return builder->config->setCalibrationProfile(profile) ? GROOT_OK : GROOT_FAILED;
#else
            return GROOT_UNSUPPORTED;
#endif
        }
        return builder->config->addOptimizationProfile(profile) >= 0 ? GROOT_OK : GROOT_FAILED;
    });
}

int32_t builderSetTimingCache(GrootBuilder* builder, void const* data, size_t size)
{
    builder->timingCache.reset(builder->config->createTimingCache(data, size));
    if (!builder->timingCache)
    {
        return GROOT_FAILED;
    }
    // A cache of another GPU or version is refused rather than used.
    return builder->config->setTimingCache(*builder->timingCache, false) ? GROOT_OK : GROOT_FAILED;
}

GrootBlob* builderTimingCache(GrootBuilder* builder)
{
    return guarded(builder->logger, static_cast<GrootBlob*>(nullptr), [&]() -> GrootBlob* {
        auto const* cache = builder->config->getTimingCache();
        if (cache == nullptr)
        {
            return nullptr;
        }
        auto blob = std::make_unique<GrootBlob>();
        blob->memory.reset(cache->serialize());
        return blob->memory ? blob.release() : nullptr;
    });
}

int32_t builderSetCalibrator(GrootBuilder* builder, int32_t minMax, GrootCalibrator const* calls)
{
#if NV_TENSORRT_MAJOR < 11
    return guarded(builder->logger, int32_t{GROOT_EXCEPTION}, [&]() -> int32_t {
        if (minMax != 0)
        {
            builder->calibrator = std::make_unique<Calibrator<trt::IInt8MinMaxCalibrator>>(*calls);
        }
        else
        {
            builder->calibrator = std::make_unique<Calibrator<trt::IInt8EntropyCalibrator2>>(*calls);
        }
        builder->config->setInt8Calibrator(builder->calibrator.get());
        return GROOT_OK;
    });
#else
    (void) builder;
    (void) minMax;
    (void) calls;
    return GROOT_UNSUPPORTED;
#endif
}

int32_t builderSetProgress(GrootBuilder* builder, GrootProgress const* calls)
{
#if NV_TENSORRT_MAJOR >= 10
    return guarded(builder->logger, int32_t{GROOT_EXCEPTION}, [&]() -> int32_t {
        builder->progress = std::make_unique<Progress>(*calls);
        builder->config->setProgressMonitor(builder->progress.get());
        return GROOT_OK;
    });
#else
    (void) builder;
    (void) calls;
    return GROOT_UNSUPPORTED;
#endif
}

GrootBlob* builderBuild(GrootBuilder* builder, int32_t* status)
{
    *status = GROOT_EXCEPTION;
    return guarded(builder->logger, static_cast<GrootBlob*>(nullptr), [&]() -> GrootBlob* {
        auto blob = std::make_unique<GrootBlob>();
        blob->memory.reset(builder->builder->buildSerializedNetwork(*builder->network, *builder->config));
        *status = blob->memory ? GROOT_OK : GROOT_FAILED;
        return blob->memory ? blob.release() : nullptr;
    });
}

// ---- blobs ----

void const* blobData(GrootBlob const* blob)
{
    return blob->memory->data();
}

size_t blobSize(GrootBlob const* blob)
{
    return blob->memory->size();
}

void blobDestroy(GrootBlob* blob)
{
    delete blob;
}

// ---- runtime ----

GrootRuntime* runtimeCreate(void* entry, GrootLogger* logger, int32_t* status)
{
    *status = GROOT_EXCEPTION;
    return guarded(&logger->impl, static_cast<GrootRuntime*>(nullptr), [&]() -> GrootRuntime* {
        *status = GROOT_FAILED;
        auto made = std::make_unique<GrootRuntime>();
        made->logger = &logger->impl;
        auto const create = reinterpret_cast<CreateFn>(entry);
        made->runtime.reset(
            created<trt::IRuntime>(create(static_cast<trt::ILogger*>(&logger->impl), NV_TENSORRT_VERSION)));
        if (!made->runtime)
        {
            return nullptr;
        }
        *status = GROOT_OK;
        return made.release();
    });
}

void runtimeDestroy(GrootRuntime* runtime)
{
    delete runtime;
}

int32_t runtimeAllowHostCode(GrootRuntime* runtime)
{
#if GROOT_AT_LEAST(8, 6)
    runtime->runtime->setEngineHostCodeAllowed(true);
    return GROOT_OK;
#else
    (void) runtime;
    return GROOT_UNSUPPORTED;
#endif
}

GrootEngine* runtimeDeserialise(GrootRuntime* runtime, void const* data, size_t size, int32_t* status)
{
    *status = GROOT_EXCEPTION;
    return guarded(runtime->logger, static_cast<GrootEngine*>(nullptr), [&]() -> GrootEngine* {
        auto made = std::make_unique<GrootEngine>();
        made->logger = runtime->logger;
        made->engine.reset(runtime->runtime->deserializeCudaEngine(data, size));
        *status = made->engine ? GROOT_OK : GROOT_FAILED;
        return made->engine ? made.release() : nullptr;
    });
}

// ---- engine ----

void engineDestroy(GrootEngine* engine)
{
    delete engine;
}

int32_t engineTensorCount(GrootEngine* engine)
{
    return engine->engine->getNbIOTensors();
}

int32_t engineTensor(GrootEngine* engine, int32_t index, GrootTensor* out)
{
    if (index < 0 || index >= engine->engine->getNbIOTensors())
    {
        return GROOT_ARGUMENT;
    }
    auto const* name = engine->engine->getIOTensorName(index);
    if (name == nullptr)
    {
        return GROOT_ARGUMENT;
    }
    out->name = name;
    out->is_input = engine->engine->getTensorIOMode(name) == trt::TensorIOMode::kINPUT ? 1 : 0;
    out->data_type = static_cast<int32_t>(engine->engine->getTensorDataType(name));
    out->on_host = engine->engine->getTensorLocation(name) == trt::TensorLocation::kHOST ? 1 : 0;
    copyDims(engine->engine->getTensorShape(name), out->dims, &out->rank);
    return GROOT_OK;
}

char const* engineTensorFormat(GrootEngine* engine, char const* name)
{
    return engine->engine->getTensorFormatDesc(name);
}

int32_t engineProfileCount(GrootEngine* engine)
{
    return engine->engine->getNbOptimizationProfiles();
}

int32_t engineProfileShape(
    GrootEngine* engine, char const* name, int32_t profile, int32_t which, int64_t* dims, int32_t* rank)
{
    if (which < 0 || which > 2 || profile < 0 || profile >= engine->engine->getNbOptimizationProfiles())
    {
        return GROOT_ARGUMENT;
    }
    auto const selector = which == 0 ? trt::OptProfileSelector::kMIN
        : which == 1                 ? trt::OptProfileSelector::kOPT
                                     : trt::OptProfileSelector::kMAX;
    auto const shape = engine->engine->getProfileShape(name, profile, selector);
    if (shape.nbDims < 0)
    {
        return GROOT_ARGUMENT;
    }
    copyDims(shape, dims, rank);
    return GROOT_OK;
}

int32_t engineLayerCount(GrootEngine* engine)
{
    return engine->engine->getNbLayers();
}

uint64_t engineDeviceMemory(GrootEngine* engine)
{
#if GROOT_AT_LEAST(10, 1)
    return static_cast<uint64_t>(engine->engine->getDeviceMemorySizeV2());
#else
    return static_cast<uint64_t>(engine->engine->getDeviceMemorySize());
#endif
}

int32_t engineInspect(GrootEngine* engine, GrootTextFn text, void* user)
{
    return guarded(engine->logger, int32_t{GROOT_EXCEPTION}, [&]() -> int32_t {
        std::unique_ptr<trt::IEngineInspector> inspector(engine->engine->createEngineInspector());
        if (!inspector)
        {
            return GROOT_FAILED;
        }
        auto const* json = inspector->getEngineInformation(trt::LayerInformationFormat::kJSON);
        if (json == nullptr)
        {
            return GROOT_FAILED;
        }
        text(user, json, std::char_traits<char>::length(json));
        return GROOT_OK;
    });
}

// ---- execution context ----

GrootContext* contextCreate(GrootEngine* engine, int32_t* status)
{
    *status = GROOT_EXCEPTION;
    return guarded(engine->logger, static_cast<GrootContext*>(nullptr), [&]() -> GrootContext* {
        auto made = std::make_unique<GrootContext>();
        made->logger = engine->logger;
        made->engine = engine->engine.get();
        made->context.reset(engine->engine->createExecutionContext());
        *status = made->context ? GROOT_OK : GROOT_FAILED;
        return made->context ? made.release() : nullptr;
    });
}

void contextDestroy(GrootContext* context)
{
    delete context;
}

int32_t contextSetProfile(GrootContext* context, int32_t profile, void* stream)
{
    return context->context->setOptimizationProfileAsync(profile, static_cast<cudaStream_t>(stream)) ? GROOT_OK
                                                                                                    : GROOT_FAILED;
}

int32_t contextSetShape(GrootContext* context, char const* name, int64_t const* dims, int32_t rank)
{
    trt::Dims shape{};
    if (!toDims(dims, rank, &shape))
    {
        return GROOT_ARGUMENT;
    }
    return context->context->setInputShape(name, shape) ? GROOT_OK : GROOT_FAILED;
}

int32_t contextShape(GrootContext* context, char const* name, int64_t* dims, int32_t* rank)
{
    auto const shape = context->context->getTensorShape(name);
    if (shape.nbDims < 0)
    {
        return GROOT_FAILED;
    }
    copyDims(shape, dims, rank);
    return GROOT_OK;
}

int32_t contextSetAddress(GrootContext* context, char const* name, void* address)
{
    return context->context->setTensorAddress(name, address) ? GROOT_OK : GROOT_FAILED;
}

int32_t contextMissing(GrootContext* context, GrootTextFn text, void* user)
{
    return guarded(context->logger, int32_t{GROOT_EXCEPTION}, [&]() -> int32_t {
        std::vector<char const*> names(static_cast<size_t>(context->engine->getNbIOTensors()), nullptr);
        auto const missing = context->context->inferShapes(static_cast<int32_t>(names.size()), names.data());
        if (missing < 0)
        {
            return GROOT_FAILED;
        }
        for (int32_t i = 0; i < missing && i < static_cast<int32_t>(names.size()); ++i)
        {
            std::string const name = names[static_cast<size_t>(i)] == nullptr ? "" : names[static_cast<size_t>(i)];
            text(user, name.data(), name.size());
        }
        return GROOT_OK;
    });
}

int32_t contextEnqueue(GrootContext* context, void* stream)
{
    return context->context->enqueueV3(static_cast<cudaStream_t>(stream)) ? GROOT_OK : GROOT_FAILED;
}

GrootTensorRt const kTABLE = {
    sizeof(GrootTensorRt),
    NV_TENSORRT_MAJOR,
    NV_TENSORRT_MINOR,
    NV_TENSORRT_PATCH,
    loggerCreate,
    loggerDestroy,
    builderCreate,
    builderDestroy,
    builderHasFast,
    builderParse,
    builderTensorCount,
    builderTensor,
    builderLayerCount,
    builderLayer,
    builderLayerInF32,
    builderSetFlag,
    builderSetWorkspace,
    builderSetOptimisationLevel,
    builderAddProfile,
    builderSetTimingCache,
    builderTimingCache,
    builderSetCalibrator,
    builderSetProgress,
    builderBuild,
    blobData,
    blobSize,
    blobDestroy,
    runtimeCreate,
    runtimeDestroy,
    runtimeAllowHostCode,
    runtimeDeserialise,
    engineDestroy,
    engineTensorCount,
    engineTensor,
    engineTensorFormat,
    engineProfileCount,
    engineProfileShape,
    engineLayerCount,
    engineDeviceMemory,
    engineInspect,
    contextCreate,
    contextDestroy,
    contextSetProfile,
    contextSetShape,
    contextShape,
    contextSetAddress,
    contextMissing,
    contextEnqueue,
};

} // namespace

extern "C" GrootTensorRt const* GROOT_OF_MAJOR(groot_tensorrt_)()
{
    return &kTABLE;
}
