#include <charconv>
#include <utility>

#include "backends/backends.hpp"
#include "embedding/machine.hpp"
#include "itae/error.hpp"

namespace itae {
namespace {

Error refused(const std::string& what) { return {ErrorKind::usage, what}; }

/// The backend of a model, by name.
std::string chosen_backend(const std::string& asked, const Manifest& manifest) {
    std::string own = manifest.builder == "onnx" ? "onnxruntime" : manifest.builder;
    if (asked != "auto" && asked != "onnxruntime" && asked != "tensorrt" && asked != "tensorrt-rtx")
        throw refused("no backend `" + asked + "`: choose from auto, onnxruntime, tensorrt, tensorrt-rtx");
    if (asked != "auto" && asked != own)
        throw refused("backend " + asked + " doesn't run " + manifest.model_path + ", which is for " + own);
    return own;
}

}  // namespace

Device parse_device(const std::string& text, bool is_engine) {
    if (text == "auto") return {is_engine, 0};
    if (text == "cpu") {
        if (is_engine) throw refused("device cpu: an engine runs on a GPU: give cuda, or cuda:N");
        return {false, 0};
    }
    if (text == "cuda") return {true, 0};
    int number = -1;
    if (text.compare(0, 5, "cuda:") == 0) {
        const char* end = text.data() + text.size();
        const auto [stop, problem] = std::from_chars(text.data() + 5, end, number);
        if (problem == std::errc{} && stop == end && number >= 0 && text[5] != '-') return {true, number};
    }
    throw refused("no device `" + text + "`: give cpu, cuda or cuda:N, N from 0 on");
}

std::unique_ptr<Session> open_session(const std::string& model_path, const SessionOptions& options) {
    if (options.threads < 0 || options.threads > max_threads)
        throw refused("threads " + std::to_string(options.threads) + ": must be from 1 to " +
                      std::to_string(max_threads));
    Manifest manifest = Manifest::read(model_path);  // before its files: a wrong option is known at once
    const std::string backend = chosen_backend(options.backend, manifest);
    const Device device = parse_device(options.device, backend != "onnxruntime");
    if (device.is_gpu && options.threads > 0)
        throw refused("threads " + std::to_string(options.threads) + ": a GPU takes no number of threads");
    if (backend == "onnxruntime") {
#ifdef ITAE_WITH_ONNXRUNTIME
        return open_onnx_runtime(std::move(manifest), device, options);
#endif
        throw Error(ErrorKind::backend, model_path +
                                            " needs ONNX Runtime, without which this library was built: build it again "
                                            "with scripts/build-cpp, which fetches its headers");
    }
    return open_engine(std::move(manifest), device);
}

}  // namespace itae
