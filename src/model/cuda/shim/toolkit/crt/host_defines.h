// The compiler's part of the CUDA runtime's headers, which PyPI's package of the runtime lacks: what the macros in the other
// headers' declarations are for a plain C++ compiler. With this the shim compiles where no CUDA toolkit is installed.
#pragma once

#define CUDARTAPI
#define CUDARTAPI_CDECL
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __builtin_align__(bytes) __align__(bytes)
#define __cudart_builtin__
#define __device_builtin__
#define __device_builtin_surface_type__
#define __device_builtin_texture_type__
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __host__
