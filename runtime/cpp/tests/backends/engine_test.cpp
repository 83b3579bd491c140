#include "backends/engine.hpp"

#include <catch2/catch.hpp>

#include "backends/library_log.hpp"
#include "thrown.hpp"

using itae::ErrorKind;

namespace {

itae::Manifest manifest(const std::string& builder = "tensorrt") {
    itae::Manifest made;
    made.model_path = "m.engine";
    made.builder = builder;
    made.builder_version = "10.14.1.48";
    made.builder_gpu = "NVIDIA L4";
    made.compute_capability = "8.9";
    made.hardware_compatibility = "none";
    made.input = {"pixel_values", "float32", {1, 3, 42, 42}};
    made.outputs = {{"embedding", "float32", {1, 6}}, {"artifact_mask", "bool", {1, 2, 9}}};
    made.batch = {{1, 2, 4}};
    return made;
}

/// Whether `what` was refused as a backend error, with these words in it, on one line.
bool is_refused(const std::optional<itae::Error>& error, const std::string& words) {
    if (!error || error->kind() != ErrorKind::backend) return false;
    const std::string said = error->what();
    return said.find(words) != std::string::npos && said.find('\n') == std::string::npos;
}

}  // namespace

TEST_CASE("an engine is refused on a GPU that it was not built for") {
    struct Case {
        std::string level, gpu, capability, words;
    };
    const Case one = GENERATE(values<Case>({
        {"none", "NVIDIA L4", "8.9", ""},
        {"none", "NVIDIA L40S", "8.9",
         "m.engine was built for NVIDIA L4 (compute capability 8.9), here is NVIDIA L40S"},
        {"none", "NVIDIA L4", "9.0", "here is NVIDIA L4 (compute capability 9.0): build it again here, or for both"},
        {"same-compute-capability", "NVIDIA L40S", "8.9", ""},
        {"same-compute-capability", "NVIDIA A2", "8.6", "was built for GPUs of compute capability 8.9, here is"},
        {"ampere-plus", "NVIDIA A2", "8.0", ""},
        {"ampere-plus", "NVIDIA B200", "10.0", ""},
        {"ampere-plus", "Tesla T4", "7.5", "was built for GPUs from compute capability 8.0 on, here is Tesla T4"},
    }));
    itae::Manifest made = manifest();
    made.hardware_compatibility = one.level;
    const auto error = thrown([&] { itae::check_gpu(made, {one.gpu, one.capability}); });
    CHECK(error.has_value() == !one.words.empty());
    if (error) {
        CHECK(is_refused(error, one.words));
        CHECK(is_refused(error, "--hardware-compatibility, or export the .onnx twin"));
    }
    made.compute_capability.reset();  // of an exporter that didn't write it
    CHECK_FALSE(thrown([&] { itae::check_gpu(made, {one.gpu, one.capability}); }));
}

TEST_CASE("an engine of TensorRT-RTX is refused on a GPU that it does not support") {
    itae::Manifest made = manifest("tensorrt-rtx");
    made.compute_capability.reset();  // it is built for no particular GPU
    CHECK_FALSE(thrown([&] { itae::check_gpu(made, {"NVIDIA L4", "8.9"}); }));
    const std::string capability = GENERATE("7.0", "8.7", "9.0", "10.0");
    const auto error = thrown([&] { itae::check_gpu(made, {"NVIDIA H100", capability}); });
    CHECK(is_refused(error,
                     "can't run on NVIDIA H100 (compute capability " + capability + "), which is not one of 7.5, 8"));
}

TEST_CASE("an engine of another version is refused") {
    struct Case {
        std::string builder, built, here;
        bool is_compatible, runs;
    };
    const Case one = GENERATE(values<Case>({
        {"tensorrt", "10.14.1.48", "10.14.1.48", false, true},
        {"tensorrt", "10.14.1.48.post1", "10.14.1.48", false, true},  // the package's count, not the library's
        {"tensorrt", "10.14.1.48", "10.14.1.49", false, false},
        {"tensorrt", "10.14.1.48", "10.16.1.11", true, true},
        {"tensorrt", "10.9.0.34", "11.0.0.114", true, true},
        {"tensorrt", "10.16.1.11", "10.14.1.48", true, false},
        {"tensorrt-rtx", "1.6.0.12", "1.7.1.116", false, false},
        {"tensorrt-rtx", "1.7.1.116", "1.7.1.116", false, true},
    }));
    itae::Manifest made = manifest(one.builder);
    made.builder_version = one.built;
    made.version_compatible = one.is_compatible;
    const auto error = thrown([&] { itae::check_version(made, one.here); });
    CHECK(error.has_value() == !one.runs);
    if (error) CHECK(is_refused(error, " " + one.built + ", here is " + one.here + ": install "));
}

TEST_CASE("a library that is too old is refused") {
    CHECK(is_refused(thrown([] { itae::check_version(manifest(), "10.8.0.43"); }), "needs TensorRT 10.9 or newer"));
    CHECK(is_refused(thrown([] { itae::check_version(manifest("tensorrt-rtx"), "1.1.1.26"); }),
                     "needs TensorRT-RTX 1.2 or newer, 1.1.1.26 is too old"));
}

TEST_CASE("an engine unlike its manifest is refused") {
    const std::vector<itae::EngineTensor> good{{"artifact_mask", false, "bool", {-1, 2, 9}},
                                               {"pixel_values", true, "float32", {-1, 3, 42, 42}},
                                               {"embedding", false, "float32", {-1, 6}}};
    CHECK_FALSE(thrown([&] { itae::check_tensors(manifest(), good, {1, 2, 4}); }));
    const auto refused = [&](const std::vector<itae::EngineTensor>& tensors, std::array<std::int64_t, 3> profile,
                             const std::string& words) {
        const auto error = thrown([&] { itae::check_tensors(manifest(), tensors, profile); });
        return error && error->kind() == ErrorKind::model &&
               std::string(error->what()).find(words) != std::string::npos;
    };
    auto other = good;
    other[2].dtype = "float16";
    CHECK(refused(other, {1, 2, 4}, "has output `embedding` as float16 (6,) per image, its manifest says output"));
    other = good;
    other[2].shape = {-1, 7};
    CHECK(refused(other, {1, 2, 4}, "float32 (7,) per image, its manifest says"));
    other[2].shape = {-1, 6, 1};
    CHECK(refused(other, {1, 2, 4}, "float32 (6, 1) per image"));
    other[2].shape = {};
    CHECK(refused(other, {1, 2, 4}, "its manifest says"));
    other = good;
    other[2].is_input = true;
    CHECK(refused(other, {1, 2, 4}, "has input `embedding`"));
    other = good;
    other.pop_back();
    CHECK(refused(other, {1, 2, 4}, "has the tensors artifact_mask, pixel_values, its manifest says pixel_values, "));
    other = good;
    other[1].name = "images";
    CHECK(refused(other, {1, 2, 4}, "has the tensors "));
    other = good;
    other[0] = other[1];
    CHECK(refused(other, {1, 2, 4}, "has the tensors pixel_values, pixel_values, embedding"));
    CHECK(refused(good, {1, 2, 8}, "takes batches (1, 2, 8), its manifest says (1, 2, 4)"));
}

TEST_CASE("a library's last errors are quoted on one line, each once") {
    itae::LibraryLog log;
    CHECK(log.last_errors() == "it gave no reason");
    for (const char* error : {"first", "second", "third\n  of three", "second", "fourth"}) log.record(error);
    CHECK(log.last_errors() == "third of three; second; fourth");
    log.record(nullptr);
    log.forget();
    CHECK(log.last_errors() == "it gave no reason");
    log.record(std::string(5000, 'x').c_str());
    CHECK(log.last_errors().size() < 1300);
}
