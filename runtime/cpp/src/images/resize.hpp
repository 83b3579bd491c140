#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "itae/image.hpp"

namespace itae::images {

/// Rows and columns of pixels.
struct Size {
    std::int64_t height = 0;
    std::int64_t width = 0;
};

/// What a picture is resized with: the processor's AVX2, if it has it, or plain loops, which give the same bits.
enum class Instructions { best, plain };

/// Filters of Pillow.
enum class Kernel { bicubic, bilinear };

/// Resize a picture to `size` and keep the `part` of it whose first row and column are `top` and `left`.
///
/// Pillow's filter with antialias, in fixed point: coefficients of 22 bits, and the results of both passes
/// rounded to 8 bits. The passes are in Pillow 13's order. Only what the part is made of is computed.
///
/// @returns part.height x part.width x 3 bytes.
std::vector<std::uint8_t> resized_part(const Image& image, Size size, std::int64_t top, std::int64_t left, Size part,
                                       Kernel kernel = Kernel::bicubic, Instructions instructions = Instructions::best);

}  // namespace itae::images
