#pragma once

#include <string>

namespace itae {

/// ONNX Runtime, loaded into this process. There is one of it, which stays until the process ends.
struct OnnxRuntimeLibrary {
    std::string path;
    std::string version;
};

/// Load ONNX Runtime, the first time; after that, the same again.
///
/// @param chosen a file, or the folder that it lies in; empty: see `SessionOptions::ort_library`.
/// @throws Error backend: it is not found, is too old, or another one is loaded already.
const OnnxRuntimeLibrary& load_onnx_runtime(const std::string& chosen);

}  // namespace itae
