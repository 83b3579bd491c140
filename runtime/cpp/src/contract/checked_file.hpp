#pragma once

#include <string>

#include "itae/manifest.hpp"

namespace itae {

/// Reads a file once and gives the very bytes that were checked against the manifest.
/// @throws Error model: the file is missing, or its size or SHA-256 is not the record's.
Bytes read_checked(const Manifest& manifest, const std::string& path, const FileRecord& record);

/// Checks a file in pieces; throws as `read_checked`.
void check_file(const Manifest& manifest, const std::string& path, const FileRecord& record);

}  // namespace itae
