#pragma once

#include "itae/bytes.hpp"

namespace itae {

/// Whether any tensor of an ONNX file has its values in another file, read from its bytes alone.
///
/// Given bytes, ONNX Runtime looks for external weights in the current folder, whoever put them there.
///
/// @throws Error model: the bytes are no ONNX file; the message does not name it.
bool refers_to_other_files(ByteView content);

}  // namespace itae
