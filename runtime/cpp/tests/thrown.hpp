#pragma once

#include <optional>
#include <string>

#include "itae/error.hpp"

/// The error that a call throws, or nothing; any other exception fails the test.
template <typename Call>
std::optional<itae::Error> thrown(const Call& call) {
    try {
        call();
    } catch (const itae::Error& error) {
        return error;
    }
    return std::nullopt;
}
