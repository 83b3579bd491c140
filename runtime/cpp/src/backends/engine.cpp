#include "backends/engine.hpp"

#include <algorithm>
#include <charconv>

#include "backends/gpu_session.hpp"
#include "itae/error.hpp"

namespace itae {
namespace {

constexpr const char* twin = "or export the .onnx twin to run on the CPU";

using VersionNumbers = std::vector<int>;

/// The GPUs that TensorRT-RTX supports: RTX GPUs; not H100 and H200, whose capability is 9.0.
const std::vector<std::string> rtx_capabilities{"7.5", "8.0", "8.6", "8.9", "12.0", "12.1"};
/// The capability from which on TensorRT builds and runs engines for all later GPUs.
const VersionNumbers ampere{8, 0};

Error refused(const std::string& what) { return {ErrorKind::backend, what}; }

/// The numbers of a version such as `10.14.1.48.post1`.
VersionNumbers numbers_of(const std::string& version) {
    VersionNumbers numbers;
    const char* at = version.data();
    const char* end = at + version.size();
    while (at != end) {
        const char* stop = std::find(at, end, '.');
        int number = 0;
        const auto [read, problem] = std::from_chars(at, stop, number);
        if (problem == std::errc{} && read == stop) numbers.push_back(number);
        at = stop == end ? end : stop + 1;
    }
    return numbers;
}

/// Whether an engine runs on a GPU, by what it was built for; true if its manifest doesn't say that.
bool is_for(const Manifest& manifest, const GpuInfo& gpu) {
    if (!manifest.compute_capability) return true;
    const std::string level = manifest.hardware_compatibility.value_or("none");
    if (level == "ampere-plus") return numbers_of(gpu.compute_capability) >= ampere;
    const bool is_same = gpu.compute_capability == *manifest.compute_capability;
    return is_same && (level == "same-compute-capability" || gpu.name == manifest.builder_gpu);
}

std::string gpus_of(const Manifest& manifest) {
    const std::string level = manifest.hardware_compatibility.value_or("none");
    if (level == "ampere-plus") return "GPUs from compute capability 8.0 on";
    if (level == "same-compute-capability") return "GPUs of compute capability " + *manifest.compute_capability;
    return manifest.builder_gpu.value_or("a GPU without a name") + " (compute capability " +
           *manifest.compute_capability + ")";
}

std::string described(const EngineTensor& tensor) {
    std::string shape;
    for (std::size_t axis = 1; axis < tensor.shape.size(); ++axis)
        shape += (shape.empty() ? "" : ", ") + std::to_string(tensor.shape[axis]);
    return std::string(tensor.is_input ? "input" : "output") + " `" + tensor.name + "` as " + tensor.dtype + " (" +
           shape + (tensor.shape.size() == 2 ? ",)" : ")") + " per image";
}

std::string listed(const std::vector<EngineTensor>& tensors) {
    std::string names;
    for (const EngineTensor& tensor : tensors) names += (names.empty() ? "" : ", ") + tensor.name;
    return names;
}

using LoadLibrary = std::unique_ptr<EngineLibrary> (*)(const std::string& what);

/// What loads the library that an engine needs; nullptr if this code was built without it.
LoadLibrary loader_of(const std::string& builder) {
#ifdef ITAE_WITH_TENSORRT
    if (builder == "tensorrt") return load_tensorrt;
#endif
#ifdef ITAE_WITH_TENSORRT_RTX
    if (builder == "tensorrt-rtx") return load_tensorrt_rtx;
#endif
    static_cast<void>(builder);
    return nullptr;
}

bool is_like(const EngineTensor& one, const EngineTensor& other) {
    return one.is_input == other.is_input && one.dtype == other.dtype && !one.shape.empty() &&
           one.shape.size() == other.shape.size() &&
           std::equal(one.shape.begin() + 1, one.shape.end(), other.shape.begin() + 1);
}

}  // namespace

std::string library_title(const Manifest& manifest) {
    return manifest.builder == "tensorrt-rtx" ? "TensorRT-RTX" : "TensorRT";
}

void check_gpu(const Manifest& manifest, const GpuInfo& gpu) {
    const std::string here = gpu.name + " (compute capability " + gpu.compute_capability + ")";
    if (!is_for(manifest, gpu))
        throw refused(manifest.model_path + " was built for " + gpus_of(manifest) + ", here is " + here +
                      ": build it again here, or for both with --hardware-compatibility, " + twin);
    if (manifest.builder != "tensorrt-rtx") return;
    if (std::find(rtx_capabilities.begin(), rtx_capabilities.end(), gpu.compute_capability) != rtx_capabilities.end())
        return;
    std::string all;
    for (const std::string& one : rtx_capabilities) all += (all.empty() ? "" : ", ") + one;
    throw refused(manifest.model_path + " is TensorRT-RTX's and can't run on " + here + ", which is not one of " + all +
                  ": build it again with --backend tensorrt, " + twin);
}

void check_version(const Manifest& manifest, const std::string& version) {
    const VersionNumbers here = numbers_of(version), built = numbers_of(manifest.builder_version);
    const VersionNumbers oldest = manifest.builder == "tensorrt-rtx" ? VersionNumbers{1, 2} : VersionNumbers{10, 9};
    const std::string title = library_title(manifest);
    if (here < oldest)
        throw refused(manifest.model_path + " needs " + title + " " + std::to_string(oldest[0]) + "." +
                      std::to_string(oldest[1]) + " or newer, " + version + " is too old: install a newer one");
    if (here == built || (manifest.version_compatible && here > built)) return;
    const std::string cure =
        manifest.version_compatible
            ? "install " + manifest.builder_version + " or later, or build it again here"
            : std::string(
                  "install that, or build it again here, or with --version-compatible for later versions too, ") +
                  twin;
    throw refused(manifest.model_path + " was built by " + title + " " + manifest.builder_version + ", here is " +
                  version + ": " + cure);
}

void check_tensors(const Manifest& manifest, const std::vector<EngineTensor>& tensors,
                   const std::array<std::int64_t, 3>& profile) {
    const auto refuse = [&](const std::string& what) {
        throw Error(ErrorKind::model, manifest.model_path + " " + what + ": build it again");
    };
    std::vector<EngineTensor> declared{{manifest.input.name, true, manifest.input.dtype, manifest.input.shape}};
    for (const TensorInfo& output : manifest.outputs)
        declared.push_back({output.name, false, output.dtype, output.shape});
    const auto is_unknown = [&](const EngineTensor& one) {
        return std::none_of(declared.begin(), declared.end(),
                            [&](const EngineTensor& other) { return other.name == one.name; });
    };
    if (tensors.size() != declared.size() || std::any_of(tensors.begin(), tensors.end(), is_unknown))
        refuse("has the tensors " + listed(tensors) + ", its manifest says " + listed(declared));
    for (const EngineTensor& wanted : declared) {
        const auto found = std::find_if(tensors.begin(), tensors.end(),
                                        [&](const EngineTensor& one) { return one.name == wanted.name; });
        if (found == tensors.end())  // one of them is there twice
            refuse("has the tensors " + listed(tensors) + ", its manifest says " + listed(declared));
        if (!is_like(*found, wanted)) refuse("has " + described(*found) + ", its manifest says " + described(wanted));
    }
    const auto as_text = [](const std::array<std::int64_t, 3>& sizes) {
        return "(" + std::to_string(sizes[0]) + ", " + std::to_string(sizes[1]) + ", " + std::to_string(sizes[2]) + ")";
    };
    if (manifest.batch && profile != *manifest.batch)
        refuse("takes batches " + as_text(profile) + ", its manifest says " + as_text(*manifest.batch));
}

std::vector<std::string> built_backends() {
    std::vector<std::string> found;
#ifdef ITAE_WITH_ONNXRUNTIME
    found.emplace_back("onnxruntime");
#endif
    for (const char* builder : {"tensorrt", "tensorrt-rtx"})
        if (loader_of(builder) != nullptr) found.emplace_back(builder);
    return found;
}

std::unique_ptr<Session> open_engine(Manifest manifest, Device device) {
    const std::string& path = manifest.model_path;
    const LoadLibrary load_library = loader_of(manifest.builder);
    if (load_library == nullptr) {
        const std::string variable = manifest.builder == "tensorrt" ? "ITAE_TENSORRT_ROOT" : "ITAE_TENSORRT_RTX_ROOT";
        throw refused(path + " is an engine of " + manifest.builder +
                      ", without which this library was built: build it again by `" + variable +
                      "=DIR scripts/build-cpp`, DIR with NvInfer.h and the library");
    }
    const auto or_twin = [](auto&& call) {
        try {
            return call();
        } catch (const Error& error) {
            throw refused(std::string(error.what()) + "; " + twin);
        }
    };
    const std::string what = path + " (" + manifest.builder + ")";
    check_gpu(manifest, or_twin([&] { return read_gpu(device.number, what); }));
    const std::unique_ptr<EngineLibrary> library = or_twin([&] { return load_library(what); });
    check_version(manifest, library->version());
    Bytes content = manifest.read_model();
    manifest.check_external_data();
    std::unique_ptr<Gpu> gpu = open_gpu(device.number, what);
    const std::string name = gpu->name();
    const LoadProgram load = [&, made_for = manifest] { return library->load(made_for, std::move(content), name); };
    return make_gpu_session(std::move(manifest), std::move(gpu), load);
}

}  // namespace itae
