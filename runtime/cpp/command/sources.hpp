#pragma once

#include <array>
#include <cstdint>
#include <istream>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_set>
#include <vector>

#include "embedding/stream.hpp"

namespace itae::command {

/// Number of files that were passed over, by reason.
using Skipped = std::map<std::string, std::int64_t>;

/// The entries of one argument.
class Source {
  public:
    virtual ~Source() = default;
    Source() = default;
    Source(const Source&) = delete;
    Source& operator=(const Source&) = delete;
    /// Number of entries.
    virtual std::int64_t count() const = 0;
    /// The next entry, or none at the end.
    virtual std::optional<Entry> next() = 0;
    /// The root of its keys; none of a list, whose keys may have any.
    virtual std::optional<std::string> root() const = 0;
    virtual Skipped skipped() const { return {}; }
};

/// A folder, searched through and sorted by path, as Python's `embed` does.
std::unique_ptr<Source> open_folder(const std::string& path);

/// A list of paths: UTF-8, a path in each line, also with CRLF, or a NUL after each path as from `find -print0`.
///
/// @param base the folder that relative paths are below: absolute, links resolved.
/// @throws Error usage: it is UTF-16; `name` is for the message.
std::unique_ptr<Source> open_list(std::string content, const std::string& name, const std::string& base);

/// Root and path of an entry of a list.
struct Key {
    std::string root;
    std::string path;
};
/// @throws Error image: the text can't be the path of an image.
Key key_of(const std::string& text, const std::string& base);

/// The images that the arguments stand for, one after the other, each key once.
class Sources {
  public:
    /// Find out what each argument is; list folders and read lists, but no image yet.
    ///
    /// @param arguments image files, folders, lists of paths (`.txt`, `.lst`), or `-` for a list on `input`.
    /// @throws Error usage: an argument does not exist or is no source of images, or there is no image at all.
    Sources(const std::vector<std::string>& arguments, std::istream& input);

    /// Number of entries; a key that two arguments lead to counts twice.
    std::int64_t total() const;
    const Skipped& skipped() const { return skipped_; }
    std::optional<Entry> next();

  private:
    using Digest = std::array<std::uint64_t, 2>;
    struct HashOfDigest {
        std::size_t operator()(const Digest& digest) const noexcept;
    };
    bool is_new(const Entry& entry);

    std::vector<std::unique_ptr<Source>> sources_;
    Skipped skipped_;
    std::size_t at_ = 0;
    bool may_repeat_ = false;
    std::unordered_set<Digest, HashOfDigest> seen_;
};

/// What was passed over, for the user: `7 files passed over: 4 video, 3 system or hidden`; empty if nothing was.
std::string as_line(const Skipped& skipped);

}  // namespace itae::command
