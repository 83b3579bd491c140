#include "itae/manifest.hpp"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <limits>
#include <system_error>

#include "contract/checked_file.hpp"
#include "contract/json.hpp"
#include "contract/manifest_text.hpp"
#include "contract/open_file.hpp"
#include "contract/schema.hpp"
#include "contract/sha256.hpp"
#include "itae/error.hpp"

namespace itae {
namespace {

using Json = nlohmann::json;
namespace fs = std::filesystem;

constexpr std::int64_t format_version = 2;
/// A manifest is a few kilobytes; more is refused before it is parsed.
constexpr std::uint64_t max_manifest_bytes = 4 << 20;
constexpr std::size_t short_name = 60;

[[noreturn]] void refuse(const std::string& message) { throw Error(ErrorKind::model, message); }

std::string name_of(const std::string& path) { return fs::path(path).filename().string(); }

std::string sibling(const std::string& path, const std::string& name) {
    return (fs::path(path).parent_path() / name).string();
}

/// Whether an export was killed while it put the files in their places, or does it right now.
bool is_interrupted(const std::string& manifest_path) {
    const std::string name = name_of(manifest_path);
    const std::string stem =
        name.size() <= short_name
            ? name
            : sha256(ByteView(reinterpret_cast<const std::uint8_t*>(name.data()), name.size())).substr(0, 32);
    std::error_code error;
    return fs::is_regular_file(sibling(manifest_path, "." + stem + ".exchange") + "/plan.json", error);
}

void refuse_interrupted(const std::string& model) {
    if (is_interrupted(model + ".json")) {
        refuse(model +
               ": an export was interrupted while it replaced these files (unless one is just ending): export " +
               name_of(model) + " again; that first puts the older files back");
    }
}

void check_is_file(const std::string& model) {
    struct stat found {};
    const bool has_nul = model.find('\0') != std::string::npos;
    if (!has_nul && ::stat(model.c_str(), &found) == 0) {
        if (S_ISREG(found.st_mode)) return;
        if (S_ISDIR(found.st_mode)) refuse(model + " is a folder, expected a model: X.onnx or X.engine");
    } else if (!has_nul && errno != ENOENT && errno != ENOTDIR && errno != ELOOP) {
        refuse("can't read " + model + ": " + std::generic_category().message(errno));
    }
    if (!has_nul) refuse_interrupted(model);
    refuse(model + ": no such model file; make one with `python -m exporter --out FILE`");
}

Bytes manifest_bytes(const std::string& model) {
    const std::string path = model + ".json";
    const std::string again = "export " + name_of(model) + " again";
    std::error_code ignored;
    if (fs::symlink_status(path, ignored).type() == fs::file_type::not_found) {
        refuse_interrupted(model);
        refuse(model + " has no manifest " + name_of(path) + " beside it: copy it along, or " + again);
    }
    try {
        OpenFile file(path);
        if (file.size() <= max_manifest_bytes) return file.read_all();
    } catch (const Error& error) {
        refuse(error.what());
    }
    refuse(path + " is larger than " + std::to_string(max_manifest_bytes) + " bytes: not a manifest; " + again);
}

/// Whether the file's bytes, its own hash in them replaced by zeros, have that hash, and its digits stand there once.
bool matches_own_hash(const Bytes& text, const Json& fields) {
    const auto written = fields.find("manifest_sha256");
    if (written == fields.end() || !written->is_string()) return false;
    const std::string& digits = written->get_ref<const std::string&>();
    if (digits.size() != 64 || digits.find_first_not_of("0123456789abcdef") != std::string::npos) return false;
    const auto at = std::search(text.begin(), text.end(), digits.begin(), digits.end());
    if (at == text.end() || std::search(at + 64, text.end(), digits.begin(), digits.end()) != text.end()) return false;
    Bytes zeroed = text;
    std::fill_n(zeroed.begin() + (at - text.begin()), 64, static_cast<std::uint8_t>('0'));
    return sha256(zeroed) == digits;
}

/// A number of the manifest that must fit into 63 bits; Python's integers have no end.
std::int64_t count(const Json& value, const char* where) {
    if (value.is_number_unsigned() &&
        value.get<std::uint64_t>() > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
        throw SchemaFault{where, "Input should be at most 9223372036854775807"};
    }
    return value.get<std::int64_t>();
}

template <std::size_t Count>
std::array<std::int64_t, Count> counts(const Json& value, const char* where) {
    std::array<std::int64_t, Count> found{};
    for (std::size_t index = 0; index < Count; ++index) found[index] = count(value.at(index), where);
    return found;
}

std::optional<double> number_or_nothing(const Json& fields, const char* name) {
    const auto found = fields.find(name);
    return found == fields.end() || found->is_null() ? std::nullopt : std::optional<double>(found->get<double>());
}

std::optional<std::string> text_or_nothing(const Json& fields, const char* name) {
    const auto found = fields.find(name);
    return found == fields.end() || found->is_null() ? std::nullopt
                                                     : std::optional<std::string>(found->get<std::string>());
}

TensorInfo tensor(const Json& fields, const char* where) {
    TensorInfo info{fields.at("name"), fields.at("dtype"), {}};
    for (const Json& size : fields.at("shape"))
        info.shape.push_back(size.is_string() ? dynamic_size : count(size, where));
    info.in_file = text_or_nothing(fields, "in_file").value_or("");
    return info;
}

FileRecord file_record(const Json& fields, const char* where) {
    return {fields.at("name"), static_cast<std::uint64_t>(count(fields.at("bytes"), where)), fields.at("sha256")};
}

Preprocessing preprocessing(const Json& fields) {
    Preprocessing found;
    found.fit = fields.value("fit", "crop");
    const auto size = counts<2>(fields.at("crop"), "preprocessing.crop");
    found.height = size[0];
    found.width = size[1];
    if (!fields.at("resize_cover").is_null()) {
        found.resize_cover = counts<2>(fields.at("resize_cover"), "preprocessing.resize_cover");
    }
    found.resize_filter = fields.value("resize_filter", "bicubic");
    found.resize_order = fields.value("resize_order", "pillow13");
    found.scale = fields.at("scale");
    found.mean = fields.at("mean").get<std::array<double, 3>>();
    found.stddev = fields.at("std").get<std::array<double, 3>>();
    found.uint8_input = fields.at("dtype") == "uint8";
    return found;
}

/// The fields of a manifest that keeps the schema.
Manifest typed(const Json& fields) {
    Manifest manifest;
    const Json& options = fields.at("options");
    manifest.backend = options.at("backend");
    manifest.precision = options.at("precision");
    manifest.image_size = counts<2>(options.at("image_size"), "options.image_size");
    if (!options.at("batch").is_null()) manifest.batch = counts<3>(options.at("batch"), "options.batch");
    manifest.method = options.at("method").at("name");
    for (const Json& layer : options.at("method").value("layers", Json::array())) {
        manifest.layers.push_back(count(layer, "options.method.itae.layers"));
    }
    manifest.pooling = options.value("pooling", "cls");
    manifest.normalize = options.value("normalize", false);

    const Json& model = fields.at("model");
    manifest.size = model.at("size");
    manifest.patch = count(model.at("patch"), "model.patch");
    manifest.width = count(model.at("width"), "model.width");
    if (const auto foreign = fields.find("foreign"); foreign != fields.end() && !foreign->is_null()) {
        manifest.foreign_file = foreign->at("file");
        if (!foreign->at("grid").is_null()) manifest.grid = counts<2>(foreign->at("grid"), "foreign.grid");
    }
    manifest.has_random_weights = model.at("weights").at("kind") == "random";

    manifest.input = tensor(fields.at("inputs").at(0), "inputs.0.shape");
    for (const Json& output : fields.at("outputs")) manifest.outputs.push_back(tensor(output, "outputs.shape"));
    manifest.preprocessing = preprocessing(fields.at("preprocessing"));

    const Json& builder = fields.at("builder");
    manifest.builder = builder.at("name");
    manifest.builder_version = builder.at("version");
    manifest.builder_platform = builder.at("platform");
    manifest.builder_gpu = text_or_nothing(builder, "gpu");
    manifest.compute_capability = text_or_nothing(builder, "compute_capability");
    manifest.hardware_compatibility = text_or_nothing(options, "hardware_compatibility");
    const auto compatible = options.find("version_compatible");
    manifest.version_compatible = compatible != options.end() && compatible->is_boolean() && compatible->get<bool>();
    for (const Json& check : fields.at("parity").at("checks")) {
        if (check.at("purpose") != "threshold") continue;
        manifest.threshold_check = {text_or_nothing(check, "threshold").value_or("another threshold"),
                                    count(check.at("flagged"), "parity.checks.flagged")};
        break;
    }
    const Json& limits = fields.at("parity").at("limits");
    manifest.limits = {number_or_nothing(limits, "max_abs"),     number_or_nothing(limits, "min_cosine"),
                       number_or_nothing(limits, "flag_margin"), number_or_nothing(limits, "batch_distance"),
                       limits.value("normalized", false),        number_or_nothing(limits, "max_relative")};
    manifest.versions = fields.at("versions").get<std::map<std::string, std::string>>();
    manifest.sha256 = fields.at("manifest_sha256");

    const Json& files = fields.at("files");
    manifest.model_file = file_record(files.at("model"), "files.model.bytes");
    if (!files.at("external_data").is_null()) {
        manifest.external_data = file_record(files.at("external_data"), "files.external_data.bytes");
    }
    manifest.golden_file = file_record(files.at("parity"), "files.parity.bytes");
    return manifest;
}

Manifest validated(const Json& fields, const std::string& path, const std::string& again) {
    static const auto schema = nlohmann::ordered_json::parse(manifest_schema);
    std::optional<SchemaFault> fault = find_fault(fields, schema);
    if (!fault) {
        try {
            return typed(fields);
        } catch (const SchemaFault& found) {
            fault = found;
        }
    }
    refuse(path + ": " + fault->where + ": " + fault->message + "; " + (fault->is_newer ? "upgrade itae, or " : "") +
           again);
}

}  // namespace

Manifest parse_manifest(const Bytes& text, const std::string& model_path) {
    const std::string path = model_path + ".json";
    const std::string again = "export " + name_of(model_path) + " again";
    Json fields;
    try {
        fields = parse_json(text);
    } catch (const NotJson& error) {
        refuse(path + " is not JSON (" + error.what() + "): it was truncated or altered; " + again);
    }
    const auto version = fields.find("format_version");
    if (!fields.is_object() || version == fields.end() || !version->is_number_integer()) {
        refuse(path + " has no format_version: not a manifest of this project; " + again);
    }
    if (*version > format_version) {
        refuse(path + " has manifest format " + version->dump() + ", this version reads up to " +
               std::to_string(format_version) + ": upgrade itae");
    }
    if (*version == 1) refuse(path + " has manifest format 1, which Python alone reads: " + again);
    if (!matches_own_hash(text, fields)) {
        refuse(path + " does not match its own hash: it was altered or only partly written; " + again);
    }
    Manifest manifest = validated(fields, path, again);
    manifest.model_path = model_path;
    manifest.manifest_path = path;
    return manifest;
}

Manifest Manifest::read(const std::string& model_path) {
    check_is_file(model_path);
    return parse_manifest(manifest_bytes(model_path), model_path);
}

bool Manifest::has_output(const std::string& name) const noexcept {
    return std::any_of(outputs.begin(), outputs.end(), [&name](const TensorInfo& one) { return one.name == name; });
}

std::vector<std::string> Manifest::own_outputs() const {
    static const std::array<const char*, 4> known{"embedding", "patch_tokens", "artifact_mask", "artifact_norm"};
    std::vector<std::string> own;
    for (const TensorInfo& output : outputs)
        if (std::find(known.begin(), known.end(), output.name) == known.end()) own.push_back(output.name);
    return own;
}

void Manifest::check_embedding() const {
    if (has_output("embedding")) return;
    const std::string cure = foreign_file.empty()
                                 ? "export it again with it"
                                 : "`python -m exporter --onnx " + foreign_file + " --embedding NAME` adds one";
    throw Error(ErrorKind::usage, model_path + " has no output `embedding`: " + cure);
}

std::string Manifest::path_of(const FileRecord& record) const { return sibling(model_path, record.name); }

Bytes Manifest::read_model() const { return read_checked(*this, model_path, model_file); }

void Manifest::check_files() const {
    CheckedFile(*this, model_path, model_file);
    check_external_data();
}

void Manifest::check_external_data() const {
    if (external_data) CheckedFile(*this, path_of(*external_data), *external_data);
}

}  // namespace itae
