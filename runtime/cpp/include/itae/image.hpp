#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "itae/bytes.hpp"
#include "itae/export.hpp"

namespace itae {

/// Largest number of pixels of a picture: as Python's default, 178,956,970.
constexpr std::int64_t max_pixels = 178'956'970;
/// Largest size of a picture's file, in bytes: that of `max_pixels` pixels of four bytes.
constexpr std::uint64_t max_image_bytes = 4 * static_cast<std::uint64_t>(max_pixels);

/// A decoded picture.
struct Image {
    std::int64_t height = 0;        ///< in pixels
    std::int64_t width = 0;         ///< in pixels
    std::vector<std::uint8_t> rgb;  ///< height x width x 3, row by row, upright by its EXIF orientation
};

/// Decode a JPEG, a PNG or the first frame of a WebP, whichever the content is, to the pixels that Python's `embed`
/// gets.
///
/// Transparent parts are blended over white; grey of 16 bits is divided by 257 and rounded. The size is read and
/// limited before memory is taken for pixels. Threads may decode at the same time.
///
/// @param encoded all bytes of the file.
/// @param name what the message calls the picture, mostly its path; empty if it has no name.
/// @throws Error image: it is empty, damaged, truncated, too large or of another format, which is named. The message is
///     `NAME: REASON`.
ITAE_EXPORT Image decode(ByteView encoded, const std::string& name);

}  // namespace itae
