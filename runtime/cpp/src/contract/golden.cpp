#include "itae/golden.hpp"

#include "contract/checked_file.hpp"
#include "contract/npy.hpp"
#include "contract/npz.hpp"
#include "itae/error.hpp"

namespace itae {
namespace {

constexpr std::uint64_t max_golden_bytes = std::uint64_t{2} << 30;

[[noreturn]] void refuse(const std::string& message) { throw Error(ErrorKind::model, message); }

std::string described(const std::string& dtype, const std::vector<std::int64_t>& shape) {
    return dtype + shape_text(shape);
}

class ShapeCheck {
  public:
    ShapeCheck(const Manifest& manifest, const std::string& path) : manifest_(manifest), path_(path) {}

    void run(const Golden& golden) const {
        const auto [height, width] = manifest_.image_size;
        const std::int64_t n = golden.input.shape.empty() ? 0 : golden.input.shape[0];
        const std::int64_t patches = manifest_.patches();
        const auto layers = static_cast<std::int64_t>(manifest_.layers.size());
        const bool is_float = manifest_.input.dtype == "float32";
        const std::vector<std::int64_t> input =
            is_float ? std::vector<std::int64_t>{n, 3, height, width} : std::vector<std::int64_t>{n, height, width, 3};
        check("input", &golden.input, manifest_.input.dtype, input);
        check("embedding", golden.output("embedding"), "float32", {n, manifest_.embedding_width()});
        check("flags", &golden.flags, "bool", {n, layers, patches});
        check("flag_distance", &golden.flag_distance, "float32", {n, layers, patches});
        check("patch_tokens", golden.output("patch_tokens"), "float32", {n, patches, manifest_.width});
        check("artifact_norm", golden.output("artifact_norm"), "float32", {n, layers, patches});
        for (const TensorInfo& output : manifest_.outputs) {
            if (golden.own.count(output.name) == 0) continue;
            std::vector<std::int64_t> shape = output.shape;
            shape.front() = n;
            check(output.name, golden.output(output.name), "float32", shape);
        }
        if (n < 1) refuse(path_ + " holds no sample; export the model again");
    }

  private:
    void check(const std::string& name, const Array* array, const std::string& dtype,
               const std::vector<std::int64_t>& shape) const {
        if (array == nullptr) {
            if (!manifest_.has_output(name)) return;
            refuse(path_ + " holds no `" + name + "`, which the model outputs; export the model again");
        }
        if (array->shape != shape || array->dtype != dtype) {
            refuse(path_ + ": `" + name + "` is " + described(array->dtype, array->shape) + ", expected " +
                   described(dtype, shape) + "; export the model again");
        }
    }

    const Manifest& manifest_;
    const std::string& path_;
};

Golden parsed(ByteView file, const Manifest& manifest) {
    const std::vector<std::string> own = manifest.own_outputs();
    std::vector<std::string> names{"input", "embedding", "flags", "flag_distance", "patch_tokens", "artifact_norm"};
    // The file has numbers for them: names of outputs are no file names.
    for (std::size_t number = 0; number < own.size(); ++number) names.push_back("output" + std::to_string(number));
    auto arrays = parse_npz(file, names, max_golden_bytes);
    const auto needed = [&arrays](const std::string& name) -> Array {
        const auto found = arrays.find(name);
        if (found == arrays.end()) throw NotNpz("'" + name + " is not a file in the archive'");
        return std::move(found->second);
    };
    const auto optional = [&arrays](const char* name) -> std::optional<Array> {
        const auto found = arrays.find(name);
        return found == arrays.end() ? std::nullopt : std::optional<Array>(std::move(found->second));
    };
    Golden golden;
    golden.input = needed("input");
    golden.embedding = own.empty() ? needed("embedding") : optional("embedding");
    golden.flags = needed("flags");
    golden.flag_distance = needed("flag_distance");
    golden.patch_tokens = optional("patch_tokens");
    golden.artifact_norm = optional("artifact_norm");
    for (std::size_t number = 0; number < own.size(); ++number)
        golden.own.emplace(own[number], needed("output" + std::to_string(number)));
    return golden;
}

}  // namespace

Golden Golden::read(const Manifest& manifest) {
    const std::string path = manifest.path_of(manifest.golden_file);
    if (manifest.golden_file.bytes > max_golden_bytes) {
        refuse(path + ": the manifest gives it " + std::to_string(manifest.golden_file.bytes) + " bytes, more than " +
               std::to_string(max_golden_bytes));
    }
    const Bytes content = read_checked(manifest, path, manifest.golden_file);
    Golden golden;
    try {
        golden = parsed(content, manifest);
    } catch (const NotNpz& error) {
        refuse(path + " is not a golden sample (" + error.what() + "); export the model again");
    } catch (const NotNpy& error) {
        refuse(path + " is not a golden sample (" + error.what() + "); export the model again");
    }
    ShapeCheck(manifest, path).run(golden);
    return golden;
}

const Array* Golden::output(const std::string& name) const noexcept {
    if (name == "embedding" && embedding) return &*embedding;
    if (name == "artifact_mask") return &flags;
    if (name == "patch_tokens" && patch_tokens) return &*patch_tokens;
    if (name == "artifact_norm" && artifact_norm) return &*artifact_norm;
    const auto found = own.find(name);
    return found == own.end() ? nullptr : &found->second;
}

}  // namespace itae
