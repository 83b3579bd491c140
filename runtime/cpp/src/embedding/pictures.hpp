#pragma once

#include <string>

#include "itae/bytes.hpp"
#include "itae/image.hpp"
#include "itae/preprocess.hpp"

namespace itae {

/// Read the file of a picture, decode it, and write the model's input of it.
///
/// @param path of the file.
/// @param out `Session::input_bytes()` bytes.
/// @throws Error image: it is missing, no file, or can't be decoded; the message does not name it.
void prepare_file(const std::string& path, const Preprocessing& how, void* out);

/// The same of a file's content.
void prepare_content(ByteView content, const Preprocessing& how, void* out);

/// The same of a decoded picture. @throws Error image: it is not height x width x 3 bytes, or too narrow a strip.
void prepare_image(const Image& image, const Preprocessing& how, void* out);

}  // namespace itae
