#pragma once

// ONNX Runtime's headers without a link to a release of it: its functions are those of the library that
// `load_onnx_runtime` opens. To include before that anything of it may be called.
#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>
