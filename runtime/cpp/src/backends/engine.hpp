#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "backends/backends.hpp"
#include "backends/gpu.hpp"

namespace itae {

/// A GPU as its driver describes it.
struct GpuInfo {
    std::string name;
    std::string compute_capability;  ///< `9.0`
};

/// An input or output as an engine has it.
struct EngineTensor {
    std::string name;
    bool is_input;
    std::string dtype;                ///< numpy's name
    std::vector<std::int64_t> shape;  ///< -1: not fixed
};

/// A library of TensorRT. Only tensorrt.cpp knows its headers.
class EngineLibrary {
  public:
    EngineLibrary() = default;
    virtual ~EngineLibrary() = default;
    EngineLibrary(const EngineLibrary&) = delete;
    EngineLibrary& operator=(const EngineLibrary&) = delete;

    /// `10.14.1.48`.
    virtual std::string version() const = 0;
    /// Load an engine on the GPU that is entered, and check its tensors.
    ///
    /// @param gpu its name, for messages.
    /// @throws Error backend: the library refuses it. Error model: its tensors are not the manifest's.
    virtual std::unique_ptr<Program> load(const Manifest& manifest, Bytes engine, const std::string& gpu) const = 0;
};

/// `TensorRT` or `TensorRT-RTX`: the library that an engine needs.
std::string library_title(const Manifest& manifest);

/// Check that an engine is for a GPU, before any library sees the engine.
/// @throws Error backend: it was built for others, or TensorRT-RTX does not support the GPU.
void check_gpu(const Manifest& manifest, const GpuInfo& gpu);

/// Check that a version of the library that built an engine runs it.
/// @throws Error backend: it is too old for this code, or the engine is for another version.
void check_version(const Manifest& manifest, const std::string& version);

/// Check that an engine reads and writes what its manifest says: its memory is laid out by that.
///
/// @param profile smallest, preferred and largest batch.
/// @throws Error model: it doesn't.
void check_tensors(const Manifest& manifest, const std::vector<EngineTensor>& tensors,
                   const std::array<std::int64_t, 3>& profile);

/// NVIDIA's driver, asked what GPU there is before anything of TensorRT is touched: without one TensorRT crashes.
///
/// @param what needs the GPU; the message begins with it.
/// @throws Error backend: there is no driver, it fails, or it has no such GPU.
GpuInfo read_gpu(int number, const std::string& what);

/// GPU `number`, which `read_gpu` has seen. @throws Error as `read_gpu`
std::unique_ptr<Gpu> open_gpu(int number, const std::string& what);

// Each is there where the library was built with the headers (tensorrt.cpp).

/// TensorRT, loaded into this process.
///
/// @param what needs it; the message begins with it.
/// @throws Error backend: it is not found, or its major version is not that of the headers.
std::unique_ptr<EngineLibrary> load_tensorrt(const std::string& what);
std::unique_ptr<EngineLibrary> load_tensorrt_rtx(const std::string& what);

}  // namespace itae
