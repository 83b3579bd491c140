#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "itae/error.hpp"

/// Calls what must either succeed or refuse in one line; anything else ends the program.
template <typename Call>
void hold(const Call& call) {
    try {
        call();
    } catch (const itae::Error& error) {
        if (std::strlen(error.what()) == 0 || std::strchr(error.what(), '\n') != nullptr) {
            std::fprintf(stderr, "an error is not one line: %s\n", error.what());
            std::abort();
        }
    } catch (const std::exception& error) {
        std::fprintf(stderr, "not an itae::Error: %s\n", error.what());
        std::abort();
    }
}
