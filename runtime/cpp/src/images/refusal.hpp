#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "itae/image.hpp"

namespace itae::images {

/// A picture can't be decoded; `what()` is the reason, which goes on a sentence about it: "is damaged".
class Refusal : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

/// A sound picture that is refused for its size: no other way to read the file is tried.
class TooLarge : public Refusal {
  public:
    using Refusal::Refusal;
};

/// A picture as its file holds it.
struct Decoded {
    Image image;
    int orientation = 1;  ///< EXIF's, not applied yet
};

/// Throws TooLarge if a picture of this size is too large.
void check_size(std::int64_t height, std::int64_t width);

[[noreturn]] void refuse_damaged(const std::string& reason);
[[noreturn]] void refuse_truncated();

}  // namespace itae::images
