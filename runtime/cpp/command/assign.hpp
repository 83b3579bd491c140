#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "itae/manifest.hpp"

namespace itae::command {

/// The centroids of an older run of Python's `cluster`, for the label of new embeddings.
class OldClusters {
  public:
    /// @param path `centroids.npy`, or the folder of a run.
    /// @throws Error usage: the centroids can't be read, the summary beside them belongs to others, or they are of
    ///     another width or model than `manifest`.
    OldClusters(const std::string& path, const Manifest& manifest);

    /// The number of the nearest centroid; of equally near ones the first.
    /// @param embedding of the model's width; its distance is taken in the metric of the older run.
    /// @throws Error mismatch: it is all zeros, which have no direction; `name` is for the message.
    std::int64_t nearest(const float* embedding, const std::string& name) const;

    /// What the user should know; empty if nothing.
    const std::string& warning() const noexcept { return warning_; }

  private:
    std::vector<float> centroids_;  // (k, C)
    std::size_t width_;
    bool is_cosine_ = true;
    std::string warning_;
};

}  // namespace itae::command
