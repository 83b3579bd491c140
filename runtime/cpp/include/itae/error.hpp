#pragma once

#include <stdexcept>
#include <string>

#include "itae/export.hpp"

namespace itae {

/// What was wrong.
enum class ErrorKind {
    usage,     ///< an argument that means nothing here
    model,     ///< a model, its manifest or its golden sample is missing, altered or too new
    image,     ///< a picture can't be read
    backend,   ///< this machine lacks something: a library, a driver, a version
    io,        ///< a file can't be read or written
    mismatch,  ///< two computations of the same result disagree
};

/// The only exception that the library throws on purpose.
///
/// `what()` is one line without a newline: what was wrong, with which input, what to do.
class ITAE_EXPORT Error : public std::runtime_error {
  public:
    Error(ErrorKind kind, const std::string& message);
    ErrorKind kind() const noexcept { return kind_; }

  private:
    ErrorKind kind_;
};

/// The text on one line of a terminal: spaces for line breaks, escapes for characters that steer a terminal.
ITAE_EXPORT std::string plain(const std::string& text);

}  // namespace itae
