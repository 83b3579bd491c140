#pragma once

#include "images/refusal.hpp"
#include "itae/bytes.hpp"

namespace itae::images {

/// Decode the first frame of a WebP, over white where it is transparent.
///
/// @throws Refusal it is damaged, truncated or too large.
Decoded decode_webp(ByteView data);

}  // namespace itae::images
