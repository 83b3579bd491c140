#include "sources.hpp"

#include <dirent.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <iterator>
#include <set>
#include <system_error>
#include <utility>

#include "contract/open_file.hpp"
#include "contract/sha256.hpp"
#include "images/formats.hpp"
#include "itae/error.hpp"
#include "names.hpp"
#include "selection.hpp"

namespace itae::command {
namespace {

constexpr const char* not_utf8 = "its name is not UTF-8: rename it";
constexpr std::size_t max_length = 16384;  // characters of a path: longer lines are not of a list
constexpr std::size_t shown_length = 200;

std::string reason_of(int number) { return std::generic_category().message(number); }

/// The entry of a key, or one that says that its name can't be written down.
Entry entry_of(const std::string& root, const std::string& path) {
    if (is_utf8(root) && is_utf8(path)) return {root, path, ""};
    return {printable(root), printable(path), not_utf8};
}

/// A file that is an argument itself, whatever its name; its folder is its root.
class NamedFile final : public Source {
  public:
    NamedFile(std::string root, std::string name) : root_(std::move(root)), name_(std::move(name)) {}
    std::int64_t count() const override { return 1; }
    std::optional<std::string> root() const override { return root_; }
    std::optional<Entry> next() override {
        if (std::exchange(is_over_, true)) return std::nullopt;
        return entry_of(root_, name_);
    }

  private:
    std::string root_, name_;
    bool is_over_ = false;
};

struct CloseFolder {
    void operator()(DIR* folder) const noexcept { ::closedir(folder); }
};

enum class Kind { file, folder, link_to_folder, link_to_file, broken_link, other };

Kind kind_of(const std::string& path) {
    struct stat found {};
    if (::lstat(path.c_str(), &found) != 0) return Kind::other;
    if (S_ISDIR(found.st_mode)) return Kind::folder;
    if (!S_ISLNK(found.st_mode)) return S_ISREG(found.st_mode) ? Kind::file : Kind::other;
    if (::stat(path.c_str(), &found) != 0) return Kind::broken_link;
    if (S_ISDIR(found.st_mode)) return Kind::link_to_folder;
    return S_ISREG(found.st_mode) ? Kind::link_to_file : Kind::other;
}

class Folder final : public Source {
  public:
    explicit Folder(const std::string& path) : root_(resolved(path)) {
        std::vector<std::pair<std::string, std::string>> waiting{{"", ""}};  // folders, and why they are passed over
        while (!waiting.empty()) {
            const auto [folder, passed_over] = std::move(waiting.back());
            waiting.pop_back();
            list(folder, passed_over, waiting);
        }
        sort_names(paths_);
    }
    std::int64_t count() const override { return static_cast<std::int64_t>(paths_.size()); }
    std::optional<std::string> root() const override { return root_; }
    Skipped skipped() const override { return skipped_; }
    std::optional<Entry> next() override {
        if (at_ == paths_.size()) return std::nullopt;
        const std::string path = std::move(paths_[at_++]);
        const auto problem = unlistable_.find(path);
        if (problem == unlistable_.end()) return entry_of(root_, path);
        return Entry{printable(root_), printable(path), problem->second};
    }

  private:
    void list(const std::string& folder, const std::string& passed_over,
              std::vector<std::pair<std::string, std::string>>& waiting) {
        const std::string place = root_ + (root_ == "/" ? "" : "/") + folder;
        const std::unique_ptr<DIR, CloseFolder> opened(::opendir(place.c_str()));
        int failure = opened ? 0 : errno;
        while (opened) {
            errno = 0;
            const dirent* found = ::readdir(opened.get());  // NOLINT(concurrency-mt-unsafe): a stream of its own
            if (found == nullptr) {
                failure = errno;
                break;
            }
            const std::string name = found->d_name;
            if (name == "." || name == "..") continue;
            const std::string path = folder + name;
            std::string why = passed_over.empty() && is_system(name) ? system_or_hidden : passed_over;
            if (found->d_type == DT_REG && why.empty() && is_image(name)) {  // most files; no call for each
                paths_.push_back(path);
                continue;
            }
            const Kind kind = kind_of(place + name);
            if (kind == Kind::folder) {
                waiting.emplace_back(path + "/", why);
                continue;
            }
            if (why.empty()) why = kind == Kind::link_to_folder ? link_to_folder : why_not(place + name, name, kind);
            if (why.empty())
                paths_.push_back(path);
            else
                ++skipped_[why];
        }
        if (failure == 0) return;
        if (!passed_over.empty()) {
            ++skipped_[passed_over];
            return;
        }
        const std::string named = folder.empty() ? "" : folder.substr(0, folder.size() - 1);
        unlistable_[named] = "folder can't be listed: " + reason_of(failure);
        paths_.push_back(named);
    }

    /// Why a file is no picture, by its name, or by its beginning if the name says nothing; empty if it is one.
    static std::string why_not(const std::string& place, const std::string& name, Kind kind) {
        if (is_image(name)) return "";
        if (const auto found = kind_by_suffix(name)) return *found;
        if (kind == Kind::broken_link) return "broken link";
        if (kind == Kind::other) return "no regular file";
        try {
            Bytes start(images::head_bytes);
            start.resize(OpenFile(place).read(start.data(), start.size()));
            return kind_by_content(start).value_or("");
        } catch (const Error&) {
            return "can't be opened";
        }
    }

    std::string root_;
    std::vector<std::string> paths_;
    std::map<std::string, std::string> unlistable_;
    Skipped skipped_;
    std::size_t at_ = 0;
};

bool is_remote(const std::string& text) { return text.find("://") != std::string::npos; }

bool ends_with(const std::string& text, const std::string& end) {
    return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

/// Paths, one after the other.
class PathList final : public Source {
  public:
    PathList(std::string content, std::string base) : content_(std::move(content)), base_(std::move(base)) {
        has_nul_ = content_.find('\0') != std::string::npos;
        while (line()) ++count_;
        at_ = 0;
    }
    std::int64_t count() const override { return count_; }
    std::optional<std::string> root() const override { return std::nullopt; }
    std::optional<Entry> next() override {
        const std::optional<std::string> text = line();
        if (!text) return std::nullopt;
        try {
            Key key = key_of(*text, base_);
            return Entry{std::move(key.root), std::move(key.path), ""};
        } catch (const std::exception& error) {  // ours, or a folder that can't be resolved
            const std::string shown = text->size() <= max_length ? *text : text->substr(0, shown_length) + "…";
            return Entry{printable(base_), printable(shown), plain(printable(error.what()))};
        }
    }

  private:
    /// The next path; blank lines are none.
    std::optional<std::string> line() {
        while (at_ < content_.size()) {
            const std::size_t end = std::min(content_.find(has_nul_ ? '\0' : '\n', at_), content_.size());
            std::size_t start = std::exchange(at_, end + 1);
            // From the first stretch without CR that is not blank.
            while (!has_nul_ && start < end) {
                const std::size_t stretch = std::min(content_.find('\r', start), end);
                const std::size_t mark = content_.find_first_not_of("\t ", start);
                if (mark < stretch) break;
                start = stretch + 1;
            }
            if (start >= end) continue;
            const bool has_cr = content_[end - 1] == '\r';
            return content_.substr(start, end - start - (has_cr ? 1 : 0));
        }
        return std::nullopt;
    }

    std::string content_, base_;
    bool has_nul_ = false;
    std::size_t at_ = 0;
    std::int64_t count_ = 0;
};

std::unique_ptr<Source> open_argument(const std::string& argument) {
    const auto refuse = [&](const std::string& why) -> Error {
        return {ErrorKind::usage, printable(argument) + ": " + why};
    };
    if (is_remote(argument)) throw refuse("itae-embed reads no URLs; `python -m runtime embed` does");
    struct stat found {};
    if (argument.find('\0') != std::string::npos || ::stat(argument.c_str(), &found) != 0) {
        const std::string hint = argument.find_first_of("*?[") == std::string::npos
                                     ? ""
                                     : " (a pattern: leave out the quotes, so that the shell expands it)";
        throw refuse(reason_of(errno) + "; give image files or folders" + hint);
    }
    if (S_ISDIR(found.st_mode)) return std::make_unique<Folder>(argument);
    std::string bare = argument;
    while (bare.size() > 1 && bare.back() == '/') bare.pop_back();
    const std::string name = base_name(bare);
    const std::string folder = resolved(bare.substr(0, bare.size() - name.size()));
    const std::string small = lower(name);
    for (const char* end :
         {".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".parquet"})
        if (ends_with(small, end))
            throw refuse("itae-embed reads no tars and no parquet; `python -m runtime embed` does");
    for (const char* end : {".csv", ".tsv", ".json", ".jsonl", ".zip", ".arrow"})
        if (ends_with(small, end))
            throw refuse("not a source of images; give images, folders, or a list of paths (.txt)");
    if (!ends_with(small, ".txt") && !ends_with(small, ".lst")) return std::make_unique<NamedFile>(folder, name);
    try {
        const Bytes content = OpenFile(argument).read_all();
        return open_list(std::string(content.begin(), content.end()), argument, resolved("."));
    } catch (const Error& error) {
        throw error.kind() == ErrorKind::io ? Error(ErrorKind::usage, error.what()) : error;
    }
}

}  // namespace

std::unique_ptr<Source> open_folder(const std::string& path) { return std::make_unique<Folder>(path); }

std::unique_ptr<Source> open_list(std::string content, const std::string& name, const std::string& base) {
    if (content.compare(0, 2, "\xff\xfe") == 0 || content.compare(0, 2, "\xfe\xff") == 0)
        throw Error(ErrorKind::usage, printable(name) + ": is UTF-16; save the list as UTF-8");
    if (content.compare(0, 3, "\xef\xbb\xbf") == 0) content.erase(0, 3);
    return std::make_unique<PathList>(std::move(content), base);
}

Key key_of(const std::string& given, const std::string& base) {
    std::string text = given;
    const auto refuse = [](const std::string& why) { return Error(ErrorKind::image, why); };
    if (text.size() > max_length)
        throw refuse("has " + std::to_string(text.size()) + " characters, too many for a path");
    if (!is_utf8(text)) throw refuse(not_utf8);
    if (is_remote(text)) throw refuse("is a URL, which itae-embed doesn't read; `python -m runtime embed` does");
    if (text.compare(0, 6, "file:/") == 0) text.erase(0, 5);  // as Spark writes the path of a local file
    std::string root = base, path = normalized(text);
    const std::string parted = "/" + text + "/";
    if (text.front() == '/' || parted.find("/../") != std::string::npos) {
        const std::string name = base_name(text);
        const std::string folder = text.substr(0, text.size() - name.size());
        root = resolved(text.front() == '/' ? folder : base + "/" + folder);
        path = name;
        const std::string below = base == "/" ? base : base + "/";
        if (text.front() != '/' && (root + "/").compare(0, below.size(), below) == 0) {
            const std::string inner = root == base ? "" : root.substr(below.size()) + "/";
            path = name.empty() ? "" : normalized(inner + name);
            root = base;
        }
    }
    const std::string last = base_name(path);
    if (last.empty() || last == "." || last == "..") throw refuse("names a folder, not an image");
    if (!is_utf8(root)) throw refuse(not_utf8);
    return {root, path};
}

Sources::Sources(const std::vector<std::string>& arguments, std::istream& input) {
    for (const std::string& argument : arguments) {
        if (argument == "-") {
            std::string content{std::istreambuf_iterator<char>(input), {}};
            sources_.push_back(open_list(std::move(content), "standard input", resolved(".")));
        } else {
            sources_.push_back(open_argument(argument));
        }
    }
    std::map<std::string, Skipped> by_root;  // named twice: once
    std::set<std::string> roots;
    std::size_t with_root = 0;
    for (const auto& source : sources_) {
        const std::optional<std::string> root = source->root();
        may_repeat_ = may_repeat_ || !root;
        if (root && !source->skipped().empty()) by_root[*root] = source->skipped();
        if (root) roots.insert(*root);
        with_root += root ? 1 : 0;
    }
    may_repeat_ = may_repeat_ || with_root > roots.size();
    for (const auto& [root, skipped] : by_root)
        for (const auto& [reason, count] : skipped) skipped_[reason] += count;
    if (total() == 0) {
        std::string where;
        for (const std::string& argument : arguments) where += (where.empty() ? "" : ", ") + printable(argument);
        const std::string line = as_line(skipped_);
        throw Error(ErrorKind::usage, "no image in " + where +
                                          ": looked for files that end in .jpg, .png, .webp and the like" +
                                          (line.empty() ? "" : "; " + line));
    }
}

std::int64_t Sources::total() const {
    std::int64_t sum = 0;
    for (const auto& source : sources_) sum += source->count();
    return sum;
}

std::optional<Entry> Sources::next() {
    while (at_ < sources_.size()) {
        std::optional<Entry> entry = sources_[at_]->next();
        if (!entry)
            ++at_;
        else if (!may_repeat_ || is_new(*entry))
            return entry;
    }
    return std::nullopt;
}

bool Sources::is_new(const Entry& entry) {
    // 16 bytes of a hash in the place of a key: a million of them takes little memory.
    const std::string text = (entry.error.empty() ? "i" : "e") + entry.root + '\0' + entry.path;
    const std::string digits = sha256(ByteView(reinterpret_cast<const std::uint8_t*>(text.data()), text.size()));
    return seen_
        .insert({std::stoull(digits.substr(0, 16), nullptr, 16), std::stoull(digits.substr(16, 16), nullptr, 16)})
        .second;
}

std::size_t Sources::HashOfDigest::operator()(const Digest& digest) const noexcept {
    return static_cast<std::size_t>(digest[0]);
}

std::string as_line(const Skipped& skipped) {
    std::vector<std::pair<std::string, std::int64_t>> parts(skipped.begin(), skipped.end());
    std::stable_sort(parts.begin(), parts.end(), [](const auto& a, const auto& b) { return a.second > b.second; });
    std::int64_t total = 0;
    std::string text;
    for (const auto& [reason, count] : parts) {
        total += count;
        text += (text.empty() ? "" : ", ") + std::to_string(count) + " " + reason;
    }
    if (total == 0) return "";
    return std::to_string(total) + (total == 1 ? " file" : " files") + " passed over: " + text;
}

}  // namespace itae::command
