// What TensorRT's headers need of the CUDA runtime: the two handle types that their signatures name. With this the shim
// compiles where no CUDA toolkit is installed.
#pragma once

typedef struct CUstream_st* cudaStream_t;
typedef struct CUevent_st* cudaEvent_t;
