#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "images/orientation.hpp"
#include "itae/bytes.hpp"

namespace itae::images {

/// What a PNG's pixels are made of, and its metadata.
struct PngParts {
    std::uint32_t width = 0;
    std::uint32_t height = 0;
    int bits = 0;
    int colour = 0;
    bool interlaced = false;
    ByteView palette;  ///< empty if there is none
    std::optional<ByteView> transparency;
    std::vector<ByteView> pixels;  ///< compressed, in the file's pieces
    Metadata metadata;
};

/// Take a PNG apart, as strictly as Pillow does: checksums of what comes before the pixels count.
///
/// @throws Refusal it is damaged or truncated before its pixels.
PngParts take_apart(ByteView data);

/// A copy of a PNG with what its pixels need, and EXIF if its checksum is right: what runtime/images/mend.py does.
///
/// @returns nothing if the file has no pixels, or holds nothing else.
std::optional<Bytes> without_metadata(ByteView data);

}  // namespace itae::images
