#include "backends/onnx_runtime_library.hpp"

#include <dlfcn.h>

#include <cstdlib>
#include <filesystem>
#include <memory>
#include <mutex>

#include "backends/onnx_runtime_api.hpp"
#include "itae/error.hpp"

namespace itae {
namespace {

namespace fs = std::filesystem;

constexpr const char* names[] = {"libonnxruntime.so.1", "libonnxruntime.so"};
constexpr const char* where =
    "looked for by --ort-library (ort_library in SessionOptions), the environment variable ITAE_ONNXRUNTIME, beside "
    "the "
    "program and libitae, and by the loader (LD_LIBRARY_PATH); pip install onnxruntime has it in onnxruntime/capi";

struct CloseLibrary {
    void operator()(void* handle) const noexcept { dlclose(handle); }
};
using Handle = std::unique_ptr<void, CloseLibrary>;

std::string folder_of_program() {
    std::error_code failed;
    return fs::read_symlink("/proc/self/exe", failed).parent_path().string();
}

std::string folder_of_this_library() {
    Dl_info info{};
    if (dladdr(reinterpret_cast<const void*>(&load_onnx_runtime), &info) == 0 || info.dli_fname == nullptr) return {};
    std::error_code failed;
    return fs::weakly_canonical(info.dli_fname, failed).parent_path().string();
}

std::string variable(const char* name) {
    const char* value = std::getenv(name);  // NOLINT(concurrency-mt-unsafe): nothing here writes it
    return value == nullptr ? std::string() : std::string(value);
}

Handle opened(const std::string& candidate, std::string& problem) {
    std::error_code failed;
    std::string path = candidate;
    if (candidate.find('/') != std::string::npos) {
        if (!fs::exists(candidate, failed)) {
            problem = candidate + ": no such file";
            return nullptr;
        }
        // ONNX Runtime looks for its providers beside itself, and not where a link to it points.
        path = fs::canonical(candidate, failed).string();
        if (failed) path = candidate;
    }
    Handle handle(dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL));
    if (!handle) {
        const char* reason = dlerror();
        problem = reason == nullptr ? path + " can't be loaded" : std::string(reason);
    }
    return handle;
}

OnnxRuntimeLibrary load(const std::string& chosen) {
    // Version 1.32 writes ~/.cache/Microsoft/DeveloperTools and sends events unless this forbids it. A value that
    // is there stays.
    setenv("ORT_DISABLE_TELEMETRY", "1", 0);  // NOLINT(concurrency-mt-unsafe): before the library's first thread
    const std::string by_variable = variable("ITAE_ONNXRUNTIME");
    std::string problem;
    Handle handle;
    for (const std::string& candidate :
         onnx_runtime_candidates(chosen, by_variable, {folder_of_program(), folder_of_this_library()})) {
        if (handle = opened(candidate, problem); handle) break;
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

std::vector<std::string> onnx_runtime_candidates(const std::string& chosen, const std::string& variable,
                                                 const std::vector<std::string>& folders) {
    const auto in_folder = [](const std::string& folder) {
        std::vector<std::string> found;
        for (const char* name : names) found.push_back((fs::path(folder) / name).string());
        return found;
    };
    for (const std::string& named : {chosen, variable}) {
        if (named.empty()) continue;
        std::error_code failed;
        if (fs::is_directory(named, failed)) return in_folder(named);
        return {named.find('/') == std::string::npos ? "./" + named : named};  // a name alone: not by the loader's path
    }
    std::vector<std::string> all;
    for (const std::string& folder : folders) {
        if (folder.empty()) continue;
        for (std::string& candidate : in_folder(folder)) all.push_back(std::move(candidate));
    }
    for (const char* name : names) all.emplace_back(name);
    return all;
}

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
        for (const std::string& candidate : onnx_runtime_candidates(chosen, "", {})) {
            const Handle handle = opened(candidate, problem);  // the loader gives the same handle for the same file
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
