#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "itae/bytes.hpp"

namespace itae {

/// A regular file that is open for reading; every failure is an `Error` of kind io that begins `can't read PATH: `.
class OpenFile {
  public:
    explicit OpenFile(const std::string& path);
    ~OpenFile();
    OpenFile(const OpenFile&) = delete;
    OpenFile& operator=(const OpenFile&) = delete;

    /// Number of bytes when it was opened.
    std::uint64_t size() const noexcept { return size_; }
    /// Reads up to `count` bytes from where the last read ended; fewer only at the file's end.
    std::size_t read(std::uint8_t* out, std::size_t count);
    /// All bytes; fewer than `size()` if the file was cut meanwhile.
    Bytes read_all();

  private:
    std::string path_;
    int descriptor_ = -1;
    std::uint64_t size_ = 0;
};

}  // namespace itae
