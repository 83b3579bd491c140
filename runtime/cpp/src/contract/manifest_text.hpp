#pragma once

#include <string>

#include "itae/manifest.hpp"

namespace itae {

/// The manifest of `model_path` from the file's bytes; throws as `Manifest::read`.
Manifest parse_manifest(const Bytes& text, const std::string& model_path);

}  // namespace itae
