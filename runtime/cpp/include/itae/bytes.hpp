#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "itae/export.hpp"

namespace itae {

/// Bytes that somebody else owns.
struct ByteView {
    const std::uint8_t* data = nullptr;
    std::size_t size = 0;

    ByteView() = default;
    ByteView(const std::uint8_t* first, std::size_t count) : data(first), size(count) {}
    ByteView(const std::vector<std::uint8_t>& bytes) : data(bytes.data()), size(bytes.size()) {}  // NOLINT: a view
};

using Bytes = std::vector<std::uint8_t>;

/// All bytes of a regular file; its size is looked at before memory is taken.
///
/// @throws Error io: the file is missing, is no regular file, can't be read, or has more than `max_bytes` bytes; the
///     message begins with `can't read PATH: `.
ITAE_EXPORT Bytes read_file(const std::string& path, std::uint64_t max_bytes);

}  // namespace itae
