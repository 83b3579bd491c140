#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "itae/export.hpp"
#include "itae/image.hpp"

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
    /// The filter that resizes: `bicubic` or `bilinear`.
    std::string resize_filter = "bicubic";
    /// Which pass of the filter is the first: `pillow13`.
    std::string resize_order;
    /// A value v of a channel becomes (v * scale - mean) / stddev; the model itself does it where `uint8_input`.
    double scale = 0;
    std::array<double, 3> mean{};
    std::array<double, 3> stddev{};
    /// Whether a picture is given as uint8 (H, W, 3); else it is float32 (3, H, W), normalised.
    bool uint8_input = false;

    /// Number of bytes of one picture as the model takes it.
    std::size_t input_bytes() const {
        return static_cast<std::size_t>(3 * height * width) * (uint8_input ? 1 : sizeof(float));
    }
};

/// Resize a picture as Pillow 13 does, antialiased, and crop or pad it. Threads may call it at the same
/// time.
///
/// @returns `height` x `width` x 3 bytes, row by row; every byte equals Python's.
/// @throws Error image: the picture is too narrow a strip; the message doesn't name it. Error usage: `how` is
/// incomplete.
ITAE_EXPORT std::vector<std::uint8_t> resize_and_fit(const Image& image, const Preprocessing& how);

/// Write one picture as the model takes it: uint8 (H, W, 3), or float32 (3, H, W) with the bits of Python's arithmetic.
///
/// @param pixels `height` x `width` x 3 bytes, as `resize_and_fit` gives them.
/// @param how the preprocessing that they were made with.
/// @param out `how.input_bytes()` bytes, aligned for float.
/// @throws Error usage: `pixels` has another size.
ITAE_EXPORT void to_input(const std::vector<std::uint8_t>& pixels, const Preprocessing& how, void* out);

}  // namespace itae
