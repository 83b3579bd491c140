#pragma once

#include <cstdint>

namespace itae::images {

/// A value of a colour blended over white by alpha, as Pillow's `alpha_composite` computes it.
constexpr std::uint8_t over_white(std::uint32_t value, std::uint32_t alpha) {
    constexpr unsigned precision = 7;
    const std::uint32_t sum = ((value * alpha + 255 * (255 - alpha)) << precision) + (0x80U << precision);
    return static_cast<std::uint8_t>((((sum >> 8) + sum) >> 8) >> precision);
}

}  // namespace itae::images
