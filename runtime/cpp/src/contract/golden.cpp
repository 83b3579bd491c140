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
        check("embedding", &golden.embedding, "float32", {n, manifest_.embedding_width()});
        check("flags", &golden.flags, "bool", {n, layers, patches});
        check("flag_distance", &golden.flag_distance, "float32", {n, layers, patches});
        check("patch_tokens", golden.output("patch_tokens"), "float32", {n, patches, manifest_.width});
        check("artifact_norm", golden.output("artifact_norm"), "float32", {n, layers, patches});
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

Golden parsed(ByteView file) {
    auto arrays = parse_npz(file, {"input", "embedding", "flags", "flag_distance", "patch_tokens", "artifact_norm"},
                            max_golden_bytes);
    const auto needed = [&arrays](const char* name) -> Array {
        const auto found = arrays.find(name);
        if (found == arrays.end()) throw NotNpz(std::string("'") + name + " is not a file in the archive'");
        return std::move(found->second);
    };
    const auto optional = [&arrays](const char* name) -> std::optional<Array> {
        const auto found = arrays.find(name);
        return found == arrays.end() ? std::nullopt : std::optional<Array>(std::move(found->second));
    };
    return {needed("input"),         needed("embedding"),      needed("flags"),
            needed("flag_distance"), optional("patch_tokens"), optional("artifact_norm")};
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
        golden = parsed(content);
    } catch (const NotNpz& error) {
        refuse(path + " is not a golden sample (" + error.what() + "); export the model again");
    } catch (const NotNpy& error) {
        refuse(path + " is not a golden sample (" + error.what() + "); export the model again");
    }
    ShapeCheck(manifest, path).run(golden);
    return golden;
}

const Array* Golden::output(const std::string& name) const noexcept {
    if (name == "embedding") return &embedding;
    if (name == "artifact_mask") return &flags;
    if (name == "patch_tokens" && patch_tokens) return &*patch_tokens;
    if (name == "artifact_norm" && artifact_norm) return &*artifact_norm;
    return nullptr;
}

}  // namespace itae
