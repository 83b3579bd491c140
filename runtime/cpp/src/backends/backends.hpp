#pragma once

#include <memory>
#include <string>
#include <vector>

#include "itae/session.hpp"

namespace itae {

/// Where a model runs: the CPU, or a GPU by its number.
struct Device {
    bool is_gpu = false;
    int number = 0;
};

/// Parse `cpu`, `cuda`, `cuda:N` or `auto`, for an ONNX file or an engine. @throws Error usage
Device parse_device(const std::string& text, bool is_engine);

/// Bytes of one picture's share of a tensor.
std::size_t bytes_of(const TensorInfo& tensor);

#ifdef ITAE_WITH_ONNXRUNTIME
/// Check an ONNX file, and its external data, and load it.
std::unique_ptr<Session> open_onnx_runtime(Manifest manifest, Device device, const SessionOptions& options);
#endif

/// Open an engine on the GPU that it was built for, as Python does: everything that can be refused by its manifest is
/// refused before a library sees it.
/// @throws Error as `open_session`.
std::unique_ptr<Session> open_engine(Manifest manifest, Device device);

/// The backends that this library was built with, by name.
std::vector<std::string> built_backends();

}  // namespace itae
