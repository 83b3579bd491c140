#pragma once

#include <optional>

#include "itae/bytes.hpp"

namespace itae::images {

/// A JPEG that lacks its end marker, cut to the data that counts, and two different ways to go on.
struct Endings {
    ByteView data;  ///< of the file
    Bytes zeros;    ///< the next bits are 0
    Bytes ones;     ///< the next bits are 1
};

/// Two ways to end a JPEG that lacks its end marker: what runtime/images/mend.py does in Python.
///
/// If all pixels are there, a decoder ignores what follows, and both give the same picture. If the file ends earlier,
/// the pictures differ.
///
/// @returns nothing if the file has an end marker, or lacks a component or bits of its coefficients.
std::optional<Endings> with_end_marker(ByteView data);

}  // namespace itae::images
