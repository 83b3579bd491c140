#pragma once

#include "images/refusal.hpp"
#include "itae/bytes.hpp"

namespace itae::images {

/// Decode a PNG of any kind, over white where it is transparent; of an animation, its picture for viewers of stills.
///
/// Damaged metadata is left out; what the pixels need must be whole.
///
/// @throws Refusal it is damaged, truncated or too large.
Decoded decode_png(ByteView data);

}  // namespace itae::images
