#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "contract/open_file.hpp"
#include "contract/sha256.hpp"
#include "itae/manifest.hpp"

namespace itae {

/// Reads a file once and gives the very bytes that were checked against the manifest.
/// @throws Error model: the file is missing, or its size or SHA-256 is not the record's.
Bytes read_checked(const Manifest& manifest, const std::string& path, const FileRecord& record);

/// A file that was checked, and is read again in pieces that are held against what was checked: whoever reads it needs
/// no memory for all of it, and gets the very bytes whose SHA-256 is the record's, or an error.
class CheckedFile {
  public:
    /// Checks the file. `manifest` must outlive this.
    /// @throws Error model: as `read_checked`.
    CheckedFile(const Manifest& manifest, const std::string& path, const FileRecord& record);

    std::uint64_t size() const noexcept { return record_.bytes; }
    /// The next piece; empty behind the last one. It is valid until the next call.
    /// @throws Error model: the file was altered since it was checked.
    ByteView next();
    /// The descriptor that it is read from.
    int descriptor() const noexcept { return file_.descriptor(); }

  private:
    const Manifest& manifest_;
    const std::string path_;
    const FileRecord record_;
    OpenFile file_;
    std::vector<std::string> digits_;  // SHA-256 of all up to the end of each piece
    Sha256 again_;
    std::size_t number_ = 0;  // of the next piece
    Bytes piece_;
};

}  // namespace itae
