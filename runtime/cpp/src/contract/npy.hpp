#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#include "itae/golden.hpp"

namespace itae {

/// The bytes are not an npy file, or not one of numbers.
struct NotNpy : std::runtime_error {
    using std::runtime_error::runtime_error;
};

/// `read_npy` without a name; @throws NotNpy.
Array parse_npy(ByteView file);

/// A shape as Python shows it: `(2, 3)`, `(3,)`.
std::string shape_text(const std::vector<std::int64_t>& shape);

}  // namespace itae
