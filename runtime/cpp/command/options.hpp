#pragma once

#include <string>
#include <vector>

#include "itae/model.hpp"

namespace itae::command {

/// What the command line says.
struct Options {
    std::string model;
    std::vector<std::string> images;
    std::string out;
    std::string assign;
    bool verify = false;
    bool json = false;
    bool quiet = false;
    LoadOptions load;
};

/// What `--help` or `--version` prints; the command has nothing else to do then.
struct Printed {
    std::string text;
};

/// Parse a command line.
/// @throws Error usage: it means nothing. Printed: it asks for help or for the version.
Options parse(int count, const char* const* arguments);

}  // namespace itae::command
