#pragma once

#include <memory>
#include <optional>
#include <string>

#include "itae/session.hpp"

namespace itae {

/// A model on its way from its files to a parser: what was checked is what runs.
struct CheckedModel {
    std::string path;
    Manifest manifest;
    /// The model file's bytes, the very ones that were checked; none for an ONNX file with external data, which its
    /// libraries look for beside it: they open it by its path.
    std::optional<Bytes> content;

    bool is_engine() const { return manifest.builder != "onnx"; }
};

/// Where a model runs: the CPU, or a GPU by its number.
struct Device {
    bool is_gpu = false;
    int number = 0;
};

/// Check a model's files. @throws Error model: as `open_session`.
CheckedModel check_model(const std::string& path);

/// Parse `cpu`, `cuda`, `cuda:N` or `auto`, for an ONNX file or an engine. @throws Error usage
Device parse_device(const std::string& text, bool is_engine);

#ifdef ITAE_WITH_ONNXRUNTIME
std::unique_ptr<Session> open_onnx_runtime(CheckedModel model, Device device, const SessionOptions& options);
#endif

}  // namespace itae
