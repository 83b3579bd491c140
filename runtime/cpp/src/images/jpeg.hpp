#pragma once

#include "images/refusal.hpp"
#include "itae/bytes.hpp"

namespace itae::images {

/// Decode a JPEG, baseline or progressive, grey, colour or CMYK.
///
/// A file that lacks its end marker alone is whole; one that lacks a row is refused.
///
/// @throws Refusal it is damaged, truncated, too large or of a kind that libjpeg doesn't read.
Decoded decode_jpeg(ByteView data);

}  // namespace itae::images
