// TensorRT 10 and 11: engines on the GPU that they were built for. tensorrt_rtx.cpp is the same with other headers.
//
// The headers hold no code of the library, only tables of its functions: one symbol is looked up, the rest follows. So
// the program starts where there is no TensorRT, and TensorRT-RTX, whose symbols have the same names, fits beside it.
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <algorithm>
#include <mutex>

#include "backends/engine.hpp"
#include "backends/library_log.hpp"
#include "backends/shared_library.hpp"
#include "itae/error.hpp"

#ifndef ITAE_TENSORRT_RTX
#define ITAE_LOAD load_tensorrt
#endif

namespace itae {
namespace {

#ifdef ITAE_TENSORRT_RTX
constexpr const char* title = "TensorRT-RTX";
constexpr const char* file = "libtensorrt_rtx.so.";
constexpr const char* variable = "ITAE_TENSORRT_RTX";
constexpr const char* at_build = ITAE_TENSORRT_RTX_FOLDER;
#else
#ifdef TRT_MAJOR_RTX
#error "ITAE_TENSORRT_ROOT holds the headers of TensorRT-RTX: give ITAE_TENSORRT_RTX_ROOT"
#endif
constexpr const char* title = "TensorRT";
constexpr const char* file = "libnvinfer.so.";
constexpr const char* variable = "ITAE_TENSORRT";
constexpr const char* at_build = ITAE_TENSORRT_FOLDER;
#endif

/// The library of this process: what of it is looked up by name.
struct Library {
    void* (*create_runtime)(void* logger, std::int32_t version) = nullptr;
    std::string version;
};

/// The logger of this process. TensorRT keeps the first one that it is given, and its own would print to stdout.
class Logger final : public nvinfer1::ILogger {
  public:
    void log(Severity severity, const nvinfer1::AsciiChar* message) noexcept override {
        if (severity == Severity::kERROR || severity == Severity::kINTERNAL_ERROR) said.record(message);
    }
    LibraryLog said;
};

Logger& logger() {
    static Logger* const shared = new Logger;  // never destroyed: the library may log until the process ends
    return *shared;
}

std::string numpy_name(nvinfer1::DataType type) {
    switch (type) {
        case nvinfer1::DataType::kFLOAT:
            return "float32";
        case nvinfer1::DataType::kHALF:
            return "float16";
        case nvinfer1::DataType::kBF16:
            return "bfloat16";
        case nvinfer1::DataType::kINT32:
            return "int32";
        case nvinfer1::DataType::kINT64:
            return "int64";
        case nvinfer1::DataType::kINT8:
            return "int8";
        case nvinfer1::DataType::kUINT8:
            return "uint8";
        case nvinfer1::DataType::kBOOL:
            return "bool";
        default:
            return "TensorRT's type " + std::to_string(static_cast<int>(type));
    }
}

std::vector<std::int64_t> sizes_of(const nvinfer1::Dims& shape) {
    return {shape.d, shape.d + std::max(0, shape.nbDims)};
}

class EngineProgram final : public Program {
  public:
    EngineProgram(const Library& library, const Manifest& manifest, Bytes content, const std::string& gpu)
        : name_(std::string(title) + " " + library.version), input_(manifest.input) {
        logger().said.forget();
        runtime_.reset(static_cast<nvinfer1::IRuntime*>(library.create_runtime(&logger(), NV_TENSORRT_VERSION)));
        if (!runtime_) throw refused("does not start here");
        // The plan, which was hashed, holds the library of its own version.
        if (manifest.version_compatible) runtime_->setEngineHostCodeAllowed(true);
        engine_.reset(runtime_->deserializeCudaEngine(content.data(), content.size()));
        if (!engine_)
            throw refused("can't load " + manifest.model_path, "it is for " + manifest.builder_platform +
                                                                   " and the GPU that it was built for, here is " +
                                                                   gpu + ": build it again here");
        Bytes().swap(content);
        check(manifest);
        context_.reset(engine_->createExecutionContext());
        if (!context_)
            throw refused("can't make an execution context for " + manifest.model_path, "is there enough GPU memory?");
    }

    std::string name() const override { return name_; }

    void enqueue(std::int64_t batch, const Addresses& addresses, void* stream) override {
        logger().said.forget();
        nvinfer1::Dims shape{};
        shape.nbDims = static_cast<std::int32_t>(input_.shape.size());
        std::copy(input_.shape.begin(), input_.shape.end(), shape.d);
        shape.d[0] = batch;
        if (!context_->setInputShape(input_.name.c_str(), shape))
            throw refused("takes no batch of " + std::to_string(batch));
        for (const auto& [name, address] : addresses)
            if (!context_->setTensorAddress(name.c_str(), address)) throw refused("takes no memory for `" + name + "`");
        if (!context_->enqueueV3(static_cast<cudaStream_t>(stream)))
            throw refused("failed on " + std::to_string(batch) + " images", "a smaller --batch takes less memory");
    }

  private:
    Error refused(const std::string& what, const std::string& cure = "") const {
        return {ErrorKind::backend,
                name_ + " " + what + ": " + logger().said.last_errors() + (cure.empty() ? "" : "; " + cure)};
    }

    void check(const Manifest& manifest) const {
        std::vector<EngineTensor> tensors;
        for (std::int32_t number = 0; number < engine_->getNbIOTensors(); ++number) {
            const char* name = engine_->getIOTensorName(number);
            if (name == nullptr) throw refused("names no tensors of " + manifest.model_path);
            tensors.push_back({name, engine_->getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT,
                               numpy_name(engine_->getTensorDataType(name)), sizes_of(engine_->getTensorShape(name))});
        }
        const auto batch = [&](nvinfer1::OptProfileSelector which) -> std::int64_t {
            const nvinfer1::Dims shape = engine_->getProfileShape(manifest.input.name.c_str(), 0, which);
            return shape.nbDims < 1 ? -1 : shape.d[0];
        };
        check_tensors(manifest, tensors,
                      {batch(nvinfer1::OptProfileSelector::kMIN), batch(nvinfer1::OptProfileSelector::kOPT),
                       batch(nvinfer1::OptProfileSelector::kMAX)});
    }

    std::string name_;
    TensorInfo input_;
    // Destroyed from the last to the first.
    std::unique_ptr<nvinfer1::IRuntime> runtime_;
    std::unique_ptr<nvinfer1::ICudaEngine> engine_;
    std::unique_ptr<nvinfer1::IExecutionContext> context_;
};

class LoadedLibrary final : public EngineLibrary {
  public:
    explicit LoadedLibrary(Library library) : library_(std::move(library)) {}
    std::string version() const override { return library_.version; }
    std::unique_ptr<Program> load(const Manifest& manifest, Bytes engine, const std::string& gpu) const override {
        return std::make_unique<EngineProgram>(library_, manifest, std::move(engine), gpu);
    }

  private:
    Library library_;
};

Library open(const std::string& what) {
    const std::string name = file + std::to_string(NV_TENSORRT_MAJOR);
    const std::string chosen = environment_variable(variable);
    std::vector<std::string> candidates = library_candidates({name}, "", chosen, own_folders());
    if (chosen.empty()) candidates.push_back(std::string(at_build) + "/" + name);
    std::string problem;
    LibraryHandle handle;
    for (const std::string& candidate : candidates)
        if (handle = open_library(candidate, problem); handle) break;
    if (!handle)
        throw Error(ErrorKind::backend, what + " needs " + title + "'s library " + name + ", which is not found (" +
                                            problem + "): looked for by the environment variable " + variable +
                                            ", beside the program and libitae, by the loader (LD_LIBRARY_PATH), and " +
                                            "where it was built");
    using Number = std::int32_t (*)();
    Library library;
    int major = 0;
    for (const char* part : {"Major", "Minor", "Patch", "Build"}) {
        const auto number =
            reinterpret_cast<Number>(dlsym(handle.get(), (std::string("getInferLib") + part + "Version").c_str()));
        if (number == nullptr) throw Error(ErrorKind::backend, what + ": " + name + " is no " + title);
        if (library.version.empty()) major = number();
        library.version += (library.version.empty() ? "" : ".") + std::to_string(number());
    }
    if (major != NV_TENSORRT_MAJOR)
        throw Error(ErrorKind::backend, what + " needs " + title + " " + std::to_string(NV_TENSORRT_MAJOR) +
                                            ", whose headers this library was built with, and found " +
                                            library.version + ": build it again with the headers of that, or set " +
                                            variable);
    library.create_runtime = reinterpret_cast<decltype(library.create_runtime)>(
        dlsym(handle.get(), "createInferRuntime_INTERNAL"));  // what createInferRuntime of the headers calls
    if (library.create_runtime == nullptr) throw Error(ErrorKind::backend, what + ": " + name + " is no " + title);
    handle.release();  // NOLINT(bugprone-unused-return-value): it stays until the process ends
    return library;
}

}  // namespace

std::unique_ptr<EngineLibrary> ITAE_LOAD(const std::string& what) {
    static std::mutex mutex;
    static Library library;
    const std::lock_guard<std::mutex> lock(mutex);
    if (library.create_runtime == nullptr) library = open(what);
    return std::make_unique<LoadedLibrary>(library);
}

}  // namespace itae
