#pragma once

#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>

#include "itae/bytes.hpp"

namespace itae {

/// The text is not JSON as the contract takes it.
struct NotJson : std::runtime_error {
    using std::runtime_error::runtime_error;
};

/// Objects and arrays inside each other; Python's parser takes as many.
constexpr std::size_t max_json_depth = 201;

/// Parses JSON without `NaN`, infinite numbers, two members of one name in an object, or too many levels.
/// @throws NotJson anything else.
nlohmann::json parse_json(ByteView text);

}  // namespace itae
