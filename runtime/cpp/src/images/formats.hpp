#pragma once

#include <string>

#include "itae/bytes.hpp"

namespace itae::images {

enum class Format { jpeg, png, webp, none };

/// The format of a file by its first bytes.
Format format_of(ByteView data);

/// Why a file that is none of the formats that are read, or damaged at its beginning, is refused: what it is if known.
std::string what_else(ByteView data);

}  // namespace itae::images
