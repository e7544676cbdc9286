// libtorch's headers ask for the runtime with the language extensions, and use its plain C interface.
#pragma once

#include <cuda_runtime_api.h>
