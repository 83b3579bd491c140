#pragma once

#include <string>
#include <vector>

/// Names of files, with the results that Python's functions of these names give.
namespace itae::command {

/// Whether the bytes are UTF-8, as Python's decoder says.
bool is_utf8(const std::string& name);

/// The name with escapes in the place of bytes that are not UTF-8: `\udcff` for the byte 0xff, as Python writes it.
std::string printable(const std::string& name);

/// Sort as Python sorts names: by code point, a byte that is not UTF-8 as U+DC00 and the byte.
void sort_names(std::vector<std::string>& names);

/// `os.path.splitext(name)[1].lower()`, of ASCII letters.
std::string suffix(const std::string& name);

std::string lower(std::string text);

/// `posixpath.normpath`.
std::string normalized(const std::string& path);

/// The last part of a path; empty if it ends with a slash.
std::string base_name(const std::string& path);

/// A folder as the root of keys: absolute, links resolved, whether it exists or not.
/// @throws std::filesystem::filesystem_error: it can't be resolved, as with a link to itself.
std::string resolved(const std::string& folder);

}  // namespace itae::command
