#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "itae/bytes.hpp"
#include "itae/error.hpp"

namespace itae {

/// The error `can't read PATH: REASON`, of kind io.
class CantRead : public Error {
  public:
    CantRead(const std::string& path, const std::string& reason)
        : Error(ErrorKind::io, "can't read " + path + ": " + reason), reason_(reason) {}
    const std::string& reason() const noexcept { return reason_; }

  private:
    std::string reason_;
};

/// A regular file that is open for reading; every failure is a `CantRead`.
class OpenFile {
  public:
    explicit OpenFile(const std::string& path);
    ~OpenFile();
    OpenFile(OpenFile&& other) noexcept;
    OpenFile(const OpenFile&) = delete;
    OpenFile& operator=(const OpenFile&) = delete;
    OpenFile& operator=(OpenFile&&) = delete;

    /// Number of bytes when it was opened.
    std::uint64_t size() const noexcept { return size_; }
    /// Reads up to `count` bytes from where the last read ended; fewer only at the file's end.
    std::size_t read(std::uint8_t* out, std::size_t count);
    /// The next read begins at the file's start.
    void rewind();
    int descriptor() const noexcept { return descriptor_; }
    /// All bytes; fewer than `size()` if the file was cut meanwhile.
    Bytes read_all();

  private:
    std::string path_;
    int descriptor_ = -1;
    std::uint64_t size_ = 0;
};

}  // namespace itae
