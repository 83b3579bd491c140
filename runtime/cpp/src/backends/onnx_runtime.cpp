#include <algorithm>
#include <array>
#include <cstring>
#include <optional>

#include "backends/backends.hpp"
#include "backends/checked_pipe.hpp"
#include "backends/onnx_references.hpp"
#include "backends/onnx_runtime_api.hpp"
#include "backends/onnx_runtime_library.hpp"
#include "embedding/machine.hpp"
#include "itae/error.hpp"

namespace itae {
namespace {

constexpr const char* cuda = "CUDAExecutionProvider";

/// What a library's errors become: one of ours, `what` before it.
template <typename Call>
auto translated(const std::string& what, Call&& call) {
    try {
        return call();
    } catch (const Ort::Exception& error) {
        throw Error(ErrorKind::backend, what + ": " + error.what());
    }
}

struct ReleaseCudaOptions {
    void operator()(OrtCUDAProviderOptionsV2* options) const noexcept {
        Ort::GetApi().ReleaseCUDAProviderOptions(options);
    }
};

std::string as_text(ONNXTensorElementDataType type) {
    switch (type) {
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
            return "float32";
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8:
            return "uint8";
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL:
            return "bool";
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
            return "float16";
        default:
            return "ONNX type " + std::to_string(static_cast<int>(type));
    }
}

/// One environment for the process. It is never destroyed: sessions in objects with static lifetime may outlive it.
Ort::Env& environment() {
    static Ort::Env* const shared = [] {
        auto made = std::make_unique<Ort::Env>(ORT_LOGGING_LEVEL_ERROR, "itae");
        made->DisableTelemetryEvents();
        return made.release();
    }();
    return *shared;
}

void add_cuda(Ort::SessionOptions& settings, int device, const OnnxRuntimeLibrary& library) {
    const std::vector<std::string> offered = Ort::GetAvailableProviders();
    if (std::find(offered.begin(), offered.end(), cuda) == offered.end()) {
        throw Error(ErrorKind::backend, library.path + " (ONNX Runtime " + library.version + ") has no " + cuda +
                                            ": give --ort-library the library of onnxruntime-gpu");
    }
    OrtCUDAProviderOptionsV2* made = nullptr;
    Ort::ThrowOnError(Ort::GetApi().CreateCUDAProviderOptions(&made));
    const std::unique_ptr<OrtCUDAProviderOptionsV2, ReleaseCudaOptions> cuda_options(made);
    const std::string number = std::to_string(device);
    // TF32 is on by default, and misses the 1e-4 that an fp32 model is held to.
    const std::array<const char*, 2> keys{"device_id", "use_tf32"};
    const std::array<const char*, 2> values{number.c_str(), "0"};
    Ort::ThrowOnError(Ort::GetApi().UpdateCUDAProviderOptions(made, keys.data(), values.data(), keys.size()));
    settings.AppendExecutionProvider_CUDA_V2(*made);  // it throws where the provider does not start
}

class OnnxRuntimeSession final : public Session {
  public:
    OnnxRuntimeSession(Manifest described, Device device, const SessionOptions& options)
        : Session(std::move(described), "") {
        const std::string& path = manifest().model_path;
        std::optional<CheckedFile> file;  // with external data, ONNX Runtime opens both by their paths
        if (manifest().external_data)
            manifest().check_files();
        else
            file.emplace(manifest(), path, manifest().model_file);
        if (!device.is_gpu && manifest().precision == "bf16") {
            throw Error(ErrorKind::backend, path +
                                                " is bf16, for which ONNX Runtime's CPU has no kernels: build an "
                                                "engine from it, or export it with --precision fp32 or fp16");
        }
        const OnnxRuntimeLibrary& library = load_onnx_runtime(options.ort_library);
        name_ = "ONNX Runtime " + library.version + (device.is_gpu ? " (CUDA)" : " (CPU)");
        session_ = translated("ONNX Runtime can't load " + path, [&] {
            Ort::SessionOptions settings;
            settings.SetLogSeverityLevel(ORT_LOGGING_LEVEL_ERROR);
            if (device.is_gpu) {
                add_cuda(settings, device.number, library);
            } else {
                // A pattern is one more block of memory, beside those that the first batch took; it saves no time.
                settings.DisableMemPattern();
                if (const int threads = options.threads > 0 ? options.threads : thread_limit(); threads > 0)
                    settings.SetIntraOpNumThreads(threads);
            }
            return file ? loaded(*file, settings)
                        : std::make_unique<Ort::Session>(environment(), path.c_str(), settings);
        });
        check_names(path);
    }

  protected:
    std::vector<Array> compute(const void* input, std::int64_t batch,
                               const std::vector<std::string>& wanted) const override {
        const TensorInfo& expected = manifest().input;
        std::vector<std::int64_t> shape = expected.shape;
        shape.front() = batch;
        std::vector<const char*> output_names;
        output_names.reserve(wanted.size());
        for (const std::string& name : wanted) {
            for (const TensorInfo& output : manifest().outputs) {
                if (output.name == name) output_names.push_back(output.name_in_file().c_str());
            }
        }
        const char* input_name = expected.name.c_str();
        const std::size_t bytes = static_cast<std::size_t>(batch) * input_bytes();
        return translated(
            "ONNX Runtime failed on " + std::to_string(batch) + " images (a smaller --batch takes less memory)", [&] {
                const Ort::MemoryInfo memory = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeCPU);
                // ONNX Runtime takes inputs that it only reads as if it wrote them.
                void* data = const_cast<void*>(input);
                Ort::Value tensor =
                    Ort::Value::CreateTensor(memory, data, bytes, shape.data(), shape.size(),
                                             expected.dtype == "uint8" ? ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8
                                                                       : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
                // Any number of threads may call it.
                std::vector<Ort::Value> found = session_->Run(Ort::RunOptions{nullptr}, &input_name, &tensor, 1,
                                                              output_names.data(), output_names.size());
                std::vector<Array> arrays;
                arrays.reserve(found.size());
                for (const Ort::Value& value : found) arrays.push_back(copied(value));
                return arrays;
            });
    }

  private:
    /// ONNX Runtime's session of a file that holds all its weights.
    std::unique_ptr<Ort::Session> loaded(CheckedFile& file, const Ort::SessionOptions& settings) const {
        {
            ReferenceFinder finder(file.size());
            CheckedPipe pipe(file, [&](ByteView piece) { look(finder, piece); });
            std::unique_ptr<Ort::Session> session;
            if (!pipe.path().empty()) {
                try {
                    session = std::make_unique<Ort::Session>(environment(), pipe.path().c_str(), settings);
                } catch (const Ort::Exception&) {  // the same from memory is said without the pipe's name
                }
            }
            if (pipe.finish() && session) return session;
        }
        const Bytes content = manifest().read_model();
        ReferenceFinder finder(content.size());
        look(finder, content);
        return std::make_unique<Ort::Session>(environment(), content.data(), content.size(), settings);
    }

    /// Look through a piece of the model before ONNX Runtime does.
    void look(ReferenceFinder& finder, ByteView piece) const {
        const std::string& path = manifest().model_path;
        bool is_found = false;
        try {
            is_found = finder.add(piece);
        } catch (const Error& error) {
            throw Error(ErrorKind::backend, "ONNX Runtime can't load " + path + ": " + error.what());
        }
        if (is_found) {
            throw Error(ErrorKind::model, path +
                                              " keeps weights in another file, which its manifest does not name: "
                                              "they were never checked; export it again");
        }
    }

    static Array copied(const Ort::Value& value) {
        const Ort::TensorTypeAndShapeInfo info = value.GetTensorTypeAndShapeInfo();
        Array array;
        array.dtype = as_text(info.GetElementType());
        array.shape = info.GetShape();
        const std::size_t size = array.dtype == "float32" ? 4 : array.dtype == "float16" ? 2 : 1;
        const auto* data = value.GetTensorData<std::uint8_t>();
        array.data.assign(data, data + info.GetElementCount() * size);
        return array;
    }

    /// The names of the manifest are the model's: other messages than ONNX Runtime's, and at once.
    void check_names(const std::string& path) const {
        Ort::AllocatorWithDefaultOptions allocator;
        const auto has = [&](std::size_t count, const std::string& name, auto&& name_of) {
            for (std::size_t number = 0; number < count; ++number)
                if (name == name_of(number).get()) return true;
            return false;
        };
        const auto input_name = [&](std::size_t number) { return session_->GetInputNameAllocated(number, allocator); };
        const auto output_name = [&](std::size_t number) {
            return session_->GetOutputNameAllocated(number, allocator);
        };
        const auto refuse = [&](const std::string& what) {
            throw Error(ErrorKind::model, path + " has no " + what + ", which its manifest names: export it again");
        };
        if (!has(session_->GetInputCount(), manifest().input.name, input_name))
            refuse("input `" + manifest().input.name + "`");
        for (const TensorInfo& output : manifest().outputs)
            if (!has(session_->GetOutputCount(), output.name_in_file(), output_name))
                refuse("output `" + output.name + "`");
    }

    std::unique_ptr<Ort::Session> session_;  // no empty Ort::Session: to destroy it, the library must be there
};

}  // namespace

std::unique_ptr<Session> open_onnx_runtime(Manifest manifest, Device device, const SessionOptions& options) {
    return std::make_unique<OnnxRuntimeSession>(std::move(manifest), device, options);
}

}  // namespace itae
