#pragma once

#include <dlfcn.h>

#include <memory>
#include <string>
#include <vector>

namespace itae {

struct CloseLibrary {
    void operator()(void* handle) const noexcept { dlclose(handle); }
};
using LibraryHandle = std::unique_ptr<void, CloseLibrary>;

/// Where a shared library is looked for, in this order; the last entries are names for the loader.
///
/// @param names of the library's file, the preferred one first.
/// @param chosen the option's value; empty: none.
/// @param variable the value of the environment variable; empty: none.
/// @param folders of the program and of the library that this code is in, for example.
std::vector<std::string> library_candidates(const std::vector<std::string>& names, const std::string& chosen,
                                            const std::string& variable, const std::vector<std::string>& folders);

/// Open a library, a link to it followed first; nullptr, and why, where that fails.
LibraryHandle open_library(const std::string& candidate, std::string& problem);

/// The folders of the program and of the library that this code is in; empty where there is none.
std::vector<std::string> own_folders();

/// The value of an environment variable; empty if there is none.
std::string environment_variable(const char* name);

}  // namespace itae
