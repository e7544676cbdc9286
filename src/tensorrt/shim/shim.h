// The C boundary between the crate and TensorRT's C++ classes.
//
// One table of functions per TensorRT major version; the Rust side (ffi.rs) mirrors it field by field. No C++ type and no
// exception crosses it. The table's layout is the same for all majors, so that the caller chooses one at run time.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// What an entry point answers.
enum GrootStatus {
    GROOT_OK = 0,
    GROOT_FAILED = 1,      // TensorRT refused; its log says why
    GROOT_UNSUPPORTED = 2, // this version of TensorRT does not have it
    GROOT_EXCEPTION = 3,   // a C++ exception was caught; its text was logged
    GROOT_ARGUMENT = 4     // an index or a name that does not exist
};

// Switches of a build. The numbers are this header's own: TensorRT's change with its version.
enum GrootFlag {
    GROOT_FLAG_FP16 = 0,
    GROOT_FLAG_BF16 = 1,
    GROOT_FLAG_INT8 = 2,
    GROOT_FLAG_TF32 = 3,
    GROOT_FLAG_OBEY_PRECISION = 4,
    GROOT_FLAG_PREFER_PRECISION = 5,
    GROOT_FLAG_VERSION_COMPATIBLE = 6,
    GROOT_FLAG_DETAILED_PROFILING = 7,
    GROOT_FLAG_DISABLE_TIMING_CACHE = 8
};

typedef void (*GrootLogFn)(void* user, int32_t severity, char const* text);
typedef void (*GrootTextFn)(void* user, char const* text, size_t size);

// Where TensorRT wants to be told about progress (version 10 and later).
typedef struct GrootProgress {
    void* user;
    void (*start)(void* user, char const* phase, char const* parent, int32_t steps);
    int32_t (*step)(void* user, char const* phase, int32_t step); // 0 ends the build
    void (*finish)(void* user, char const* phase);
} GrootProgress;

// Where TensorRT's own INT8 calibration takes its batches from (before version 11).
typedef struct GrootCalibrator {
    void* user;
    int32_t batch_size;
    int32_t (*next)(void* user, void** bindings, char const* const* names, int32_t count); // 0: no more
    void const* (*read_cache)(void* user, size_t* size);                                   // null: none
    void (*write_cache)(void* user, void const* data, size_t size);
} GrootCalibrator;

typedef struct GrootTensor {
    char const* name; // lives as long as its owner
    int32_t is_input;
    int32_t data_type; // TensorRT's number; the same in all versions
    int32_t on_host;   // 1: a tensor whose values shapes depend on, read from host memory
    int32_t rank;      // -1: not known
    int64_t dims[8];
} GrootTensor;

typedef struct GrootLogger GrootLogger;
typedef struct GrootBuilder GrootBuilder;
typedef struct GrootBlob GrootBlob;
typedef struct GrootRuntime GrootRuntime;
typedef struct GrootEngine GrootEngine;
typedef struct GrootContext GrootContext;

typedef struct GrootTensorRt {
    uint64_t table_size;
    int32_t header_major;
    int32_t header_minor;
    int32_t header_patch;

    GrootLogger* (*logger_create)(GrootLogFn log, void* user);
    void (*logger_destroy)(GrootLogger* logger);

    // `entry` is the library's createInferBuilder_INTERNAL.
    GrootBuilder* (*builder_create)(void* entry, GrootLogger* logger, int32_t strongly_typed, int32_t* status);
    void (*builder_destroy)(GrootBuilder* builder);
    int32_t (*builder_has_fast)(GrootBuilder* builder, int32_t flag); // 1 yes, 0 no, -1 not known
    // `entry` is the parser library's createNvOnnxParser_INTERNAL. `problem` is called once for each error.
    int32_t (*builder_parse)(
        GrootBuilder* builder, void* entry, char const* path, GrootTextFn problem, void* user);
    int32_t (*builder_tensor_count)(GrootBuilder* builder);
    int32_t (*builder_tensor)(GrootBuilder* builder, int32_t index, GrootTensor* out);
    int32_t (*builder_layer_count)(GrootBuilder* builder);
    int32_t (*builder_layer)(GrootBuilder* builder, int32_t index, char const** name, char const** kind);
    int32_t (*builder_layer_in_f32)(GrootBuilder* builder, int32_t index); // OK, ARGUMENT, UNSUPPORTED
    int32_t (*builder_set_flag)(GrootBuilder* builder, int32_t flag, int32_t on);
    int32_t (*builder_set_workspace)(GrootBuilder* builder, size_t bytes);
    int32_t (*builder_set_optimisation_level)(GrootBuilder* builder, int32_t level);
    int32_t (*builder_add_profile)(GrootBuilder* builder, char const* const* names, int32_t const* ranks,
        int64_t const* dims /* [count][3: min, opt, max][8] */, int32_t count, int32_t for_calibration);
    int32_t (*builder_set_timing_cache)(GrootBuilder* builder, void const* data, size_t size);
    GrootBlob* (*builder_timing_cache)(GrootBuilder* builder);
    int32_t (*builder_set_calibrator)(GrootBuilder* builder, int32_t min_max, GrootCalibrator const* calls);
    int32_t (*builder_set_progress)(GrootBuilder* builder, GrootProgress const* calls);
    GrootBlob* (*builder_build)(GrootBuilder* builder, int32_t* status);

    void const* (*blob_data)(GrootBlob const* blob);
    size_t (*blob_size)(GrootBlob const* blob);
    void (*blob_destroy)(GrootBlob* blob);

    // `entry` is the library's createInferRuntime_INTERNAL.
    GrootRuntime* (*runtime_create)(void* entry, GrootLogger* logger, int32_t* status);
    void (*runtime_destroy)(GrootRuntime* runtime);
    int32_t (*runtime_allow_host_code)(GrootRuntime* runtime);
    GrootEngine* (*runtime_deserialise)(GrootRuntime* runtime, void const* data, size_t size, int32_t* status);

    void (*engine_destroy)(GrootEngine* engine);
    int32_t (*engine_tensor_count)(GrootEngine* engine);
    int32_t (*engine_tensor)(GrootEngine* engine, int32_t index, GrootTensor* out);
    char const* (*engine_tensor_format)(GrootEngine* engine, char const* name);
    int32_t (*engine_profile_count)(GrootEngine* engine);
    // `which`: 0 least, 1 optimum, 2 greatest.
    int32_t (*engine_profile_shape)(
        GrootEngine* engine, char const* name, int32_t profile, int32_t which, int64_t* dims, int32_t* rank);
    int32_t (*engine_layer_count)(GrootEngine* engine);
    uint64_t (*engine_device_memory)(GrootEngine* engine);
    int32_t (*engine_inspect)(GrootEngine* engine, GrootTextFn text, void* user);

    GrootContext* (*context_create)(GrootEngine* engine, int32_t* status);
    void (*context_destroy)(GrootContext* context);
    int32_t (*context_set_profile)(GrootContext* context, int32_t profile, void* stream);
    int32_t (*context_set_shape)(GrootContext* context, char const* name, int64_t const* dims, int32_t rank);
    int32_t (*context_shape)(GrootContext* context, char const* name, int64_t* dims, int32_t* rank);
    int32_t (*context_set_address)(GrootContext* context, char const* name, void* address);
    // Calls `text` with the name of each input whose shape or address is still missing.
    int32_t (*context_missing)(GrootContext* context, GrootTextFn text, void* user);
    int32_t (*context_enqueue)(GrootContext* context, void* stream);
} GrootTensorRt;

#ifdef __cplusplus
}
#endif
