#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "itae/bytes.hpp"

namespace itae::images {

enum class Format { jpeg, png, webp, none };

/// Bytes at the beginning of a file that are looked at.
constexpr std::size_t head_bytes = 1024;

/// The format of a file by its first bytes.
Format format_of(ByteView data);

/// The name of the picture format that a file has, of all those that Python reads; empty if it has none.
std::string_view picture_format(ByteView data);

/// The name of what a file that is no such picture is, with its article, such as `a video`; empty if it is not known.
std::string_view other_format(ByteView data);

/// Why a file that is none of the formats that are read, or damaged at its beginning, is refused: what it is if known.
std::string what_else(ByteView data);

}  // namespace itae::images
