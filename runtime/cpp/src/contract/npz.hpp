#pragma once

#include <stdexcept>

#include "itae/golden.hpp"

namespace itae {

/// The bytes are not an npz file, or it unpacks to too much.
struct NotNpz : std::runtime_error {
    using std::runtime_error::runtime_error;
};

/// `read_npz` without a name; @throws NotNpz, NotNpy.
std::map<std::string, Array> parse_npz(ByteView file, const std::vector<std::string>& names, std::uint64_t max_bytes);

}  // namespace itae
