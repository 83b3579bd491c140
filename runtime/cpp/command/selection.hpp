#pragma once

#include <optional>
#include <string>

#include "itae/bytes.hpp"

/// Which files of a folder are pictures to read, and why the others are passed over, as in Python's `embed`.
namespace itae::command {

constexpr const char* system_or_hidden = "system or hidden";
constexpr const char* link_to_folder = "link to a folder";

/// Whether a file or folder of this name is hidden, or one that operating systems and tools make for themselves.
bool is_system(const std::string& name);

/// Whether a file of this name in a folder is an image.
bool is_image(const std::string& name);

/// The kind of a file that is no picture by its name; none if the name doesn't say what it is, or is a picture's.
std::optional<std::string> kind_by_suffix(const std::string& name);

/// The kind of a file by its first `images::head_bytes` bytes; none if it is a picture of a format that Python reads.
std::optional<std::string> kind_by_content(ByteView start);

}  // namespace itae::command
