#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "embedding/stream.hpp"
#include "file_exchange.hpp"

namespace itae::command {

/// The header of a .npy file of float32 (`rows`, `width`), row by row, with the bytes that numpy writes. Its size does
/// not depend on `rows`.
std::string npy_header(std::int64_t rows, std::int64_t width);

/// A line of X.jsonl, with its line break: of a row, with its label if there is one.
std::string line_of(std::int64_t row, const std::string& root, const std::string& path,
                    std::optional<std::int64_t> label);
/// A line of X.jsonl for an image that has no row.
std::string line_of(const std::string& root, const std::string& path, const std::string& error);

/// Writes `X.npy`, (n, C) float32, and `X.jsonl` beside it, a line for each image; both appear when both are whole.
class PairWriter {
  public:
    /// @param out `X.npy`; a pair that lies there is replaced.
    /// @throws Error usage: `out` does not end in `.npy`. Error io: a file can't be written, or what lies in its place
    ///     is no such pair.
    PairWriter(std::string out, std::int64_t width);
    ~PairWriter();
    PairWriter(const PairWriter&) = delete;
    PairWriter& operator=(const PairWriter&) = delete;

    /// Add a row.
    void add(const Entry& entry, const float* embedding, std::optional<std::int64_t> label);
    /// Add an image that has no row.
    void fail(const Entry& entry, const std::string& error);
    std::int64_t rows() const noexcept { return rows_; }
    const std::string& lines_path() const noexcept { return lines_path_; }
    /// Put both files in their places.
    void publish();

  private:
    struct CloseFile {
        void operator()(std::FILE* file) const noexcept { std::fclose(file); }
    };
    using File = std::unique_ptr<std::FILE, CloseFile>;
    File opened(const std::string& name) const;
    void write(std::FILE* file, const void* data, std::size_t bytes) const;
    void finish(File file) const;

    std::string out_, lines_path_;
    std::int64_t width_;
    std::int64_t rows_ = 0;
    std::unique_ptr<WorkFolder> work_;
    File numbers_, lines_;
};

}  // namespace itae::command
