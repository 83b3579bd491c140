#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "itae/bytes.hpp"
#include "itae/export.hpp"
#include "itae/preprocess.hpp"

namespace itae {

/// A size of a model's input or output that is not fixed, as the number of pictures of an ONNX file.
constexpr std::int64_t dynamic_size = -1;

/// One input or output of a model.
struct TensorInfo {
    std::string name;
    std::string dtype;                ///< `float32`, `uint8` or `bool`
    std::vector<std::int64_t> shape;  ///< sizes above 0, or `dynamic_size`
    std::string in_file = {};         ///< the name that the model's file has for it; empty: the same

    /// The name in the model's file.
    const std::string& name_in_file() const { return in_file.empty() ? name : in_file; }
};

/// A file beside the manifest.
struct FileRecord {
    std::string name;
    std::uint64_t bytes = 0;
    std::string sha256;  ///< 64 lowercase hexadecimal digits
};

/// What a model's outputs are held to; nothing where a figure has no limit.
struct ParityLimits {
    std::optional<double> max_abs;
    std::optional<double> min_cosine;
    std::optional<double> flag_margin;  ///< relative distance of a norm to its threshold within which a flag may flip
    std::optional<double> batch_distance;  ///< of a vector to that of its image alone, as a share of its length
    bool normalized = false;               ///< the embedding has length 1: its differences count sqrt(C)-fold
    std::optional<double> max_relative;    ///< of the model's own outputs: difference, as a share of the largest number
};

/// The export's comparison at another threshold than the model's own, which flags nothing in the golden sample.
struct ThresholdCheck {
    std::string threshold;
    std::int64_t flagged = 0;  ///< patches that are artifacts there
};

/// The manifest beside a model, format 2, as far as programs need it; runtime/contract/README.md describes it.
struct ITAE_EXPORT Manifest {
    std::string model_path;     ///< as it was given
    std::string manifest_path;  ///< `model_path` and `.json`

    std::string backend;                               ///< `none` for ONNX, `tensorrt` or `tensorrt-rtx` for an engine
    std::string precision;                             ///< `fp32`, `fp16` or `bf16`
    std::array<std::int64_t, 2> image_size{};          ///< H, W in pixels
    std::optional<std::array<std::int64_t, 3>> batch;  ///< smallest, preferred, largest of an engine; nothing: dynamic
    std::string method;                                ///< against artifacts: `none` or `itae`
    std::vector<std::int64_t> layers;                  ///< blocks that the method works in, from 0; empty for `none`
    std::string pooling;                               ///< `cls` or `cls+mean`
    bool normalize = false;                            ///< whether an embedding's L2 norm is 1

    std::string size;                 ///< of the network, such as `vitb14`
    std::int64_t patch = 0;           ///< side of a patch in pixels
    std::int64_t width = 0;           ///< elements of a token, C
    bool has_random_weights = false;  ///< embeddings mean nothing then
    std::string foreign_file;         ///< somebody else's ONNX file that the model was made from; empty: it is ours
    std::optional<std::array<std::int64_t, 2>> grid;  ///< rows and columns of patches, as its graph shows them

    TensorInfo input;
    std::vector<TensorInfo> outputs;
    Preprocessing preprocessing;

    std::string builder;                            ///< what wrote the model file: `onnx`, `tensorrt` or `tensorrt-rtx`
    std::string builder_version;                    ///< its version
    std::string builder_platform;                   ///< the platform it ran on
    std::optional<std::string> builder_gpu;         ///< the GPU that an engine of TensorRT was built on
    std::optional<std::string> compute_capability;  ///< that GPU's: `8.9`
    /// GPUs that an engine runs on: `none`: those of its own name, `same-compute-capability` or `ampere-plus`.
    std::optional<std::string> hardware_compatibility;
    bool version_compatible = false;  ///< whether later versions of the builder's library run an engine too
    ParityLimits limits;
    std::optional<ThresholdCheck> threshold_check;  ///< nothing if the export made none
    std::map<std::string, std::string> versions;    ///< of the libraries of the export
    std::string sha256;                             ///< the manifest's own hash, 64 lowercase hexadecimal digits

    FileRecord model_file;
    std::optional<FileRecord> external_data;
    FileRecord golden_file;

    /// Reads and checks the manifest of a model, without reading the model itself.
    ///
    /// @throws Error model: there is no model or no manifest, an export was interrupted, or the manifest is not JSON,
    ///     not of this format, written by a newer version, or doesn't match its own hash.
    static Manifest read(const std::string& model_path);

    /// Elements of an embedding: C, or 2 C with the mean patch token.
    std::int64_t embedding_width() const noexcept { return pooling == "cls+mean" ? 2 * width : width; }
    /// Number of patches of a picture.
    std::int64_t patches() const noexcept {
        return grid ? (*grid)[0] * (*grid)[1] : (image_size[0] / patch) * (image_size[1] / patch);
    }
    /// Whether the model has such an output.
    bool has_output(const std::string& name) const noexcept;
    /// Names of the outputs that are the model's own, such as logits, in their order.
    std::vector<std::string> own_outputs() const;
    /// Checks that the model has the output `embedding`.
    /// @throws Error usage: it has none; the message says what adds one.
    void check_embedding() const;
    /// The path of a file that `external_data` or `golden_file` names.
    std::string path_of(const FileRecord& record) const;

    /// The model's bytes, those that were checked. A parser that is given them can't be given others.
    /// @throws Error model: the file is missing, or its size or SHA-256 is not the manifest's.
    Bytes read_model() const;
    /// Checks size and SHA-256 of the model and of its external data, in pieces, without keeping them.
    /// @throws Error model: as `read_model`.
    void check_files() const;
    /// Checks size and SHA-256 of the external data, if the model has any.
    /// @throws Error model: as `read_model`.
    void check_external_data() const;
};

}  // namespace itae
