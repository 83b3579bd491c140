#pragma once

#include <string>
#include <vector>

namespace itae {

/// Where ONNX Runtime's shared library is looked for, in this order; the last entries are names for the loader.
///
/// @param chosen the option's value; empty: none.
/// @param variable the value of ITAE_ONNXRUNTIME; empty: none.
/// @param folders of the program and of the library that this code is in.
std::vector<std::string> onnx_runtime_candidates(const std::string& chosen, const std::string& variable,
                                                 const std::vector<std::string>& folders);

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
