#include "backends/onnx_runtime_library.hpp"

#include <cstdlib>
#include <memory>
#include <mutex>

#include "backends/onnx_runtime_api.hpp"
#include "backends/shared_library.hpp"
#include "itae/error.hpp"

namespace itae {
namespace {

const std::vector<std::string> names{"libonnxruntime.so.1", "libonnxruntime.so"};
constexpr const char* where =
    "looked for by --ort-library (ort_library in SessionOptions), the environment variable ITAE_ONNXRUNTIME, beside "
    "the "
    "program and libitae, and by the loader (LD_LIBRARY_PATH); pip install onnxruntime has it in onnxruntime/capi";

OnnxRuntimeLibrary load(const std::string& chosen) {
    // Version 1.32 writes ~/.cache/Microsoft/DeveloperTools and sends events unless this forbids it. A value that
    // is there stays.
    setenv("ORT_DISABLE_TELEMETRY", "1", 0);  // NOLINT(concurrency-mt-unsafe): before the library's first thread
    const std::string by_variable = environment_variable("ITAE_ONNXRUNTIME");
    std::string problem;
    LibraryHandle handle;
    for (const std::string& candidate : library_candidates(names, chosen, by_variable, own_folders())) {
        if (handle = open_library(candidate, problem); handle) break;
    }
    if (!handle)
        throw Error(ErrorKind::backend,
                    "ONNX Runtime's library libonnxruntime.so is not found (" + problem + "): " + where);

    Dl_info info{};
    void* symbol = dlsym(handle.get(), "OrtGetApiBase");
    if (symbol == nullptr || dladdr(symbol, &info) == 0)
        throw Error(ErrorKind::backend,
                    "the library that was found is not ONNX Runtime: it has no OrtGetApiBase; " + std::string(where));
    using GetApiBase = const OrtApiBase*(ORT_API_CALL*)();
    const OrtApiBase* base = reinterpret_cast<GetApiBase>(symbol)();
    OnnxRuntimeLibrary library{info.dli_fname, base->GetVersionString()};
    const OrtApi* api = base->GetApi(ORT_API_VERSION);
    if (api == nullptr)
        throw Error(ErrorKind::backend, library.path + " is ONNX Runtime " + library.version + ", expected 1." +
                                            std::to_string(ORT_API_VERSION) + " or newer: install a newer one");
    Ort::InitApi(api);
    handle.release();  // NOLINT(bugprone-unused-return-value): it stays until the process ends
    return library;
}

}  // namespace

const OnnxRuntimeLibrary& load_onnx_runtime(const std::string& chosen) {
    static std::mutex mutex;
    static std::unique_ptr<OnnxRuntimeLibrary> library;
    static std::string asked;
    const std::lock_guard<std::mutex> lock(mutex);
    if (!library) {
        library = std::make_unique<OnnxRuntimeLibrary>(load(chosen));
        asked = chosen;
    } else if (!chosen.empty() && chosen != asked) {
        std::string problem;
        for (const std::string& candidate : library_candidates(names, chosen, "", {})) {
            const LibraryHandle handle =
                open_library(candidate, problem);  // the loader gives the same handle for the same file
            Dl_info info{};
            if (void* symbol = handle ? dlsym(handle.get(), "OrtGetApiBase") : nullptr;
                symbol != nullptr && dladdr(symbol, &info) != 0 && library->path == info.dli_fname)
                return *library;
        }
        throw Error(ErrorKind::backend, "ONNX Runtime of " + library->path +
                                            " is loaded already, and one process holds one: " + chosen +
                                            " can't be loaded beside it");
    }
    return *library;
}

}  // namespace itae
