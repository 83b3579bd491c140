#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>

namespace itae {

/// From a decoded picture to the model's input, as the manifest says it: runtime/contract/README.md.
struct Preprocessing {
    /// `crop`, `pad` or `squash`: how a picture becomes `height` x `width` pixels.
    std::string fit;
    /// Rows and columns of the input, in pixels.
    std::int64_t height = 0;
    std::int64_t width = 0;
    /// Rows and columns that a resized picture must cover; only where `fit` is `crop`.
    std::optional<std::array<std::int64_t, 2>> resize_cover;
    /// Which pass of the filter is the first: `pillow13`.
    std::string resize_order;
    /// A value v of a channel becomes (v * scale - mean) / stddev; the model itself does it where `uint8_input`.
    double scale = 0;
    std::array<double, 3> mean{};
    std::array<double, 3> stddev{};
    /// Whether a picture is given as uint8 (H, W, 3); else it is float32 (3, H, W), normalised.
    bool uint8_input = false;
};

}  // namespace itae
