#pragma once

#include <memory>
#include <optional>
#include <string>

#include "itae/session.hpp"

namespace itae {

/// An engine on its way from its files to a parser: what was checked is what runs.
struct CheckedModel {
    std::string path;
    Manifest manifest;
    /// The model file's bytes, the very ones that were checked.
    std::optional<Bytes> content;

    bool is_engine() const { return manifest.builder != "onnx"; }
};

/// Where a model runs: the CPU, or a GPU by its number.
struct Device {
    bool is_gpu = false;
    int number = 0;
};

/// Check an engine's files. @throws Error model: as `open_session`.
CheckedModel check_model(const std::string& path);

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
std::unique_ptr<Session> open_engine(const std::string& path, Device device);

/// The backends that this library was built with, by name.
std::vector<std::string> built_backends();

}  // namespace itae
