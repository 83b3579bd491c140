#include "assign.hpp"

#include <cmath>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "contract/sha256.hpp"
#include "itae/error.hpp"
#include "itae/golden.hpp"

namespace itae::command {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t max_centroids = 4ULL << 30U;
constexpr std::uint64_t max_summary = 1U << 26U;
constexpr const char* file_name = "centroids.npy";
constexpr const char* summary_name = "summary.json";

Error refused(const std::string& what) { return {ErrorKind::usage, what}; }

/// What the summary of a run says.
struct Summary {
    std::string centroids_sha256;
    std::string metric;
    std::string model_sha256;  ///< empty: not known
};

Summary read_summary(const std::string& path) {
    const auto damaged = [&](const std::string& why) {
        return refused(path + " is damaged" + why + "; make it again with `cluster`");
    };
    try {
        const Bytes content = read_file(path, max_summary);
        const nlohmann::json fields = nlohmann::json::parse(content.begin(), content.end());
        Summary summary;
        fields.at("files").at(file_name).at("sha256").get_to(summary.centroids_sha256);
        const nlohmann::json& source = fields.at("source");
        if (source.contains("model_sha256") && source["model_sha256"].is_string())
            source["model_sha256"].get_to(summary.model_sha256);
        summary.metric = fields.value("metric", "cosine");
        if (summary.metric == "cosine" || summary.metric == "euclidean") return summary;
    } catch (const nlohmann::json::exception&) {
        throw damaged("");
    }
    throw damaged(", or of a newer version");
}

}  // namespace

OldClusters::OldClusters(const std::string& path, const Manifest& manifest) : width_(0) {
    std::error_code failed;
    const bool is_run = fs::is_directory(path, failed);
    const std::string file = is_run ? (fs::path(path) / file_name).string() : path;
    const std::string beside = (fs::path(file).parent_path() / summary_name).string();
    try {
        const Bytes content = read_file(file, max_centroids);
        std::string model;
        if (fs::path(file).filename() == file_name && fs::is_regular_file(beside, failed)) {
            const Summary summary = read_summary(beside);
            if (sha256(content) != summary.centroids_sha256)
                throw refused(file + " is not the one that " + beside + " describes; make both again with `cluster`");
            is_cosine_ = summary.metric == "cosine";
            model = summary.model_sha256;
        } else if (is_run) {
            throw refused(path + " holds no " + summary_name + ", its run was cut short; make it again with `cluster`");
        }
        const Array found = read_npy(content, file);
        if (found.dtype != "float32" || found.shape.size() != 2 || found.shape[0] < 1 || found.shape[1] < 1)
            throw refused(file + " holds no float32 of shape (k, C): give the " + file_name + " of a run of `cluster`");
        width_ = static_cast<std::size_t>(found.shape[1]);
        if (found.shape[1] != manifest.embedding_width()) {
            throw refused("--assign " + path + ": centroids of width " + std::to_string(width_) +
                          ", embeddings of width " + std::to_string(manifest.embedding_width()));
        }
        centroids_.resize(found.count());
        std::memcpy(centroids_.data(), found.data.data(), found.data.size());
        for (const float value : centroids_)
            if (!std::isfinite(value)) throw refused(file + " holds NaN or infinity");
        if (!model.empty() && model != manifest.model_file.sha256) {
            throw refused("--assign " + path + " is of embeddings by the model " + model.substr(0, 12) +
                          "..., these are by " + manifest.model_file.sha256.substr(0, 12) +
                          "...: embed them with the same model");
        }
        if (model.empty()) warning_ = "--assign " + path + ": it is not known whether one model made both";
    } catch (const Error& error) {
        throw error.kind() == ErrorKind::usage ? error : refused(error.what());
    }
}

std::int64_t OldClusters::nearest(const float* embedding, const std::string& name) const {
    std::vector<float> point(embedding, embedding + width_);
    if (is_cosine_) {
        double square = 0;
        for (const float value : point) square += double{value} * double{value};
        const double length = std::sqrt(square);
        if (!(length > 0)) {
            throw Error(ErrorKind::mismatch, "the embedding of " + name +
                                                 " is all zeros and can't be normalised: it has no "
                                                 "label by --assign");
        }
        for (float& value : point) value = static_cast<float>(double{value} / length);
    }
    std::int64_t best = 0, number = 0;
    double least = HUGE_VAL;
    for (std::size_t start = 0; start < centroids_.size(); start += width_, ++number) {
        double distance = 0;
        for (std::size_t element = 0; element < width_; ++element) {
            const double apart = double{point[element]} - double{centroids_[start + element]};
            distance += apart * apart;
        }
        if (distance < least) {
            least = distance;
            best = number;
        }
    }
    return best;
}

}  // namespace itae::command
